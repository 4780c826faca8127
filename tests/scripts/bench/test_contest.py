"""The benchmark, at tiny sizes: that it measures, compares and tells, not how long it takes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.bench import contest, run
from scripts.bench.contest import BenchError, Contest
from scripts.bench.goals import GOALS, goals_for
from scripts.bench.jobs import Job, now
from scripts.bench.models import sizes
from scripts.bench.outcomes import (
    COMPILED,
    DIFFUSERS,
    DIFFUSERS_REDUCED,
    FIRST,
    LOW,
    PASSIVE,
    PLAIN,
    SDPY,
    SDPY_COMPILED,
    SDPY_GRAPHS,
    SECOND,
    SPINNING,
    Outcome,
    PhaseResult,
)
from scripts.bench.phases import PHASES
from scripts.bench.report import summary
from scripts.bench.with_sdpy import sdpy_arguments
from scripts.bench.workers import TASKS
from sdpy.benchmark.figures import TITLES, Spread
from sdpy.cli import app as cli

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("bench") / "tiny")


@pytest.fixture(scope="module")
def weights_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("bench") / "tiny-xl")


def prepared(folder: Path) -> Path:
    result = TASKS["prepare"](job("prepare", folder))
    assert set(result["flops"]) == set(TITLES)
    return folder


@pytest.fixture(autouse=True)
def quick_matrix_product(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A matrix product that costs nothing, in this process."""
    monkeypatch.setattr(
        "sdpy.benchmark.arithmetic.matrix_product_rate", lambda dtype, device, size: 7e9
    )
    yield


def job(task: str, folder: Path, **changes: object) -> Job:
    """A job of the size that the folder is called by."""
    plain = Job(
        task=task,
        size=folder.name,
        folder=str(folder),
        width=64,
        height=96,
        steps=2,
        result=str(folder.parent / "result.json"),
    )
    return replace(plain, **changes)


