"""The examples in docs/python.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(examples) >= 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "media").symlink_to(ROOT / "media")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, example in enumerate(examples, start=1):
        exec(compile(example, f"docs/python.md, example {number}", "exec"), names)
    assert sorted(tmp_path.glob("*.png"))
