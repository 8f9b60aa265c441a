"""Interrupts and other signals: what they do to a call of the library, and how the command line ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import run
from conftest import need_engine
from processes import HANG_SECONDS, MOMENTS, PROMPT, STEPS, environment, posix_only, python

import edge_prm
from edge_prm import exit_codes
from edge_prm.backends.guest import Guest
from edge_prm.errors import BackendError

# interrupts in the Python API


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_comes_out_of_score_and_the_model_stays_usable(demo: Path) -> None:
    rng = random.Random(4)
    text = [f"{index} + {index} = {2 * index}" for index in range(20)]
    with edge_prm.load(demo) as prm, prm.session(PROMPT) as session:
        expected = prm.score(PROMPT, STEPS).rewards
        pushed = [session.push(STEPS[0])]
        for _ in range(8):
            count = 0
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                interrupt_after(rng.uniform(0.01, 0.2))
                while True:
                    prm.score(f"{count} {PROMPT}", text)
                    count += 1
            assert prm.score(PROMPT, STEPS).rewards == pytest.approx(expected, abs=1e-3)
        pushed += [session.push(STEPS[1]), session.push(STEPS[2], last=True)]
        assert pushed == pytest.approx(expected, abs=2e-2)


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_stops_a_call_that_runs_in_the_engine() -> None:
    guest, began, stopped = Guest(), threading.Event(), threading.Event()

    def call() -> bool:
        began.set()
        assert threading.current_thread() is not threading.main_thread()
        return stopped.wait(HANG_SECONDS)

    def interrupt() -> None:
        began.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        guest.run(call, stopped.set)
    assert stopped.is_set()
    assert guest.run(lambda: 5, stopped.set) == 5
    guest.close()


def test_an_error_of_the_engine_goes_through_and_other_threads_call_it_themselves() -> None:
    guest = Guest()

    def fail() -> None:
        raise BackendError("failed")

    with pytest.raises(BackendError, match="failed"):
        guest.run(fail, lambda: None)
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.current_thread).result()
        assert pool.submit(guest.run, threading.current_thread, lambda: None).result() is thread
    guest.close()


# interrupts of the command line


@pytest.fixture(scope="session")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = [f"{index} + {index} = {2 * index}" for index in range(30)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = ({"problem": f"q{index}?", "steps": steps, "candidates": [steps, steps[:9]]} for index in range(5000))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMMANDS: dict[str, Callable[[Path, Path, Path], list[object]]] = {
    "score": lambda bundle, rows, out: ["score", bundle, rows, "--json"],
    "rank": lambda bundle, rows, out: ["rank", bundle, rows],
    "check": lambda bundle, rows, out: ["check", bundle],
    "info": lambda bundle, rows, out: ["info", bundle],
    "latency": lambda bundle, rows, out: ["bench", "latency", bundle],
    "suite": lambda bundle, rows, out: ["bench", bundle],
    "export": lambda bundle, rows, out: (
        ["export", "demo", "-o", out / "new"] + ["--gguf"] * (bundle / "model.gguf").exists()
    ),
    "demo": lambda bundle, rows, out: ["demo"],
    "reference": lambda bundle, rows, out: ["bench", "reference", "demo", rows, "-o", out / "reference.jsonl"],
}
"""Name -> arguments, from a bundle, rows and a folder for outputs."""


@posix_only
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_ends_a_command(demo: Path, long_rows: Path, tmp_path: Path, name: str) -> None:
    if name in ("demo", "reference") and (demo / "model.gguf").exists():
        pytest.skip("this command takes no bundle")
    if name == "reference":
        pytest.importorskip("torch", reason='this needs torch: pip install "edge-prm[reference]"')
    if name in ("latency", "suite"):
        pytest.importorskip("matplotlib", reason='this needs matplotlib: pip install "edge-prm[bench]"')
    moments = [random.Random(index).uniform(0, 0.3 if name == "info" else 1.2) for index in range(MOMENTS)]

    def one(index: int) -> tuple[int, str, bool]:
        out = tmp_path / str(index)
        (out / "tmp").mkdir(parents=True)
        return interrupted(COMMANDS[name](demo, long_rows, out), out, moments[index])

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, range(MOMENTS)))
    for code, said, done in outcomes:
        assert "Traceback" not in said
        assert (code, done) in [(0, True), (0, False), (130, False)], said  # 0: it was just done
        assert said.count("Interrupted") == (code == 130), said
        assert "Error" not in said
        assert "Aborted" not in said
    assert name in ("info", "check") or any(code == 130 for code, _, _ in outcomes)
    assert not [path for path in tmp_path.glob("*/tmp/edge-prm-*") if path.is_dir() and name == "demo"]


def interrupted(arguments: list[object], out: Path, seconds: float) -> tuple[int, str, bool]:
    """Exit code and stderr of a command that gets SIGINT some time after its start, and whether it was done before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_prm", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"TMPDIR": str(out / "tmp")},
        start_new_session=True,
    )
    try:
        wait_for_handler(process)
        time.sleep(seconds)
        done = process.poll() is not None
        if not done:
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=HANG_SECONDS)[1]
    finally:
        process.kill()
    return process.returncode, said, done


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Python's own start cannot be caught: wait for the thread that hears of signals."""
    tasks = Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + HANG_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if not tasks.exists():
            time.sleep(0.5)
            return
        if len(list(tasks.iterdir())) > 1:
            return
        time.sleep(0.005)