# -- the contestants -----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", TITLES)
@pytest.mark.parametrize("size", ["weights", "weights_xl"])
def test_both_programs_compute_the_same_in_every_phase(
    phase: str, size: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check_phase(phase, request.getfixturevalue(size), tmp_path)


def test_without_guidance_both_compute_a_batch_of_one(
    weights_xl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted = check_phase("unet", weights_xl, tmp_path, guidance_scale=1.0)
    assert len(predicted) == 1
    monkeypatch.setattr(
        "sdpy.benchmark.arithmetic.count_flops", lambda variant, size, unet_batch: unet_batch
    )
    counted = [
        TASKS["prepare"](job("prepare", weights_xl, guidance_scale=scale))["flops"]
        for scale in (1.0, 7.5)
    ]
    assert counted == [1, 2]


def check_phase(phase: str, weights: Path, tmp_path: Path, **changes: object) -> contest.Array:
    """Both programs do a phase; returns what sdpy computes, which is what diffusers does."""
    outputs = {}
    for program in (SDPY, DIFFUSERS):
        path = tmp_path / f"{program}.npy"
        formats = dict.fromkeys(("unet", "vae"), "channels_last")
        one = job(f"{program} phase", weights, phase=phase, evaluations=2, output=str(path))
        result = TASKS[one.task](replace(one, formats=formats, **changes))
        json.dumps(result)
        assert len(result["times"]) == 2
        assert min(result["load"], result["first"], *result["times"]) > 0
        assert result["rate"] == 7e9
        outputs[program] = contest.read_output(path.with_suffix(""))
    ours, theirs = outputs[SDPY], outputs[DIFFUSERS]
    assert ours is not None and theirs is not None
    assert ours.std() > 0
    assert contest.relative_error(ours, theirs) <= TOLERANCE
    return ours


def test_both_programs_generate_the_same_image_with_an_xl_model(
    weights_xl: Path, tmp_path: Path
) -> None:
    paths = {program: str(tmp_path / f"{program}.png") for program in (SDPY, DIFFUSERS)}
    one = job("diffusers generate", weights_xl, output=paths[DIFFUSERS])
    TASKS[one.task](one)
    assert cli.run(sdpy_arguments(one, paths[SDPY])) == 0
    ours, theirs = (contest.read_output(tmp_path / program) for program in paths)
    assert ours is not None and theirs is not None
    assert ours.std() > 0
    assert np.abs(ours - theirs).max() <= 1  # of 255


@pytest.mark.parametrize("images", [1, 3])
def test_both_programs_generate_the_same_images_with_models_loaded(
    weights: Path, tmp_path: Path, images: int
) -> None:
    outputs = {}
    for program in (SDPY, DIFFUSERS):
        path = tmp_path / f"{program}.npy"
        one = job(f"{program} images", weights, images=images, evaluations=2, output=str(path))
        result = TASKS[one.task](one)
        assert len(result["times"]) == 2
        outputs[program] = contest.read_output(path.with_suffix(""))
    ours, theirs = outputs[SDPY], outputs[DIFFUSERS]
    assert ours is not None and theirs is not None
    assert ours.shape == (images, 96, 64, 3) and ours.std() > 0
    assert np.abs(ours - theirs).max() <= 1  # of 255


@pytest.mark.parametrize("program", [SDPY, DIFFUSERS])
@pytest.mark.parametrize("size", ["weights", "weights_xl"])
def test_loading_ends_when_the_first_step_begins(
    program: str, size: str, request: pytest.FixtureRequest
) -> None:
    weights = request.getfixturevalue(size)
    one = job(f"{program} load", weights, started=now())
    (seconds,) = TASKS[one.task](one)["times"]
    assert 0 < seconds <= now() - one.started
    assert not list(weights.parent.glob("*.png"))
    # Others may call a UNet again.
    torch.nn.Module.__call__(type("UNet2DConditionModel", (torch.nn.Identity,), {})(), 1)


def test_a_run_without_a_step_is_an_error(weights: Path) -> None:
    with pytest.raises(RuntimeError, match="no step"):
        TASKS["sdpy load"](job("sdpy load", weights, options=["--no-such-option"]))


def test_memory_formats_are_timed_in_turn(weights: Path) -> None:
    seconds = TASKS["diffusers formats"](job("diffusers formats", weights))["seconds"]
    assert {model: set(times) for model, times in seconds.items()} == {
        "unet": {"contiguous", "channels_last"},
        "vae": {"contiguous", "channels_last"},
    }
    assert min(time for times in seconds.values() for time in times.values()) > 0


def test_sdpy_reads_ot_files_with_the_same_result(weights: Path, tmp_path: Path) -> None:
    target = weights / "ot"
    TASKS["prepare"](job("prepare", weights, sdpy_model=str(target)))
    outputs = []
    for model in (None, str(target)):
        path = tmp_path / f"{len(outputs)}.npy"
        one = job("sdpy phase", weights, phase="unet", sdpy_model=model, output=str(path))
        TASKS[one.task](one)
        outputs.append(np.load(path))
    assert np.array_equal(*outputs)


# -- the whole benchmark -------------------------------------------------------------------------


def test_the_benchmark_at_tiny_sizes(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes, in turn; two phases and two programs."""
    file = tmp_path / "bench.json"
    code = run.main(
        [
            *("--size", "tiny", "--steps", "2", "--repeats", "1", "--evaluations", "1"),
            *("--phases", "help,unet,generate", "--threads", "1", "--format", "contiguous"),
            *("--weights", str(weights), "--json", str(file)),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err

    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["threads"] == 1
    assert found["matrix_product"]["count"] == 2
    assert found["help_imports_torch"] is False
    assert set(found["phases"]) == {"help", "unet", "generate"}
    for name, phase in found["phases"].items():
        for contestant, one in phase["contestants"].items():
            assert one["seconds"]["median"] > 0
            if sys.platform == "linux" and name != "help":
                assert one["peak_bytes"]["median"] > 10e6
            assert (one["seconds_ratio"] is None) == (contestant == phase["ratio_to"])
            assert (one["share_of_matrix_product"] is None) == (name == "help")
    assert set(found["phases"]["help"]["contestants"]) == {SDPY, PLAIN}
    assert {SDPY, DIFFUSERS} <= set(found["phases"]["generate"]["contestants"])
    assert found["phases"]["unet"]["contestants"][SDPY]["relative_error"] <= TOLERANCE
    # Of 8-bit images: a few may be rounded to the other side.
    assert found["phases"]["generate"]["contestants"][SDPY]["relative_error"] <= 0.01

    lines = printed.out.splitlines()
    assert "1 threads, cpu, float32" in lines[0]
    assert "tiny, 64x64 pixels, 2 steps; matrix product" in lines[1]
    assert lines[2] == "diffusers' memory formats: unet contiguous, vae contiguous"
    (header,) = [line for line in lines if line.startswith("| phase")]
    for heading in ("median", "range", "ratio", "GFLOP/s", "peak memory", "relative error"):
        assert heading in header
    first_cells = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert [cell for cell in first_cells[1:] if cell] == ["--help", "UNet step", "generate"]
    verdicts = [line for line in lines if line.startswith(("met ", "NOT MET ", "not measured "))]
    assert len(verdicts) == len(GOALS)
    assert sum(line.startswith("not measured") for line in verdicts) >= 3
    assert "sdpy --help imports no torch" in lines
    turns = [line for line in printed.err.splitlines() if line.startswith("generate")]
    assert [line.split(":")[0] for line in turns][:2] == [
        "generate 1/1, sdpy",
        "generate 1/1, diffusers",
    ]


def test_one_step_with_a_tiny_decoder_and_a_busy_machine(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes; those that work beside are gone afterwards, and the tables are written."""
    file, page = tmp_path / "bench.json", tmp_path / "page.md"
    places = [f"<!-- begin: {name} -->\n<!-- end: {name} -->" for name in ("few-steps", "waiting")]
    page.write_text("\n".join(places), encoding="utf-8")
    code = run.main(
        [
            *("--size", "tiny", "--steps", "1", "--repeats", "1", "--evaluations", "1"),
            *("--phases", "one-step,one-step-cheapest,busy", "--format", "contiguous"),
            *("--weights", str(weights), "--json", str(file), "--write", str(page)),
        ]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    found = json.loads(file.read_text(encoding="utf-8"))["phases"]
    errors = {
        name: {one: facts["relative_error"] for one, facts in phase["contestants"].items()}
        for name, phase in found.items()
    }
    assert errors["one-step"][SDPY] <= 0.01  # of 8-bit images
    assert errors["one-step-cheapest"][SDPY] <= 0.1  # of bfloat16
    assert errors["busy"][SDPY] == errors["busy"][SPINNING] == 0
    assert found["busy"]["ratio_to"] == PASSIVE
    written = page.read_text(encoding="utf-8")
    few, waiting = written.split("<!-- begin: waiting -->")
    assert "| one step, bf16, tiny decoder |" in few and "diffusers" in few
    assert f"| {PASSIVE} |" in waiting and "GFLOP/s" not in written


def test_tables_of_models_are_written_by_their_dtype(weights: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    names = ("models-bfloat16", "models-float32")
    page.write_text("\n".join(f"<!-- begin: {n} -->\n<!-- end: {n} -->" for n in names))
    code = run.main(
        [
            *("--size", "tiny", "--repeats", "1", "--evaluations", "1", "--dtype", "bfloat16"),
            *("--phases", "decode", "--format", "contiguous", "--weights", str(weights)),
            *("--write", str(page)),
        ]
    )
    assert code == 0
    bfloat16, float32 = page.read_text(encoding="utf-8").split("<!-- begin: models-float32 -->")
    assert "| diffusers |" in bfloat16 and "tiny, 64x64, bfloat16; " in bfloat16
    assert "diffusers" not in float32


# -- its parts -----------------------------------------------------------------------------------


def test_repeats() -> None:
    assert set(run.repeats_of("2").values()) == {2}
    assert set(run.repeats_of("2")) == set(PHASES)
    found = run.repeats_of("2,load=5,generate=1")
    assert (found["load"], found["generate"], found["unet"]) == (5, 1, 2)
    assert run.repeats_of("load=5")["unet"] == 3
    for wrong in ("", "0", "x", "load", "load=0", "lunch=2", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            run.repeats_of(wrong)


def test_phases_keep_their_order() -> None:
    assert run.phases_of("generate,unet,help") == ["help", "unet", "generate"]
    with pytest.raises(argparse.ArgumentTypeError, match="no phase 'lunch'"):
        run.phases_of("unet,lunch")


def test_defaults_follow_the_size() -> None:
    assert (run.arguments([]).width, run.arguments([]).steps) == (512, 30)
    tiny = run.arguments(["--size", "tiny", "--width", "128"])
    assert (tiny.width, tiny.height) == (128, 64)


def test_guidance_scales() -> None:
    assert [run.guidance_scale(text) for text in ("1", "7.5")] == [1.0, 7.5]
    for wrong in ("0.5", "x", "nan", "inf", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="from 1 on"):
            run.guidance_scale(wrong)


@pytest.mark.parametrize(
    ("words", "compiled"),
    [
        (["--compile", "--device", "cuda"], [True, False]),
        (["--device", "cuda"], [False, False]),
        (["--compile"], [False, False]),
    ],
)
def test_sdpy_is_compiled_where_diffusers_is_if_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], compiled: list[bool]
) -> None:
    """But not where its weights come and go."""
    commands: list[Sequence[str]] = []

    def note(command: Sequence[str], environment: dict[str, str]) -> tuple[float, int | None]:
        commands.append(command)
        return 1.0, None

    monkeypatch.setattr(contest, "run_process", note)
    about = Contest(run.arguments(words), tmp_path, tmp_path)
    contestants = PHASES["generate"].contestants(about)
    for name in (SDPY, LOW):
        contestants[name](None)
    assert ["--compile" in command for command in commands] == compiled
    assert ["low" in command for command in commands] == [False, True]


@pytest.mark.parametrize(
    ("words", "ways"),
    [
        ([], {SDPY: "", DIFFUSERS: ""}),
        (["--device", "cuda"], {SDPY: "", SDPY_GRAPHS: "graphs", DIFFUSERS: ""}),
        (
            ["--device", "cuda", "--compile"],
            {
                SDPY: "",
                SDPY_GRAPHS: "graphs",
                DIFFUSERS: "",
                SDPY_COMPILED: "compiled",
                DIFFUSERS_REDUCED: "compiled",
            },
        ),
    ],
)
def test_who_takes_part_with_models_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], ways: dict[str, str]
) -> None:
    jobs: list[Job] = []

    def note(self: Contest, job: Job) -> tuple[dict[str, object], None]:
        jobs.append(job)
        return {"times": [1.0], "peak": 1, "load": 1.0, "first": 3.0, "rate": 1.0}, None

    monkeypatch.setattr(Contest, "work", note)
    about = Contest(run.arguments(words), tmp_path, tmp_path)
    contestants = PHASES["batch"].contestants(about)
    for one in contestants.values():
        one(None)
    assert {name: job.way for name, job in zip(contestants, jobs, strict=True)} == ways
    assert {(job.images, job.steps) for job in jobs} == {(8, 10)}

    jobs.clear()
    compiling = PHASES["compiling"].contestants(about)
    assert len(compiling) == (4 if "cuda" in words else 2)
    assert all(one(None).seconds == 2.0 for one in compiling.values())
    assert {job.way for job in jobs} == {"compiled"}
    folders = [job.code_folder for job in jobs]
    assert None not in folders and len(set(folders)) == len(jobs) // 2


def test_compiled_code_is_kept_for_the_second_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []

    def note(self: Contest, job: Job) -> tuple[dict[str, object], None]:
        folder = Path(str(job.code_folder))
        kept.append(folder.exists())
        folder.mkdir(exist_ok=True)
        return {"times": [1.0], "peak": 1, "load": 1.0, "first": 3.0, "rate": 1.0}, None

    monkeypatch.setattr(Contest, "work", note)
    about = Contest(run.arguments([]), tmp_path, tmp_path)
    for _ in range(2):
        for one in PHASES["compiling"].contestants(about).values():
            one(None)
    assert kept == [False, True, False, True]


def test_phases_for_gpus_are_left_out_on_a_cpu() -> None:
    assert set(PHASES) - set(run.arguments([]).phases) == {"loaded", "batch", "compiling"}
    assert run.arguments(["--device", "cuda"]).phases == list(PHASES)
    assert run.arguments(["--phases", "batch"]).phases == ["batch"]


@pytest.mark.parametrize(("factor", "met"), [(0.99, True), (1.01, False)])
def test_goals_of_gpus(factor: float, met: bool) -> None:
    def outcomes(**seconds: float) -> dict[str, list[Outcome]]:
        return {name: [Outcome([factor * one], None)] for name, one in seconds.items()}

    theirs = {name: [Outcome([1.0], None)] for name in (DIFFUSERS, DIFFUSERS_REDUCED)}
    phases = {
        "loaded": PhaseResult({**outcomes(**{SDPY: 0.7, SDPY_COMPILED: 0.8}), **theirs}),
        "batch": PhaseResult({**outcomes(**{SDPY: 0.6}), **theirs}),
        "compiling": PhaseResult(outcomes(**{f"{SDPY}, {FIRST}": 15.0, f"{SDPY}, {SECOND}": 5.0})),
    }
    goals = goals_for("cuda")
    assert [goal.verdict(phases)["met"] for goal in goals] == [met] * len(goals)
    assert all("goal at most" in goal.verdict(phases)["line"] for goal in goals)
    assert goals_for("cpu") == GOALS


def test_every_size_has_the_side_of_its_images() -> None:
    assert {name: variant.sample_size for name, variant in sizes().items()} == run.SIDES


def test_the_faster_format_of_each_model() -> None:
    seconds = {
        "unet": {"contiguous": 2.0, "channels_last": 1.0},
        "vae": {"contiguous": 3.0, "channels_last": 3.5},
    }
    assert contest.faster_formats(seconds) == {"unet": "channels_last", "vae": "contiguous"}


def test_relative_errors() -> None:
    theirs = np.array([3.0, 4.0])
    assert contest.relative_error(theirs, theirs) == 0
    assert contest.relative_error(theirs + [0.0, 0.5], theirs) == pytest.approx(0.1)
    assert contest.relative_error(np.array([np.nan, 4.0]), theirs) == float("inf")
    assert contest.relative_error(np.zeros(3), theirs) == float("inf")


def test_a_process_that_fails_is_told_with_its_last_line() -> None:
    command = [sys.executable, "-c", "import sys; print('first'); sys.exit('too bad')"]
    with pytest.raises(BenchError, match=r"failed \(1\): too bad"):
        contest.run_process(command, {})


def test_the_process_that_starts_the_others_imports_no_torch() -> None:
    code = "import sys, scripts.bench.run; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=contest.ROOT, check=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="others count in other units")
def test_the_peak_of_a_process_is_its_own() -> None:
    code = (
        "import sys; from scripts.bench import contest; "
        "code = 'x = bytearray(200_000_000); del x'; "
        "print(*(contest.run_process([sys.executable, '-c', c], {})[1] for c in ('x = 1', code)))"
    )
    # Started by a small process; this one is large.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=contest.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    small, large = map(int, done.stdout.split())
    assert 5e6 < small < 120e6
    assert 200e6 < large < 230e6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--compile"], "--compile needs a C++ compiler, and there is no no-such-compiler"),
        (["--json", "/nowhere/at/all.json"], "there is no such folder"),
        (["--phases", "busy", "--write", "README.md"], "there is no place for the table waiting"),
        (["--write", "/nowhere/at/all.md"], "No such file"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run.main([*words, "--weights", str(tmp_path / "weights")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "weights").exists()


# -- goals, on made-up figures -------------------------------------------------------------------


def phase(
    errors: dict[str, float] | None = None, **contestants: list[tuple[float, int]]
) -> PhaseResult:
    names = {"sdpy": SDPY, "diffusers": DIFFUSERS, "low": LOW, "plain": PLAIN, "comp": COMPILED}
    names["passive"] = PASSIVE
    outcomes = {
        names[name]: [Outcome([seconds], peak) for seconds, peak in measured]
        for name, measured in contestants.items()
    }
    return PhaseResult(outcomes, errors or {})


def verdicts(phases: dict[str, PhaseResult]) -> dict[str, bool | None]:
    return {goal.text: goal.verdict(phases)["met"] for goal in GOALS}


def test_without_measurements_no_goal_is_decided() -> None:
    assert set(verdicts({}).values()) == {None}
    only_ours = {name: phase(sdpy=[(1.0, 1)]) for name in PHASES}
    assert set(verdicts(only_ours).values()) == {None}


def measured(factor: float) -> dict[str, PhaseResult]:
    """All phases, each at ``factor`` times what its goal allows."""

    def seconds(limit: float) -> PhaseResult:
        pairs = [(2.0, 1), (3.0, 1)]
        return phase(sdpy=[(limit * factor * s, p) for s, p in pairs], diffusers=pairs)

    generate = phase(
        sdpy=[(6.0 * factor, 1)], diffusers=[(10.0, 1)], low=[(7.8 * factor**2, int(2e9 * factor))]
    )
    return {
        "help": phase(sdpy=[(1.5 * factor, 1)], plain=[(1.0, 1)]),
        "load": seconds(0.40),
        "unet": replace(
            phase(sdpy=[(0.6 * factor, 1)], diffusers=[(1.0, 1)], comp=[(0.6, 1)]),
            errors={SDPY: 1e-4 * factor},
        ),
        "decode": seconds(0.40),
        "memory": phase(sdpy=[(1.0, int(850_000 * factor))], diffusers=[(1.0, 1_000_000)]),
        "generate": generate,
        "one-step": seconds(0.45),
        "one-step-cheapest": seconds(0.35),
        "busy": phase(sdpy=[(1.1 * factor, 1)], passive=[(1.0, 1)]),
    }


def test_goals_are_met_just_below_their_limits_and_not_just_above() -> None:
    assert set(verdicts(measured(0.999)).values()) == {True}
    assert set(verdicts(measured(1.001)).values()) == {False}


def test_ratios_are_of_turns_that_followed_each_other() -> None:
    """The machine halved its speed in between: no ratio changes."""
    slowing = phase(sdpy=[(1.0, 1), (2.0, 1)], diffusers=[(2.0, 1), (4.0, 1)])
    assert slowing.ratio("seconds", SDPY, DIFFUSERS) == Spread(0.5, 0.5, 0.5, 2)


def test_a_goal_in_words() -> None:
    lines = [goal.verdict(measured(0.5))["line"] for goal in GOALS]
    assert lines[0] == "met           UNet step, of diffusers' time: 0.30, goal at most 0.60"
    assert "met           relative error of a UNet step: 5.0e-05, goal at most 1.0e-04" in lines
    assert any(line.endswith("--memory low: 1,000 MB, goal at most 2,000 MB") for line in lines)


def test_the_time_of_compiling_is_told_apart() -> None:
    slow = replace(Outcome([2.0], 1), first=130.0)
    found = summary({"unet": PhaseResult({DIFFUSERS: [Outcome([3.0], 1)], COMPILED: [slow]})}, 1e9)
    compiled = found["unet"]["contestants"][COMPILED]
    assert compiled["compile_seconds"]["median"] == 128.0
    assert compiled["seconds_ratio"]["median"] == pytest.approx(2 / 3)
