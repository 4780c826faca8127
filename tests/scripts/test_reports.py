"""Tables in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.reports import write_between

DOCS = Path(__file__).parents[2] / "docs"


def test_tables_are_put_between_their_comments(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: demo -->\nold\n<!-- end: demo -->\nb\n")
    for text in ("| \\1 |", "new"):
        write_between(page, "demo", text)
        expected = f"a\n<!-- begin: demo -->\n\n{text}\n\n<!-- end: demo -->\nb\n"
        assert page.read_text() == expected


@pytest.mark.parametrize("count", [0, 2])
def test_a_place_that_is_not_there_once_is_refused(tmp_path: Path, count: int) -> None:
    page = tmp_path / "page.md"
    before = "<!-- begin: demo -->\n<!-- end: demo -->\n" * count
    page.write_text(before)
    with pytest.raises(ValueError, match="demo"):
        write_between(page, "demo", "x")
    assert page.read_text() == before


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("samplers.md", "samplers"),
        ("speed-and-memory.md", "approximations-demo"),
        ("speed-and-memory.md", "approximations-full-size"),
        ("speed-and-memory.md", "first-and-further"),
        ("speed-and-memory.md", "batches"),
        ("speed-and-memory.md", "memory-over-images"),
    ],
)
def test_the_documentation_has_a_place_for_each_table(tmp_path: Path, file: str, name: str) -> None:
    page = tmp_path / file
    page.write_bytes((DOCS / file).read_bytes())
    write_between(page, name, "a table")
    assert "a table" in page.read_text(encoding="utf-8")
