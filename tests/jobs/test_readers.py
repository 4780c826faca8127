"""Files of jobs: what each format and each dialect says, and what is wrong in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sdpy.errors import UsageError
from sdpy.jobs.dialects import DIALECTS, guess
from sdpy.jobs.job import Comment, Entry, Fault
from sdpy.jobs.readers import read_jobs

CAT = {"prompt": "a cat"}


def entries(path: Path, text: str | bytes, **options: Any) -> list[tuple[int, Any]]:
    """Lines of a file, and options, or what is wrong."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [shown(one) for one in read_jobs(str(path), **options)]


def shown(one: Entry | Fault | Comment) -> tuple[int, Any]:
    if isinstance(one, Entry):
        return one.place.line, one.options
    return one.place.line, str(one.error) if isinstance(one, Fault) else "#"


def test_json_lines(tmp_path: Path) -> None:
    text = '{"prompt": "a cat", "seed": [1, 2], "eta": null}\n\n"a dog"\n{"prompt": \n17\n'
    found = entries(tmp_path / "j.jsonl", text)
    assert found[:2] == [(1, {"prompt": "a cat", "seed": [1, 2]}), (3, {"prompt": "a dog"})]
    assert [line for line, _ in found[2:]] == [4, 5]
    assert "not JSON" in found[2][1] and "neither" in found[3][1]


def test_a_json_list_has_the_lines_of_its_elements(tmp_path: Path) -> None:
    found = entries(tmp_path / "j.json", '[\n  {"prompt": "a cat"},\n\n  "a dog"\n]\n')
    assert found == [(2, CAT), (4, {"prompt": "a dog"})]
    assert "to its end" in entries(tmp_path / "j.json", '["a cat",\n')[-1][1]
    assert "not JSON" in entries(tmp_path / "j.json", '["a cat", {]')[-1][1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path: Path, delimiter: str) -> None:
    rows = [["prompt", "n-steps", "seed"], ['"a ""cat"",\nasleep"', "20", '"[1, 2]"'], ["a dog"]]
    text = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows)
    assert entries(tmp_path / "j.csv", text) == [
        (2, {"prompt": 'a "cat",\nasleep', "n-steps": "20", "seed": [1, 2]}),
        (4, {"prompt": "a dog"}),
    ]


