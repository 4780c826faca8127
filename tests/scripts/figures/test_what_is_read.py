"""The tables of what is read are true."""

import re

import pytest

from scripts.figures.what_is_read import (
    COMPONENTS,
    DIALECTS,
    DOCS,
    FORMATS,
    OTHERS,
    answer_to,
    is_read,
    table_of_others,
)


def table(name: str) -> list[list[str]]:
    text = DOCS.read_text(encoding="utf-8")
    found = re.search(f"<!-- begin: {name} -->(.*?)<!-- end: {name} -->", text, re.DOTALL)
    assert found is not None
    rows = [line.strip("|").split("|") for line in found[1].strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_page_has_all_rows_and_columns() -> None:
    rows = table("what is read")
    assert rows[0][1:] == list(DIALECTS)
    assert [row[0] for row in rows[2:]] == list(COMPONENTS)


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_in_all_names(component: str) -> None:
    """In one format each; all formats are tried below, and by the script."""
    row = next(row for row in table("what is read") if row[0] == component)
    formats = list(FORMATS.values())
    for number, dialect in enumerate(DIALECTS.values()):
        read = is_read(*COMPONENTS[component], dialect, formats[number % len(formats)])
        assert row[1 + number] == {True: "yes", None: "–"}.get(read, "no")


@pytest.mark.parametrize("name", FORMATS)
def test_each_format(name: str) -> None:
    dialect = next(iter(DIALECTS.values()))
    assert is_read(*COMPONENTS["text encoder"], dialect, FORMATS[name])


def test_what_is_not_read() -> None:
    assert ["| " + " | ".join(row) + " |" for row in table("what is not read")[2:]] == (
        table_of_others().splitlines()[2:]
    )
    assert all(answer_to(data) != "is read" for data in OTHERS.values())
