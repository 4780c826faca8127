"""From entries to jobs: options by their names, lists, ranges, grids, folders, wildcards."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from sdpy.checkpoints import Lora
from sdpy.errors import UsageError
from sdpy.jobs.expand import Expansion, read_axis
from sdpy.jobs.folders import InputImage, input_images
from sdpy.jobs.job import Entry, Fault, Job, Place
from sdpy.jobs.options import GROUPS, JobGenerationOptions, OptionGroups, TaskOptions, find_option
from sdpy.jobs.wildcards import Wildcards

PLACE = Place("jobs.jsonl", 3)


def expand(options: dict[str, Any], **settings: Any) -> list[Job | Fault]:
    return list(Expansion(**settings).jobs([Entry(PLACE, options)]))  # type: ignore[arg-type]


def jobs(options: dict[str, Any], **settings: Any) -> list[dict[str, Any]]:
    found = expand({"prompt": "a cat", **options}, **settings)
    assert all(isinstance(one, Job) for one in found), [str(one) for one in found]
    assert [one.index for one in found] == list(range(1, 1 + len(found)))
    return [{k: v for k, v in one.options.items() if k != "prompt"} for one in found]  # type: ignore[union-attr]


def reason(options: dict[str, Any], **settings: Any) -> str:
    (found,) = expand({"prompt": "a cat", **options}, **settings)
    assert isinstance(found, Fault)
    return str(found)


def test_the_commands_take_no_options_that_jobs_do_not() -> None:
    from sdpy.cli.generate import generate
    from sdpy.cli.img2img import img2img
    from sdpy.cli.inpaint import inpaint
    from sdpy.cli.options import OutputOptions

    for command in (generate, img2img, inpaint):
        hints = get_type_hints(command, include_extras=True)
        groups = {one for one in hints.values() if inspect.isclass(one) and one is not type(None)}
        for group in groups - {OutputOptions}:
            assert any(issubclass(one, group) for one in GROUPS), group
        assert {"prompt", "options"} <= set(hints)
        for name in [name for name, hint in hints.items() if hint not in groups]:
            assert name == "return" or find_option(name).group is TaskOptions


@pytest.mark.parametrize(
    ("name", "raw", "field", "value"),
    [
        ("n-steps", "5", "steps", 5),
        ("--n_steps", 5.0, "steps", 5),
        ("seed", 2**63 - 1, "seed", 2**63 - 1),
        ("seed", -1, "seed", "random"),
        ("seed", "random", "seed", "random"),
        ("guidance-scale", "7.5", "guidance_scale", 7.5),
        ("plain_kernels", True, "fast_kernels", False),
        ("plain-kernels", "no", "fast_kernels", True),
        ("lora", "a.safetensors:0.5", "lora", ("a.safetensors:0.5",)),
        ("lora", ["a", "b"], "lora", ("a", "b")),
        ("control_scale", [0.5, "1"], "control_scale", (0.5, 1.0)),
        ("guidance_interval", [0.2, 0.8], "guidance_interval", "0.2,0.8"),
        ("clip-weights", "clip.ot", "text_encoder_weights", "clip.ot"),
        ("batch_size", 4, "batch_size", "4"),
        ("file", "in.png", "image", "in.png"),
    ],
)
def test_names_and_values(name: str, raw: Any, field: str, value: Any) -> None:
    assert jobs({name: raw}) == [{field: value}]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"steps": "many"}, "steps 'many': give a whole number"),
        ({"steps": 2.5}, "steps 2.5: give a whole number"),
        ({"steps": True}, "steps True"),
        ({"eta": "nan"}, "eta 'nan': give a number"),
        ({"scheduler": {"a": 1}}, "scheduler"),
        ({"offload": "maybe"}, "give true or false"),
        ({"stpes": 5}, "unknown option 'stpes': did you mean 'steps'"),
        ({"quiet": True}, "unknown option 'quiet'"),
        ({"cfg_scale": 3}, "unknown option 'cfg_scale': use 'guidance-scale'"),
        ({"--step-animation": True}, "'--step-animation' is no option of jobs: make this image"),
        ({"steps": 5, "n-steps": 6}, "given twice"),
        ({"seed": []}, "empty list"),
        ({"seed": "8-1"}, "the range 8-1"),
        ({"num_samples": 0}, "num-samples 0"),
    ],
)
def test_what_is_no_value(options: dict[str, Any], expected: str) -> None:
    assert reason(options).startswith("jobs.jsonl:3: ")
    assert expected in reason(options)


def test_no_prompt() -> None:
    (found,) = expand({"seed": 1})
    assert "has no prompt" in str(found)
    task = TaskOptions(prompt="a dog")
    assert isinstance(expand({"seed": 1}, defaults=OptionGroups(task=task))[0], Job)


def test_lists_multiply_out_the_last_fastest() -> None:
    found = expand({"prompt": "a cat", "seed": [1, 2], "scheduler": ["ddim", "euler"], "eta": [0]})
    assert [(one.options["seed"], one.options["scheduler"]) for one in found] == [
        (1, "ddim"),
        (1, "euler"),
        (2, "ddim"),
        (2, "euler"),
    ]
    assert found[3].axes == {"seed": 2, "scheduler": "euler"}


@pytest.mark.parametrize(
    ("raw", "seeds"),
    [
        ("1-4", [1, 2, 3, 4]),
        ("0-10:5", [0, 5, 10]),
        ("7, 1-2,random", [7, 1, 2, "random"]),
        (["1-2", 9], [1, 2, 9]),
        ("-1", ["random"]),
        (0, [0]),
    ],
)
def test_ranges(raw: Any, seeds: list[Any]) -> None:
    assert [one["seed"] for one in jobs({"seed": raw})] == seeds


def test_several_values_are_one_choice_and_lists_of_them_are_choices() -> None:
    assert jobs({"lora": [["a"], ["a", "b"], []]}) == [
        {"lora": ("a",)},
        {"lora": ("a", "b")},
        {"lora": ()},
    ]
    assert jobs({"lora": []}) == [{"lora": ()}]
    assert len(jobs({"guidance_interval": [[0, 1], [0.2, 0.8]]})) == 2


def test_samples_have_seeds_of_their_own() -> None:
    assert jobs({"num_samples": 3, "seed": 7}) == [{"seed": 7}, {"seed": 8}, {"seed": 9}]
    assert jobs({"num_samples": 2, "seed": "random"}) == [{"seed": "random"}] * 2
    defaults = OptionGroups(generation=JobGenerationOptions(num_samples=2, seed=5))
    assert jobs({}, defaults=defaults) == [{"seed": 5}, {"seed": 6}]


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (["seed=1,2"], [{"seed": 1}, {"seed": 2}]),
        (["seed=1-2", "eta=0,1"], [{"seed": s, "eta": e} for s in (1, 2) for e in (0.0, 1.0)]),
        (["lora=a:1|b"], [{"lora": ("a:1",)}, {"lora": ("b",)}]),
        (["guidance-interval=0,1|0.2,0.8"], [{"guidance_interval": t} for t in ("0,1", "0.2,0.8")]),
    ],
)
def test_grid(grid: list[str], expected: list[dict[str, Any]]) -> None:
    assert jobs({}, axes=tuple(map(read_axis, grid))) == expected


def test_grid_replaces_words() -> None:
    axes = (read_axis("prompt: night|noon|dawn"), read_axis("seed=1,2"))
    found = expand({"prompt": "a cat at night"}, axes=axes)
    assert [(one.options["seed"], one.options["prompt"]) for one in found] == [
        (seed, f"a cat at {time}") for seed in (1, 2) for time in ("night", "noon", "dawn")
    ]
    assert found[1].axes == {"seed": 1, "prompt: night": "noon"}
    assert "does not have 'night'" in reason({}, axes=axes[:1])


@pytest.mark.parametrize(
    "grid", ["seed", "stpes=1", "seed=a", "seed: 1|2", "prompt: night", "=1", "seed="]
)
def test_grids_that_are_none(grid: str) -> None:
    with pytest.raises(UsageError, match="--grid"):
        read_axis(grid)


def test_grid_and_job_do_not_both_say_it() -> None:
    assert "leave one out" in reason({"seed": 5}, axes=(read_axis("seed=1,2"),))


def test_a_fault_ends_its_line_alone() -> None:
    lines = [Entry(Place("f", k), {"prompt": "x", "seed": seed}) for k, seed in enumerate("1a2")]
    found = list(Expansion().jobs(lines))
    assert [type(one) for one in found] == [Job, Fault, Job]
    assert [one.index for one in found] == [1, 2, 3]  # type: ignore[union-attr]


def test_own_names_are_kept() -> None:
    (job,) = expand({"prompt": "a cat", "_id": [1, 2]})
    assert isinstance(job, Job)
    assert job.own == {"_id": [1, 2]}


def test_groups() -> None:
    (job,) = expand(
        {
            "prompt": "a cat",
            "steps": 5,
            "lora": ["a.safetensors:0.5"],
            "vae-weights": "v.ot",
            "controlnet": ["c.ot"],
            "control-image": "e.png",
            "image": "in.png",
            "cpu": "vae",
        }
    )
    assert isinstance(job, Job)
    groups = OptionGroups().with_options(job.options)
    assert groups.task == TaskOptions(prompt="a cat", image=Path("in.png"))
    assert groups.generation.lora == (Lora(Path("a.safetensors"), 0.5),)
    assert groups.generation.steps == 5
    assert groups.control.controlnet == [Path("c.ot")]
    assert groups.model.weights == {"vae": Path("v.ot")}
    assert groups.model.cpu == ("vae",)


def test_folders(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "a.mask.png", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    a, b = str(tmp_path / "a.png"), str(tmp_path / "b.jpg")
    images = input_images(tmp_path)
    assert images == (InputImage(a, str(tmp_path / "a.mask.png")), InputImage(b))
    found = jobs({"seed": [1, 2]}, images=images)
    assert [(one["seed"], one["image"]) for one in found] == [(1, a), (1, b), (2, a), (2, b)]
    assert [("mask" in one) for one in found] == [True, False, True, False]
    assert "--input does" in reason({"image": "x.png"}, images=images)


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no images"):
        input_images(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        input_images(tmp_path / "none")
    (tmp_path / "a.png").touch()
    masks = tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(UsageError, match=r"a\.png: .* has no mask"):
        input_images(tmp_path, masks)
    (masks / "a.jpg").touch()
    assert input_images(tmp_path, masks)[0].mask == str(masks / "a.jpg")
    (masks / "a.png").touch()
    with pytest.raises(UsageError, match="both masks"):
        input_images(tmp_path, masks)
    (tmp_path / "b_mask.png").touch()
    with pytest.raises(UsageError, match="no image of that name"):
        input_images(tmp_path)


@pytest.fixture
def wildcards(tmp_path: Path) -> Path:
    pytest.importorskip("dynamicprompts")
    (tmp_path / "times.txt").write_text("night\n# not this\nnoon\ndawn\n")
    return tmp_path


def test_wildcards_at_random_from_the_seed(wildcards: Path) -> None:
    options = {"prompt": "a {cat|dog} at __times__", "num_samples": 30, "seed": 1}
    settings = {"wildcards": Wildcards(wildcards)}
    found = expand(options, **settings)
    prompts = [one.options["prompt"] for one in found]
    assert prompts == [one.options["prompt"] for one in expand(options, **settings)]
    times = ("night", "noon", "dawn")
    known = {f"a {pet} at {time}" for pet in ("cat", "dog") for time in times}
    assert len(set(prompts)) > 3 and set(prompts) <= known
    assert {one.template for one in found} == {options["prompt"]}
    # Another time, the seed alone decides.
    assert (
        expand({**options, "num_samples": 1, "seed": 9}, **settings)[0].options["prompt"]
        == (prompts[8])
    )
    (later,) = expand({**options, "num_samples": 1, "seed": "random"}, **settings)
    assert later.options["prompt"] == options["prompt"]


def test_all_combinations(wildcards: Path) -> None:
    settings = {"wildcards": Wildcards(wildcards, "all")}
    found = expand({"prompt": "a {cat|dog} at __times__", "seed": 1}, **settings)
    assert len({one.options["prompt"] for one in found}) == len(found) == 6


def test_wildcards_that_are_wrong(wildcards: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        Wildcards(wildcards / "none").check()
    with pytest.raises(UsageError, match="unknown --wildcard-mode"):
        Wildcards(wildcards, "some").check()
    for mode in ("random", "all"):
        (found,) = expand({"prompt": "at __nights__"}, wildcards=Wildcards(wildcards, mode))
        assert "there is no wildcard __nights__" in str(found)
        (found,) = expand({"prompt": "at {a|"}, wildcards=Wildcards(wildcards, mode))
        assert "cannot be read" in str(found)
    assert jobs({"prompt": "a {b} __c__"}) == [{}]
