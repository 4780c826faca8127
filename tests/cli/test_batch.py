"""``sdpy batch`` with the tiny models: what it writes, skips, refuses and says."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Sdpy
from sdpy.images.files import read_record
from sdpy.jobs.shards import read_shard
from sdpy.runtime.session import Session

FAST = ("--steps", "2", "--batch-size", "2")


def write(name: str, *lines: Any) -> str:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text("\n".join(texts) + "\n")
    return name


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def images(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.png"))


def record(path: str | Path) -> dict[str, Any]:
    text = read_record(path)
    assert text is not None
    found: dict[str, Any] = json.loads(text)
    return found


def test_jobs_are_the_images_of_the_single_commands(sdpy: Sdpy, loaded: list[str]) -> None:
    Image.linear_gradient("L").convert("RGB").resize((40, 32)).save("in.png")
    mask = Image.new("L", (40, 32))
    mask.paste(255, (8, 8, 32, 32))
    mask.save("mask.png")
    jobs = write(
        "jobs.jsonl",
        {"prompt": "a cat", "seed": 7, "width": 48},
        {"prompt": "the house", "image": "in.png", "strength": 0.6},
        {"prompt": "the light", "image": "in.png", "mask": "mask.png", "model": "sd15"},
        {"prompt": "a cat", "seed": 8, "width": 48, "scheduler": "euler-a"},
    )
    result = sdpy("batch", jobs, *FAST, "--batch-size", 1, "-o", "out/{line}.png")
    assert (result.code, result.out) == (0, "out/1.png\nout/4.png\nout/2.png\nout/3.png\n")
    assert sorted(loaded) == ["pytorch_model.ot", "unet.ot", "vae.ot"]  # once
    single = ("--steps", 2, "--model", "sd15")
    sdpy("generate", "a cat", "--seed", 7, "--width", 48, *single, "-o", "1.png")
    sdpy("img2img", "in.png", "-p", "the house", "--strength", 0.6, *single, "-o", "2.png")
    sdpy("inpaint", "in.png", "mask.png", "-p", "the light", *single, "-o", "3.png")
    more = ("--scheduler", "euler-a")
    sdpy("generate", "a cat", "--seed", 8, "--width", 48, *more, *single, "-o", "4.png")
    for k in range(1, 5):
        assert np.array_equal(pixels(f"{k}.png"), pixels(f"out/{k}.png")), k
    said = record("out/4.png")
    assert said["options"]["scheduler"] == "euler-a"
    assert {k: said["job"][k] for k in ("source", "line", "index")} == {
        "source": "jobs.jsonl",
        "line": 4,
        "index": 4,
    }


def test_what_is_done_is_skipped(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat", "the house --seed 1-3")
    command = ("batch", "jobs.txt", *FAST)
    first = sdpy(*command)
    assert first.code == 0
    assert first.out.splitlines() == [f"out/{name}" for name in images()]
    assert images()[1:3] == ["00002_1_the-house.png", "00003_2_the-house.png"]
    before = {name: pixels(f"out/{name}") for name in images()}
    again = sdpy(*command)
    assert (again.code, again.out) == (0, "")
    assert "4 of them there already" in again.err

    # Images alone say what is done; one that is missing is made again as it was.
    Path("out/.sdpy-jobs.jsonl").unlink()
    Path("out", images()[2]).unlink()
    assert sdpy(*command).out == "out/00003_2_the-house.png\n"
    # A journal that was cut short is no obstacle.
    journal = Path("out/.sdpy-jobs.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])
    assert sdpy(*command).out == ""
    assert sdpy(*command).out == ""
    assert all(np.array_equal(before[name], pixels(f"out/{name}")) for name in before)

    # Lines may be added and moved.
    write("jobs.txt", "the light", "the house --seed 1-4", "a cat")
    assert sdpy(*command).out.split() == ["out/00001_32_the-light.png", "out/00005_4_the-house.png"]


def test_other_options_are_other_images(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat")
    command = ("batch", "jobs.txt", "-o", "out/{n}.png", "--batch-size", 2)
    for k, more in enumerate(
        [("--steps", 2), ("--steps", 3), ("--seed", 5), ("-n", "dark"), ("--scheduler", "euler")]
    ):
        assert sdpy(*command, *more).out == f"out/{k + 1}.png\n"
        assert sdpy(*command, *more).out == ""
    # How it is computed makes no other.
    assert sdpy(*command, "--steps", 2, "--threads", 1, "--plain-kernels").out == ""


def test_seeds_are_drawn_once(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat --num-samples 3")
    command = ("batch", "jobs.txt", *FAST, "--seed", "random")
    assert len(sdpy(*command).out.splitlines()) == 3
    seeds = {record(f"out/{name}")["options"]["seed"] for name in images()}
    assert len(seeds) == 3
    assert {int(name.split("_")[1]) for name in images()} == seeds
    assert sdpy(*command).out == ""
    Path("out/.sdpy-jobs.jsonl").unlink()
    assert sdpy(*command).out == ""


def test_failing_jobs_are_recorded_and_the_rest_goes_on(sdpy: Sdpy) -> None:
    Path("bad.png").write_bytes(b"no image")
    Image.linear_gradient("L").save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:300])  # its size can be read
    write(
        "jobs.jsonl",
        {"prompt": "a cat", "stpes": 3},
        {"prompt": "a cat", "image": "bad.png"},
        {"prompt": "a cat", "width": 33},
        {"prompt": "a cat", "scheduler": "fastest"},
        {"prompt": "a cat", "image": "cut.png"},
        {"prompt": "a cat"},
    )
    command = ("batch", "jobs.jsonl", *FAST)
    result = sdpy(*command)
    assert result.code == 9
    assert result.out == "out/00006_32_a-cat.png\n"
    assert result.err.splitlines()[-1].startswith("sdpy: 5 jobs failed; out/failed.jsonl")
    for line, reason in enumerate(
        ["did you mean 'steps'", "bad.png: not an image", "--width 33", "'fastest'"], start=1
    ):
        assert f"jobs.jsonl:{line}: " in result.err and reason in result.err
    failed = [json.loads(line) for line in Path("out/failed.jsonl").read_text().splitlines()]
    assert [(one["line"], one["code"]) for one in failed] == [
        (1, 2),
        (2, 4),
        (3, 2),
        (4, 2),
        (5, 4),
    ]

    # What failed while it was made is not made again, unless it is asked for.
    assert "1 of them failed in an earlier run" in sdpy(*command).err
    assert len(Path("out/failed.jsonl").read_text().splitlines()) == 5
    retried = sdpy(*command, "--retry-failed")
    assert (retried.code, "cut.png" in retried.err) == (9, True)
    write("jobs.jsonl", {"prompt": "a cat"})
    assert sdpy("batch", "jobs.jsonl", *FAST, "-o", "out/{seed}.png").code == 0
    assert not Path("out/failed.jsonl").exists()


def test_fail_fast(sdpy: Sdpy, loaded: list[str]) -> None:
    write("jobs.txt", "a cat", "a cat --width 33", "a cat --seed 5")
    result = sdpy("batch", "jobs.txt", *FAST, "--fail-fast")
    assert (result.code, result.out, loaded) == (9, "", [])


def test_names(sdpy: Sdpy) -> None:
    write("jobs.csv", "prompt,seed,_id", "a cat,1,x7", "the house,2,x8")
    names = ("-o", "there/{scheduler}/{_id}-{steps}-{width}-{model}.jpg")
    result = sdpy("batch", "jobs.csv", *FAST, *names)
    assert result.out.split() == ["there/ddim/x7-2-32-sd15.jpg", "there/ddim/x8-2-32-sd15.jpg"]
    assert sdpy("batch", "jobs.csv", *FAST, *names).out == ""
    assert record("there/ddim/x7-2-32-sd15.jpg")["job"]["_id"] == "x7"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "out/x.png"], "jobs.txt:1 and jobs.txt:2 would both write out/x.png"),
        (["-o", "out/{stpes}.png"], "unknown field {stpes}: did you mean {steps}"),
        (["-o", "out/{seed}.gif"], "unknown image format"),
        (["-o", "jobs.txt/{index}.png"], "jobs.txt cannot be made"),
        (["-o", "kept/{line}.png"], "kept/2.png is there already"),
        (["--grid", "stpes=1"], "did you mean 'steps'"),
        (["--shard", "5/4"], "no share 5 of 4"),
        (["--shard", "auto"], "no array job"),
        (["--format", "xml"], "unknown --format 'xml'"),
        (["--dialect", "mine"], "unknown --dialect 'mine'"),
        (["--progress", "loud"], "unknown --progress 'loud'"),
        (["--progress", "json", "--progress-fd", "77"], "--progress-fd 77"),
        (["--json"], "--json is for --dry-run"),
        (["--input", "none"], "none: cannot be read"),
        (["--masks", "."], "--masks is for"),
        (["none.txt"], "none.txt: cannot be read"),
        (["--seed", "many"], "--seed many"),
    ],
)
def test_refused_before_any_work(
    sdpy: Sdpy, loaded: list[str], options: list[str], reason: str
) -> None:
    write("jobs.txt", "a cat --seed 1", "the house --seed 2")
    Path("kept").mkdir()
    Image.new("RGB", (8, 8)).save("kept/2.png")
    result = sdpy("batch", "jobs.txt", *FAST, *options)
    assert result.code == 2, result.err
    (line,) = result.err.splitlines()
    assert reason in line
    assert loaded == []


def test_no_jobs(sdpy: Sdpy) -> None:
    assert "no jobs" in sdpy("batch").err
    assert sdpy("batch", "-p", "a cat", *FAST).out == "out/00001_32_a-cat.png\n"


def test_what_another_job_made_is_in_the_way(sdpy: Sdpy, loaded: list[str]) -> None:
    write("jobs.txt", "a cat")
    command = ("batch", "jobs.txt", "-o", "out/{index}.png", "--batch-size", 2)
    assert sdpy(*command, "--steps", 2).code == 0
    loaded.clear()
    result = sdpy(*command, "--steps", 3)
    assert (result.code, loaded) == (2, [])
    assert "out/1.png is there already" in result.err


def test_overwrite_replaces_what_others_made(sdpy: Sdpy) -> None:
    Path("out").mkdir()
    Image.new("RGB", (8, 8)).save("out/1.png")
    write("jobs.txt", "a cat")
    command = ("batch", "jobs.txt", *FAST, "-o", "out/{line}.png")
    assert sdpy(*command).code == 2
    assert sdpy(*command, "--overwrite").out == "out/1.png\n"
    assert pixels("out/1.png").shape == (32, 32, 3)
    assert sdpy(*command, "--overwrite").out == ""


def test_jobs_are_reordered_so_that_models_change_less_often(
    sdpy: Sdpy, loaded: list[str], tiny_data: Path
) -> None:
    other = str(tiny_data / "unet.ot")
    lines = [
        {"prompt": "a cat", "seed": k, "unet-weights": other if k % 2 else None} for k in range(4)
    ]
    jobs = write("jobs.jsonl", *lines)
    sdpy("batch", jobs, *FAST, "-o", "a/{seed}.png")
    assert loaded.count("unet.ot") == 2
    loaded.clear()
    result = sdpy("batch", jobs, *FAST, "-o", "b/{seed}.png", "--ordered")
    assert result.out.split() == [f"b/{k}.png" for k in range(4)]
    assert loaded.count("unet.ot") == 4
    for k in range(4):
        # Together with others, an image may differ by rounding.
        assert abs(pixels(f"a/{k}.png") - pixels(f"b/{k}.png")).max() <= 1


def test_repeated_prompts_are_encoded_once(sdpy: Sdpy, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_prompt = Session.cache_prompt
    encoded: list[Any] = []

    def noting(session: Session, key: Any, conditioning: Any) -> None:
        encoded.append(key)
        cache_prompt(session, key, conditioning)

    monkeypatch.setattr(Session, "cache_prompt", noting)
    write("jobs.txt", "a cat --seed 1-6", "the house")
    assert sdpy("batch", "jobs.txt", *FAST).code == 0
    assert len(encoded) == 2


def test_dry_run(sdpy: Sdpy, loaded: list[str]) -> None:
    long = "the house, " * 60
    write("jobs.txt", "a cat --seed 1-2", long, "a cat --seed random", "--prompt x --tiling true")
    result = sdpy("batch", "jobs.txt", *FAST, "--dry-run", "-o", "out/{line}_{seed}.png")
    assert result.code == 9
    rows = [line.split("\t") for line in result.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["out/1_1.png", "jobs.txt:1"],
        ["out/1_2.png", "jobs.txt:1"],
        ["out/2_32.png", "jobs.txt:2"],
        ["(known when it is made)", "jobs.txt:3"],
    ]
    assert "jobs.txt:2: the prompt takes" in result.err and "chunks of 75" in result.err
    assert "jobs.txt:4: --tiling true" in result.err
    assert "4 images to be made, 0 done already, 1 job that cannot work, about" in result.err
    assert loaded == [] and not Path("out").exists()

    as_json = json.loads(sdpy("batch", "jobs.txt", *FAST, "--dry-run", "--json").out)
    assert [one["done"] for one in as_json["images"]] == [False] * 4
    assert as_json["failures"][0]["line"] == 4
    assert as_json["memory"] > 0 and as_json["seconds"] > 0
    words = ["batch", "jobs.txt", *FAST, "--dry-run", "--json", "--memory", "low"]
    assert 0 < json.loads(sdpy(*words).out)["memory"] < as_json["memory"]


def test_a_dry_run_reads_images_whole(sdpy: Sdpy) -> None:
    Image.linear_gradient("L").save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:300])
    write("jobs.jsonl", {"prompt": "a cat", "image": "cut.png"})
    result = sdpy("batch", "jobs.jsonl", *FAST, "--dry-run")
    assert (result.code, "jobs.jsonl:1: cut.png: the image cannot be read" in result.err) == (
        9,
        True,
    )


def test_a_folder_of_images(sdpy: Sdpy) -> None:
    Path("in").mkdir()
    for name in ("a", "b"):
        Image.linear_gradient("L").convert("RGB").resize((40, 32)).save(f"in/{name}.png")
    Image.new("L", (40, 32), 255).save("in/b.mask.png")
    command = ("batch", "--input", "in", "-p", "a cat", *FAST, "-o", "out/{image}.png")
    assert sdpy(*command).out.split() == ["out/a.png", "out/b.png"]
    assert [record(f"out/{name}.png")["task"] for name in "ab"] == ["img2img", "inpaint"]
    assert sdpy(*command).out == ""
    # Another image of that name is another job.
    Image.new("RGB", (40, 32)).save("in/a.png")
    assert sdpy(*command, "--overwrite").out.split() == ["out/a.png"]


def test_grid_and_wildcards_are_in_the_metadata(sdpy: Sdpy) -> None:
    pytest.importorskip("dynamicprompts")
    Path("times.txt").write_text("dark\nlight\n")
    write("jobs.txt", "the house at __times__")
    result = sdpy(
        *("batch", "jobs.txt", *FAST, "--wildcards", ".", "--wildcard-mode", "all"),
        *("--grid", "prompt: house|cat", "--grid", "scheduler=ddim,euler"),
    )
    assert len(result.out.split()) == 8
    said = [record(path)["job"] for path in result.out.split()]
    assert {one["template"] for one in said} == {"the house at __times__", "the cat at __times__"}
    assert {tuple(one["axes"].items()) for one in said} == {
        (("scheduler", scheduler), ("prompt: house", word))
        for scheduler in ("ddim", "euler")
        for word in ("house", "cat")
    }
    # With a seed that is drawn, it decides about the prompt, too.
    drawn = ("--wildcards", ".", "--seed", "random", "-o", "drawn/{slug}-{seed}.png")
    (path,) = sdpy("batch", "jobs.txt", *FAST, *drawn).out.split()
    assert record(path)["prompt"] in ("the house at dark", "the house at light")
    assert sdpy("batch", "jobs.txt", *FAST, *drawn).out == ""


def test_no_metadata(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat")
    command = ("batch", "jobs.txt", *FAST, "--no-metadata")
    assert sdpy(*command).out == "out/00001_32_a-cat.png\n"
    with Image.open("out/00001_32_a-cat.png") as image:
        assert image.info == {}
    assert sdpy(*command).out == ""


def test_shards_do_all_of_it_once(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat --seed 1-7", "a cat --stpes 5")
    outs = [sdpy("batch", "jobs.txt", *FAST, "--shard", f"{k}/3") for k in (1, 2, 3)]
    made = [path for one in outs for path in one.out.split()]
    assert len(made) == len(set(made)) == len(images()) == 7
    assert sorted(one.code for one in outs) == [0, 0, 9]
    before = {name: pixels(f"out/{name}") for name in images()}
    sdpy("batch", "jobs.txt", *FAST, "-o", "one/{index:05d}_{seed}_{slug}.png")
    assert all(np.array_equal(before[name], pixels(f"one/{name}")) for name in before)


@pytest.mark.parametrize(
    ("variables", "text", "shown"),
    [
        ({}, "2/5", "2/5"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_MIN": "4",
                "SLURM_ARRAY_TASK_MAX": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            "auto",
            "2/4",
        ),
        (
            {
                "SGE_TASK_ID": "3",
                "SGE_TASK_FIRST": "1",
                "SGE_TASK_LAST": "9",
                "SGE_TASK_STEPSIZE": "1",
            },
            "auto",
            "3/9",
        ),
        ({"PBS_ARRAY_INDEX": "3"}, "auto/16", "3/16"),
        ({"SGE_TASK_ID": "undefined", "PBS_ARRAYID": "3"}, "auto/16", "3/16"),
    ],
)
def test_array_jobs(variables: dict[str, str], text: str, shown: str) -> None:
    assert str(read_shard(text, variables)) == shown


def test_progress_as_json(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat --seed 1-3", "a cat --stpes 5")
    result = sdpy("batch", "jobs.txt", *FAST, "--progress", "json")
    *lines, last = result.err.splitlines()
    events = [json.loads(line) for line in lines]
    assert last.startswith("sdpy: 1 job failed")
    assert events[0] | {"time": 0} == {
        "event": "start",
        "time": 0,
        "images": 4,
        "done": 0,
        "given_up": 0,
    }
    assert [one["path"] for one in events if one["event"] == "image"] == result.out.split()
    assert [one["line"] for one in events if one["event"] == "failure"] == [2]
    assert {one["step"] for one in events if one["event"] == "step"} == {0, 1, 2}
    assert events[-1]["event"] == "end" and events[-1]["images"] == 3


def test_quiet(sdpy: Sdpy) -> None:
    write("jobs.txt", "a cat")
    result = sdpy("batch", "jobs.txt", *FAST, "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


class CtrlCWhileWriting(io.RawIOBase):
    """Standard error of a process that is interrupted within its first write."""

    def __init__(self) -> None:
        self.text = ""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        is_first = not self.text
        self.text += bytes(data).decode()
        if is_first:
            os.kill(os.getpid(), signal.SIGINT)
        return len(data)


def test_ctrl_c_while_a_line_is_written_is_answered_after_it(
    sdpy: Sdpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python refuses to write to a stream from within a write to it."""
    write("jobs.txt", "a cat --seed 1-4")
    raw = CtrlCWhileWriting()
    stream = io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stream)
    assert sdpy("batch", "jobs.txt", *FAST).code == 130
    first, *others = raw.text.splitlines()
    assert first == "4 images"
    assert others == [
        "stopping after the images in hand; again to stop at once",
        "0 images made, 4 are left",
        "sdpy: interrupted",
    ]