GRACE = """
import sys, time
from edge_prm import interrupts

def swallow():
    interrupts.begin()
    said = False
    while True:
        try:
            if not said: said = print("ready", flush=True) is None
            time.sleep(30)
        except BaseException: said = True

def hook():
    import threading
    start = threading.Timer.start
    def slow(timer):  # the timer of the hook fires before the hook is at its end
        start(timer)
        time.sleep(0.2)
    threading.Timer.start = slow
    callback()

def callback():
    import ctypes
    interrupts.begin()
    wait = lambda: [print("ready", flush=True), *(time.sleep(0.01) for _ in range(100))]
    call = ctypes.CFUNCTYPE(None)(wait)  # ctypes only prints what it raises
    try:
        while True: call()
    except BaseException:
        interrupts.leave()

interrupts.run(globals()[sys.argv[1]])
"""

EXTENSION_IMPORT = """
import importlib.machinery, signal, sys, time
from edge_prm import interrupts

class Spec(importlib.machinery.ModuleSpec):
    @property
    def origin(self):  # Python code that a module in C calls during its initialization
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
        return "nowhere"
    @origin.setter
    def origin(self, value): pass

def load():
    interrupts.begin()
    loader = importlib.machinery.ExtensionFileLoader("x", "nowhere")
    try:
        try: loader.create_module(Spec("x", loader))
        except ImportError: time.sleep(30)
    except KeyboardInterrupt: interrupts.leave()

interrupts.run(load)
"""


@posix_only
@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_an_extension_module_is_imported() -> None:
    done = python(EXTENSION_IMPORT)
    assert (done.returncode, set(done.stdout.split())) == (exit_codes.EXIT_INTERRUPTED, {"goes", "on"})
    assert done.stderr == "Interrupted\n"


def test_an_interrupt_while_llama_cpp_frees_frees_nothing_twice() -> None:
    need_engine("gguf")
    from edge_prm.backends.gguf.context import Handles

    class Llama:
        def __init__(self) -> None:
            self.freed: list[str] = []

        def __getattr__(self, name: str) -> Callable[[str], None]:
            def free(handle: str) -> None:
                self.freed.append(handle)
                raise KeyboardInterrupt

            return free

    llama = Llama()
    handles = Handles(llama, None, Guest())  # type: ignore[arg-type]
    handles.batch, handles.context, handles.model = "batch", "context", "model"  # type: ignore[assignment]
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            handles.free()
    handles.free()
    assert llama.freed == ["batch", "context", "model"]


@posix_only
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("where", ["swallow", "callback", "hook"])
def test_an_interrupt_that_gets_lost_ends_the_command_all_the_same(where: str) -> None:
    command = [sys.executable, "-c", GRACE, where]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=HANG_SECONDS)[1] == "Interrupted\n"
    assert process.returncode == 130


def test_an_interrupt_in_somebody_else_s_process_is_an_exit_code(
    demo: Path, rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge_prm.prm.load", interrupt)
    result = run("score", demo, rows({"problem": PROMPT, "steps": STEPS}))
    assert (result.exit_code, result.stderr) == (exit_codes.EXIT_INTERRUPTED, "Interrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGINT)


def test_importing_and_scoring_touches_no_signal_handler(demo: Path) -> None:
    code = (
        "import signal, sys, edge_prm\nbefore = signal.getsignal(signal.SIGINT)\n"
        "edge_prm.load(sys.argv[1]).score('q', ['a'])\nimport edge_prm.cli.main\n"
        "assert signal.getsignal(signal.SIGINT) is before\nassert signal.set_wakeup_fd(-1) == -1"
    )
    done = python(code, demo)
    assert done.returncode == 0, done.stderr


@posix_only
def test_a_reader_that_leaves_ends_the_command_quietly(demo: Path, long_rows: Path) -> None:
    command = [sys.executable, "-m", "edge_prm", "score", str(demo), str(long_rows), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["rewards"]
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(HANG_SECONDS) == exit_codes.EXIT_SOME_FAILED


@posix_only
def test_a_termination_signal_ends_the_command(demo: Path, long_rows: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_prm", "score", str(demo), str(long_rows)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_for_handler(process)
    process.terminate()
    assert process.communicate(timeout=HANG_SECONDS)[1] == ""
    assert process.returncode == -signal.SIGTERM


def test_exit_codes_are_documented() -> None:
    codes = {name: value for name, value in vars(exit_codes).items() if name.startswith("EXIT_")}
    assert sorted(codes.values()) == [0, 1, 2, 130]
    assert sorted(exit_codes.MEANINGS) == sorted(codes.values())
    text = run("--help").stdout
    assert all(f"\n  {code:<5}{meaning[:20]}" in text for code, meaning in exit_codes.MEANINGS.items())
