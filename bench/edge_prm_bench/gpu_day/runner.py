"""Runs tasks as processes until a deadline, and writes each figure into the journal as soon as it is known."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edge_prm.exit_codes import EXIT_SOME_FAILED
from edge_prm.journal import Journal
from edge_prm_bench.gpu_day.environment import child_environment
from edge_prm_bench.gpu_day.plan import Task

Row = dict[str, Any]
"""A line of the journal: subject, figure, seconds, and `value` or `failed`, the reason."""
_POLL_SECONDS = 0.5


@dataclass
class Running:
    """A process, what it has still to print, and when it started."""

    task: Task
    process: subprocess.Popen[str]
    missing: set[str]
    started: float
    log: threading.Thread | None = None
    last_line: str = ""
    errors: list[str] = field(default_factory=list)


class Runner:
    """Runs tasks; `rows` are those of the journal, the newest last. `say` is told what happens, in one line."""

    def __init__(self, journal: Journal, logs: Path, say: Callable[[str], None]) -> None:
        self.rows: list[Row] = list(journal.rows())
        self._journal, self._logs, self._say = journal, logs, say
        self._lines: queue.Queue[tuple[Running, str | None]] = queue.Queue()

    def missing(self, task: Task) -> list[str]:
        """Figures of a task that no run has measured yet."""
        lost = task.makes is not None and not task.makes.exists()
        known = {row["figure"] for row in self.rows if row["subject"] == task.subject and "value" in row}
        return [name for name in task.figures if lost or name not in known]

    def run(self, tasks: Iterable[Task], deadline: float, jobs: int = 1) -> None:
        """Run what is missing of the tasks, `jobs` at a time, until `deadline` (of time.monotonic)."""
        waiting = [task for task in tasks if self.missing(task)]
        running: list[Running] = []
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    self._begin(waiting.pop(0), running, deadline, jobs)
                self._read(running, deadline)
        finally:  # an interrupt too
            for each in running:
                each.process.kill()
                each.process.wait()

    def _begin(self, task: Task, running: list[Running], deadline: float, jobs: int) -> None:
        absent = [path.name for path in task.needs if not path.exists()]
        if absent:
            self._fail(task, self.missing(task), f"there is no {absent[0]}, see why above")
        elif time.monotonic() >= deadline:
            self._fail(task, self.missing(task), "not begun: the time was used up; run the same again")
        else:
            running.append(self._start(task, jobs))

    def _start(self, task: Task, jobs: int) -> Running:
        missing = self.missing(task)
        process = subprocess.Popen(
            [sys.executable, *task.arguments(missing)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace", env=child_environment(jobs),
        )  # fmt: skip
        self._say(f"{task.subject}: {', '.join(missing)}")
        started = Running(task, process, set(missing), time.monotonic())
        assert process.stdout is not None, "it was opened with a pipe"
        assert process.stderr is not None, "it was opened with a pipe"
        threading.Thread(target=self._forward, args=(started, process.stdout), daemon=True).start()
        started.log = threading.Thread(target=self._log, args=(started, process.stderr), daemon=True)
        started.log.start()
        return started

    def _forward(self, source: Running, lines: IO[str]) -> None:
        for line in lines:
            self._lines.put((source, line))
        self._lines.put((source, None))

    def _log(self, source: Running, lines: IO[str]) -> None:
        with open(self._logs / f"{source.task.subject.replace(':', '_')}.txt", "a", encoding="utf-8") as log:
            for line in lines:
                log.write(line)
                source.errors[:] = [line.strip()] if line.strip() else source.errors

    def _read(self, running: list[Running], deadline: float) -> None:
        """Take one line of one process, and end all of them after the deadline."""
        if time.monotonic() >= deadline:
            for each in running:
                each.process.kill()
        try:
            source, line = self._lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return
        if line is None:
            self._end(source, late=time.monotonic() >= deadline)
            running.remove(source)
        elif source.task.prints_value:
            source.last_line = line
        elif (row := _row(line)) is not None:
            source.missing.discard(row["figure"])
            self._write({"subject": source.task.subject, **row})

    def _end(self, source: Running, late: bool) -> None:
        code, task = source.process.wait(), source.task
        if source.log is not None:
            source.log.join(timeout=_POLL_SECONDS)  # a grandchild may hold the pipe
        seconds = round(time.monotonic() - source.started, 2)
        if task.prints_value and code in (0, EXIT_SOME_FAILED) and source.last_line.startswith("{"):
            value = json.loads(source.last_line)
            self._write({"subject": task.subject, "figure": task.figures[0], "seconds": seconds, "value": value})
        elif late and code != 0:
            self._fail(task, source.missing, f"ended after {seconds:.0f} s: the time was used up; run the same again")
        elif source.missing:
            why = source.errors[-1] if source.errors else "it gave no reason"
            self._fail(task, source.missing, f"its process ended with code {code}: {why}")

    def _fail(self, task: Task, figures: Iterable[str], reason: str) -> None:
        for name in sorted(figures, key=task.figures.index):
            self._write({"subject": task.subject, "figure": name, "failed": reason})

    def _write(self, row: Row) -> None:
        self._journal.write([row])
        self.rows.append(row)
        if "failed" in row:
            self._say(f"{row['subject']}: {row['figure']} failed: {row['failed']}")


def newest(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """(subject, figure) -> the last row of it."""
    return {(row["subject"], row["figure"]): row for row in rows}


def _row(line: str) -> Row | None:
    """The row of a line; None for what else a library prints on stdout."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "figure" in row else None
