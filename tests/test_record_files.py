"""Files of rows: their types, what is damaged in them, and that they are read as they are asked for."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from read_rows import ANSWER, STEPS, Q, texts

from edge_prm.errors import InputError, MissingExtraError
from edge_prm.records import BadRow, Fields, Record, read_records

ROWS = [{"id": index, "problem": Q, "steps": STEPS} for index in "abc"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=2).encode()


def to_csv(delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "problem", "completion"])
    writer.writerows([row["id"], Q, ANSWER] for row in ROWS)
    return text.getvalue().encode()


@pytest.mark.parametrize(
    "data",
    [
        LINES, b"\xef\xbb\xbf" + LINES, LINES.replace(b"\n", b"\r\n"), LINES.replace(b"\n", b"\r"), b"\n \r\n" + LINES + b"\n\n",
        LINES.replace(b"\n", b"\n\xef\xbb\xbf"), LIST, b"\xef\xbb\xbf\n " + LIST, json.dumps(ROWS).encode(), gzip.compress(LINES),
        gzip.compress(LIST), b"".join(gzip.compress(line + b"\n") for line in LINES.splitlines()), to_csv(), to_csv("\t"), to_csv(";"),
        b"\xef\xbb\xbf" + to_csv(), gzip.compress(to_csv()), "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
        b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS[:1]) + b"\n" + LINES[LINES.index(b"\n") + 1 :],
    ],
)  # fmt: skip
def test_every_kind_of_file_is_read(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(data)
    for source in (tmp_path / "rows", str(tmp_path / "rows"), io.BytesIO(data)):
        found = list(read_records(source))
        assert [one.id for one in found if isinstance(one, Record)] == ["a", "b", "c"], found
        assert all(texts(one.candidates[0]) == STEPS for one in found if isinstance(one, Record))


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason='this needs pyarrow: pip install "edge-prm[data]"')
    import pyarrow.parquet as parquet

    rows = [*ROWS, {"id": "d", "problem": Q, "steps": None, "completion": ANSWER}]
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(
        [("id", pyarrow.string()), ("problem", pyarrow.string()), ("steps", pyarrow.list_(pyarrow.string())), ("completion", pyarrow.string())]
    )), tmp_path / "rows.parquet")  # fmt: skip
    data = (tmp_path / "rows.parquet").read_bytes()
    for source in (tmp_path / "rows.parquet", io.BytesIO(data)):
        found = list(read_records(source))
        assert [one.id for one in found] == ["a", "b", "c", "d"]
        assert all(texts(one.candidates[0]) == STEPS for one in found if isinstance(one, Record))
    with pytest.raises(InputError, match="looks like Parquet and cannot be read"):
        read_records(io.BytesIO(data[:-20] + b"PAR1"))


def test_parquet_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"edge-prm\[data\]"):
        read_records(io.BytesIO(b"PAR1...PAR1"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LINES.decode().encode("utf-16"), "UTF-16"), (LINES.decode().encode("utf-16-le"), "UTF-16"),
        (LINES.decode().encode("utf-32"), "UTF-16"), (b"PK\x03\x04" + bytes(40), "zip"), (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd"),
        (b"\xfd7zXZ\x00" + bytes(40), "xz"), (b"BZh9" + bytes(40), "bzip2"), (b"ARROW1\0\0", "Arrow"), (b"", "holds no rows"),
        (b"\xef\xbb\xbf \n", "holds no rows"), (gzip.compress(b" \n"), "holds no rows"), (b"\x1f\x8b\x08broken", "damaged gzip"),
        (b"[]", "holds no rows"), (b"GGUF" + bytes(40), "GGUF"), (b"\x80\x04\x95abc", "pickle"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        list(read_records(io.BytesIO(data), name="rows.dat"))
    assert str(caught.value).startswith("rows.dat ")


@pytest.mark.parametrize("where", ["nowhere.jsonl", "."])
def test_a_file_that_cannot_be_opened_is_named(where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_records(tmp_path / where)


@pytest.mark.parametrize(
    ("data", "good", "said"),
    [
        (LINES + b'{"problem": \n' + LINES, 6, "line 4: not valid JSON"),
        (b"{\n" + LINES, 3, "line 1: not valid JSON"),
        (LINES + b'{"problem": "\xff"}\n' + LINES, 6, "line 4: not UTF-8 text (byte 13)"),
        (LINES + b"[1, 2]\nnull\n", 3, "line 4: holds list"),
        (b"[1]\n" + LINES, 3, "line 1: holds list"),
        (LINES + b"[" * 100_000, 3, "line 4: not valid JSON"),
        (LIST[:-40], 2, "row 3: not valid JSON"),
        (LIST[:-2], 3, "after row 3: the list has no end"),
        (LIST + b" more", 3, "after row 3: text follows the list"),
        (b'[{"problem": "Q", "steps": ["a"]}, 3, {"problem": "Q", "steps": ["\xff"]}, {"problem": "Q", "steps": ["a"]}]', 2, "row 2: holds int"),
        (gzip.compress(LINES * 5000)[:-500], None, "the file cannot be read on"),
        (to_csv() + b"d,too few\n" + to_csv().split(b"\n", 1)[1], 6, "cells, and the header has 3 columns"),
        (to_csv() + b'd,"no end,a\n', 3, "not valid CSV"),
        (to_csv() + b"d,\xff,a\n", 3, "not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_bad_part_of_a_file_costs_only_itself(data: bytes, good: int | None, said: str) -> None:
    found = list(read_records(io.BytesIO(data)))
    bad = [f"{one.place}: {one.reason}" for one in found if isinstance(one, BadRow)]
    assert any(said in reason for reason in bad), bad
    if good is not None:
        assert sum(isinstance(one, Record) for one in found) == good


def test_a_csv_file_of_named_columns_is_read() -> None:
    data = f'q,a\n"{Q}","{ANSWER}"\n'.encode()
    (found,) = read_records(io.BytesIO(data), Fields(prompt="q", completion="a"))
    assert isinstance(found, Record)
    assert texts(found.candidates[0]) == STEPS


def test_cells_of_a_csv_file_hold_lists_numbers_and_nothing() -> None:
    text = (
        "problem,steps,label,final_answer_correct,completion\n"
        + '"Q","[""a"", ""b""]",1,False,\n"Q",,,,"a\n\nb"\n"Q","[a]",,,\n'
    )
    first, second, third = read_records(io.BytesIO(text.encode()))
    assert isinstance(first, Record)
    assert (first.format, first.candidates[0].correct) == ("ProcessBench", False)
    assert first.candidates[0].labels.right == (True, False)
    assert isinstance(second, Record)
    assert texts(second.candidates[0]) == ["a", "b"]
    assert isinstance(third, BadRow)
    assert "not valid JSON" in third.reason


class Endless(io.RawIOBase):
    """One line again and again, for ever; counts what was read of it."""

    def __init__(self, start: bytes, line: bytes) -> None:
        self.start, self.line, self.count = start, line, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        at = self.count - len(self.start)
        left = self.start[self.count :] if at < 0 else self.line[at % len(self.line) :]
        size = min(len(buffer), len(left))
        buffer[:size] = left[:size]
        self.count += size
        return size


@pytest.mark.parametrize(("start", "end"), [(b"", b"\n"), (b"[", b",\n"), (b"id,problem,completion\n", b"")])
def test_rows_are_read_as_they_are_asked_for(start: bytes, end: bytes) -> None:
    line = b"a,Q,b\n" if start.startswith(b"id") else json.dumps(ROWS[0]).encode() + end
    source = Endless(start, line)
    records = read_records(io.BufferedReader(source, 1 << 10))
    for _ in range(3):
        assert isinstance(next(records), Record)
    assert source.count < 3 << 20
