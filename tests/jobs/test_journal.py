"""Files of lines that several processes write to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from sdpy.jobs.journal import LineFile, fcntl


def lines(path: Path) -> list[dict[str, Any]]:
    return list(LineFile(path).new_lines())


def test_only_new_lines_are_read_and_none_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert lines(path) == []
    file = LineFile(path)
    file.append({"n": 1})
    file.append({"n": 2, "name": "ü\udcff"})
    assert [line["n"] for line in file.new_lines()] == [1, 2]
    with path.open("ab") as cut:
        cut.write(b'{"n": 3')
    assert list(file.new_lines()) == []
    LineFile(path).append({"n": 4})
    assert list(file.new_lines()) == [{"n": 4}]


@pytest.mark.parametrize("kept", [[], [1], [1, 2]])
def test_lines_are_left_out(tmp_path: Path, kept: list[int]) -> None:
    file = LineFile(tmp_path / "x.jsonl")
    file.rewrite(lambda line: False)
    assert list(tmp_path.iterdir()) == []
    for n in (1, 2):
        file.append({"n": n, "name": "ü\udcff"})
    file.rewrite(lambda line: line["n"] in kept)
    assert lines(file.path) == [{"n": n, "name": "ü\udcff"} for n in kept]
    assert file.path.exists() == bool(kept)


@pytest.mark.skipif(fcntl is None, reason="locks of POSIX")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_line_that_comes_while_others_are_left_out_stays(tmp_path: Path, keeps: bool) -> None:
    path = tmp_path / "x.jsonl"
    for n in (1, 2):
        LineFile(path).append({"n": n})
    another = threading.Thread(target=LineFile(path).append, args=({"n": 3},))

    def keep(line: dict[str, Any]) -> bool:
        if line["n"] == 1:
            another.start()
            another.join(0.2)  # it waits; without the lock it would be done by now
        return keeps and line["n"] == 2

    LineFile(path).rewrite(keep)
    another.join()
    assert lines(path) == ([{"n": 2}] if keeps else []) + [{"n": 3}]