def test_csv_that_is_wrong(tmp_path: Path) -> None:
    ((line, reason),) = entries(tmp_path / "j.csv", "prompt,seed\na cat, asleep,1\n")
    assert line == 2 and "3 cells for 2 columns" in reason
    with pytest.raises(UsageError, match=r"j.csv:1: unknown option 'stpes': did you mean 'steps'"):
        entries(tmp_path / "j.csv", "prompt,stpes\na,1\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_toml(tmp_path: Path) -> None:
    text = 'steps = 5\n[[jobs]]\nprompt = "a cat"\n\n[[jobs]]\nprompt = "a dog"\nsteps = 7\n'
    assert entries(tmp_path / "j.toml", text) == [
        (2, {**CAT, "steps": 5}),
        (5, {"prompt": "a dog", "steps": 7}),
    ]
    with pytest.raises(UsageError, match="not TOML"):
        entries(tmp_path / "j.toml", "jobs = [")
    with pytest.raises(UsageError, match="no jobs"):
        entries(tmp_path / "j.toml", "steps = 5")


def test_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    assert entries(tmp_path / "j.yaml", "# mine\n- a dog\n- prompt: a cat\n  seed: [1]\n") == [
        (2, {"prompt": "a dog"}),
        (3, {**CAT, "seed": [1]}),
    ]
    text = "steps: 5\njobs:\n  - prompt: a cat\n"
    assert entries(tmp_path / "j.yml", text) == [(3, {**CAT, "steps": 5})]
    for wrong in ("a: b", "- [", "!!python/object:os.system {}"):
        with pytest.raises(UsageError, match=r"j\.yaml"):
            entries(tmp_path / "j.yaml", wrong)


def test_text_of_several_dialects(tmp_path: Path) -> None:
    text = "a cat\n\n# mine\n--prompt a cat --steps 5\na cat --s 5\na cat -s5\na cat --steps 5\n"
    more = {**CAT, "steps": "5"}
    found = entries(tmp_path / "j.txt", text)
    assert found == [(1, CAT), (3, "#"), (4, more), (5, more), (6, more), (7, more)]
    as_prompts = entries(tmp_path / "j.txt", text, dialect="plain")
    assert [options["prompt"] for _, options in as_prompts] == text.replace("\n\n", "\n").split(
        "\n"
    )[:-1]


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            list(read_jobs(str(path)))
    with pytest.raises(UsageError, match="not UTF-8"):
        entries(tmp_path / "j.txt", b"caf\xe9\n")
    assert entries(tmp_path / "j.txt", "café".encode("utf-16")) == [(1, {"prompt": "café"})]


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, expected in (("a cat\n", (1, CAT)), ('{"prompt": "a cat"}\n', (1, CAT))):
        path = tmp_path / "in"
        path.write_text(text)
        descriptor = os.open(path, os.O_RDONLY)
        kept = os.dup(0)
        os.dup2(descriptor, 0)
        try:
            (one,) = read_jobs("-")
        finally:
            os.dup2(kept, 0)
            os.close(kept)
            os.close(descriptor)
        assert shown(one) == expected
        assert one.place.source == "standard input"
    kept = os.dup(0)
    os.close(0)
    try:
        with pytest.raises(UsageError, match="standard input: cannot be read"):
            list(read_jobs("-"))
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize(
    ("line", "dialect"),
    [
        ("a cat", "plain"),
        ("a well-known cat - asleep, -5 degrees", "plain"),
        ("--prompt a cat", "a1111"),
        ("a cat --n ugly --am 0.5", "kohya"),
        ("a cat --negative-prompt ugly", "sdpy"),
        ("a cat -S42", "invokeai"),
        ('"a cat" -n 2', "invokeai"),
        ("a cat -I in.png -f0.7", "invokeai"),
    ],
)
def test_guess(line: str, dialect: str) -> None:
    assert guess(line) == dialect


@pytest.mark.parametrize(
    ("dialect", "line", "expected"),
    [
        (
            "a1111",
            '--prompt "a cat, asleep" --negative_prompt ugly, red --seed -1 --steps 20 '
            '--sampler_name "DPM++ 2M" --cfg_scale 7 --width 64 --height 72 --restore_faces false',
            {
                "prompt": "a cat, asleep",
                "negative_prompt": "ugly, red",
                "seed": "-1",
                "steps": "20",
                "scheduler": "DPM++ 2M",
                "guidance_scale": "7",
                "width": "64",
                "height": "72",
            },
        ),
        (
            "a1111",
            "--prompt a cat --n_iter 3 --batch_size 2 --outpath_samples there --subseed 5",
            {**CAT, "output_folder": "there", "batch_size": "2", "num_samples": 6},
        ),
        (
            "kohya",
            "a cat, 1girl --n ugly, bad --w 64 --h 72 --s 20 --d 1,2 --l 7.5 --t 0.5 --am 0.8,1 "
            "--f name",
            {
                "prompt": "a cat, 1girl",
                "negative_prompt": "ugly, bad",
                "width": "64",
                "height": "72",
                "steps": "20",
                "seed": "1,2",
                "guidance_scale": "7.5",
                "strength": "0.5",
                "lora_weights": "0.8,1",
                "output_name": "name",
            },
        ),
        (
            "invokeai",
            '"a cat" -n2 -s50 -S-1 -C7.5 -W 640 -H480 -A k_lms -I in put.png -f0.7',
            {
                **CAT,
                "num_samples": "2",
                "steps": "50",
                "seed": "-1",
                "guidance_scale": "7.5",
                "width": "640",
                "height": "480",
                "scheduler": "lms",
                "image": "in put.png",
                "strength": "0.7",
            },
        ),
        (
            "sdpy",
            'a cat --negative-prompt "ugly, red" --lora a:1 --lora b --plain-kernels --n_steps=5',
            {
                **CAT,
                "negative-prompt": "ugly, red",
                "lora": ["a:1", "b"],
                "plain-kernels": "true",
                "n_steps": "5",
            },
        ),
    ],
)
def test_dialects(dialect: str, line: str, expected: dict[str, object]) -> None:
    assert DIALECTS[dialect].read_line(line) == expected


@pytest.mark.parametrize(
    ("dialect", "line", "reason"),
    [
        ("a1111", "--prompt 'a cat", "quotes"),
        ("a1111", "--prompt a cat --stepz 5", "--stepz is no option of A1111"),
        ("a1111", "--prompt a --steps 5 6", "'6' stands where an option"),
        ("a1111", "--prompt a --tiling true", "--tiling true: sdpy has no such thing"),
        ("a1111", "--prompt a --subseed_strength 0.5", "--subseed_strength 0.5"),
        ("a1111", "--prompt a --styles photo", "--styles photo: sdpy has no styles"),
        ("a1111", "--prompt", "has no value"),
        ("kohya", "a cat --ar 16:9", "--ar is no option of kohya"),
        ("kohya", "a cat --s", "--s has no value"),
        ("invokeai", "a cat -M mask.png", "repaint what is black"),
        ("invokeai", "a cat -A k_new", "-A k_new"),
        ("invokeai", "a cat -G 0.5", "-G 0.5"),
        ("invokeai", "a cat -q 5", "-q is no option of InvokeAI"),
        ("sdpy", "a cat --stpes 5", "did you mean 'steps'"),
        ("sdpy", "a cat --steps", "--steps has no value"),
        ("sdpy", "a cat --steps 5 --steps 6", "twice"),
    ],
)
def test_what_a_dialect_cannot_do_is_named(dialect: str, line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        DIALECTS[dialect].read_line(line)
