from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scripts import engine
from scripts.demo import scenes
from scripts.demo.adherence import Task, withheld_tasks
from scripts.demo.classifier import AttributeClassifier
from scripts.demo.scene_sets import Attributes
from scripts.engine import DemoModel, adds_noise
from scripts.figures import compare_samplers as cs
from scripts.figures import sampler_chart
from scripts.figures import sampler_results as sr
from sdpy.runtime.request_models import RequestModels
from sdpy.schedulers import SCHEDULERS
from sdpy.schedulers.noise import make_alphas_cumprod
from support.tiny import TINY_V

NOISY = {
    "dpm++-2s-a",
    "dpm++-sde",
    "ddpm",
    "euler-a",
    "kdpm2-a",
    "dpm++-2m-sde",
    "dpm++-3m-sde",
    "lcm",
    "tcd",
}
TASK = withheld_tasks(1)[0]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on the tiny model."""
    monkeypatch.setattr(engine, "DEMO", TINY_V)


@pytest.fixture
def model(tiny_data: Path) -> DemoModel:
    return DemoModel.open(tiny_data, device="cpu")


# -- a network that knows its data, of which the solution is a formula ----------------------------


class GaussianNetwork:
    """Predicts the velocity for data of independent normal numbers of deviation ``spread``."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(time_cond_proj_dim=None)
    sigmas = np.sqrt(1 / make_alphas_cumprod(TINY_V.noise).clamp(min=2.0**-24).numpy() - 1)

    def __init__(self, spread: float) -> None:
        self.spread = spread

    def embed(self, timestep: Tensor, timestep_cond: None) -> Tensor:
        return timestep

    def __call__(
        self, sample: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, emb: Tensor
    ) -> Tensor:
        sample = sample.repeat(len(encoder_hidden_states) // len(sample), 1, 1, 1)
        sigma = float(np.interp(t.item(), np.arange(1000), self.sigmas))
        alpha = 1 / (1 + sigma**2)
        x_0 = math.sqrt(alpha) * self.spread**2 / (alpha * self.spread**2 + 1 - alpha) * sample
        noise = (sample - math.sqrt(alpha) * x_0) / math.sqrt(1 - alpha)
        return math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * x_0


FIRST_SIGMA = float(GaussianNetwork.sigmas[0])


@pytest.fixture
def gaussian(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> GaussianNetwork:
    """Takes the place of the model's UNet."""
    network = GaussianNetwork(spread=0.1)

    @contextmanager
    def unet(_: RequestModels) -> Iterator[GaussianNetwork]:
        yield network

    monkeypatch.setattr(RequestModels, "unet", unet)
    return network


def exact(spread: float, sigma: float) -> Tensor:
    """The solution at a noise level, latents of variance 1: the deviation is scaled, no more."""
    start = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(TASK.seed))
    return start * math.sqrt((spread**2 + sigma**2) / (1 + sigma**2))


def relative(a: Tensor, b: Tensor) -> float:
    """Written unlike `compare_samplers.distance`."""
    return float(np.linalg.norm((a - b).numpy()) / np.linalg.norm(b.numpy()))


def test_the_solution_is_found_at_both_ends(model: DemoModel, gaussian: GaussianNetwork) -> None:
    solution = cs.solve(model, TASK)
    assert relative(solution.clean, exact(gaussian.spread, 0)) < 0.005
    assert relative(solution.noisy, exact(gaussian.spread, FIRST_SIGMA)) < 0.005
    assert relative(solution.clean, solution.noisy) > 0.03


@pytest.mark.parametrize("sampler", sorted(set(SCHEDULERS) - NOISY))
def test_samplers_without_noise_come_to_the_solution(
    model: DemoModel, gaussian: GaussianNetwork, sampler: str
) -> None:
    gaussian.spread = 0.5
    *_, ended = cs.run_sampler(model, TASK, sampler, 250)
    assert relative(ended, exact(gaussian.spread, 0)) < 0.02


@pytest.mark.parametrize("sampler", sorted(set(SCHEDULERS) - NOISY))
def test_samplers_without_noise_end_where_it_is_said(
    model: DemoModel, gaussian: GaussianNetwork, sampler: str
) -> None:
    gaussian.spread = 0  # only noise is left, if any
    *_, ended = cs.run_sampler(model, TASK, sampler, 20)
    clean = cs.ends_clean(model.plan(sampler, 20))
    expected = exact(0, 0 if clean else FIRST_SIGMA)
    assert (ended - expected).norm() < 0.2 * exact(0, FIRST_SIGMA).norm()


def test_ddim_in_1000_steps_is_at_no_distance_from_itself(
    model: DemoModel, gaussian: GaussianNetwork
) -> None:
    *_, ended = cs.run_sampler(model, TASK, "ddim", 1000)
    comparison = cs.Comparison(
        model, AttributeClassifier(scenes.ATTRIBUTES), sr.Setup(1, 1, (10, 1000), (), "")
    )
    runs = comparison.measure("ddim", [cs.Solution(torch.ones(1), ended, 1.0)]).runs
    assert runs[1000].distances == (0,)
    assert runs[10].distances[0] > 0.01


def test_distances_are_medians_of_relative_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 4, 3, 5, generator=generator) for _ in range(2))
    assert cs.distance(a, b) == pytest.approx(relative(a, b), rel=1e-5)
    assert cs.distance(3 * b, b) == pytest.approx(2)
    runs = {5: sr.SamplerRun(5, (0.5, 0.1, 0.2)), 9: sr.SamplerRun(9, (), (True,))}
    assert sr.median_distances(sr.SamplerResults(False, False, runs)) == {5: 0.2}


def test_detail_is_what_a_blur_takes_away() -> None:
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)[None, None].repeat(1, 3, 1, 1)
    # Inside, of nine pixels five are like the middle one: it keeps 1/9 of its value. At the edges
    # equally many are like it and not, and nothing is kept; in the corners the same.
    inside, edge = 14 * 14, 16 * 16 - 14 * 14
    expected = math.sqrt((inside * (8 / 9) ** 2 + edge) / (inside + edge))
    assert cs.detail(board) == pytest.approx(expected)
    assert cs.detail(0.5 * board + 0.3) == pytest.approx(expected / 2)
    assert cs.detail(torch.full((1, 3, 16, 16), 0.7)) == pytest.approx(0, abs=1e-6)


# -- samplers -------------------------------------------------------------------------------------


def test_samplers_that_draw_noise_are_known(model: DemoModel) -> None:
    assert {name for name in SCHEDULERS if adds_noise(model.plan(name, 3))} == NOISY


def test_samplers_that_begin_late_are_known(model: DemoModel) -> None:
    late = {name for name in SCHEDULERS if cs.begins_late(model, name)}
    assert late == {"pndm", "heun", "kdpm2", "kdpm2-a", "dpm++-2s-a", "dpm++-sde"}


@pytest.mark.parametrize(
    "sampler, steps", [("ddim", 10), ("pndm", 9), ("heun", 5), ("kdpm2-a", 5), ("dpm++-2s", 10)]
)
def test_all_get_as_many_evaluations(model: DemoModel, sampler: str, steps: int) -> None:
    assert cs.steps_within(model, sampler, 10) == steps


@pytest.mark.parametrize("sampler", ["ddim", "heun", "euler-a", "dpm++-3s", "tcd"])
def test_latents_are_those_of_the_command(model: DemoModel, sampler: str) -> None:
    expected = model.generate(TASK.prompt, TASK.seed, steps=3, scheduler=sampler)
    latents = cs.run_sampler(model, TASK, sampler, 3)
    assert len(latents) == (5 if sampler == "heun" else 3)
    assert torch.equal(model.decode(latents[-1]), expected)


# -- measuring ------------------------------------------------------------------------------------

SETUP = sr.Setup(prompts=3, solved=2, evaluations=(2, 4), classify_at=(4, 5), weights="abc")


def test_images_are_classified_and_distances_taken_where_asked(
    model: DemoModel, gaussian: GaussianNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def classify(_: AttributeClassifier, images: list[Tensor]) -> list[Attributes]:
        tasks = withheld_tasks(len(images))
        right = [task.scene.attributes for task in tasks]
        return [{**right[0], "time": "never"}, *right[1:]]

    monkeypatch.setattr(cs, "classify", classify)
    comparison = cs.Comparison(model, AttributeClassifier(scenes.ATTRIBUTES), SETUP)
    ones = torch.ones(1, 4, 16, 16)
    solutions = [cs.Solution(ones, 2 * ones, detail=0.1)] * 2
    plain, noisy = (comparison.measure(name, solutions) for name in ("heun", "euler-a"))
    assert (plain.noisy, plain.late) == (False, True)
    assert (noisy.noisy, noisy.late) == (True, False)
    as_asked = (False, True, True)
    assert {n: (w.steps, len(w.distances), w.as_asked) for n, w in plain.runs.items()} == {
        2: (1, 2, ()),
        4: (2, 2, as_asked),
        5: (3, 0, as_asked),
    }
    assert {n: w.as_asked for n, w in noisy.runs.items()} == {4: as_asked, 5: as_asked}
    assert all(w.distances == () for w in noisy.runs.values())
    assert sr.adherence(noisy) == pytest.approx({4: 200 / 3, 5: 200 / 3})
    *_, ended = cs.run_sampler(model, comparison.tasks[1], "heun", 2)
    assert plain.runs[4].distances[1] == pytest.approx(relative(ended, ones))
    assert plain.runs[4].details[1] == pytest.approx(cs.detail(model.decode(ended)) / 0.1, rel=1e-4)
    assert [len(w.details) for w in plain.runs.values()] == [0, 2, 2]
    assert [len(w.details) for w in noisy.runs.values()] == [2, 2]


def measured(noisy: bool, **runs: tuple[float, ...]) -> sr.SamplerResults:
    """Distance, and percentage where it was read, by evaluations, such as ``n5=(0.2, 50)``."""

    def one(n: int, distance: float, percent: float | None = None) -> sr.SamplerRun:
        distances = () if noisy else (distance,) * 3
        if percent is None:
            return sr.SamplerRun(n, distances)
        as_asked = tuple(i < percent for i in range(0, 100, 10))
        return sr.SamplerRun(n, distances, as_asked, details=(0.0, percent / 200, 9.0))

    return sr.SamplerResults(
        noisy, False, {int(n[1:]): one(int(n[1:]), *w) for n, w in runs.items()}
    )


RESULTS = sr.Results(
    dataclasses.replace(SETUP, evaluations=(5, 10, 20), classify_at=(5, 20)),
    0.01,
    {
        "ddim": measured(False, n5=(0.8, 40), n10=(0.4,), n20=(0.2, 60)),
        "unipc": measured(False, n5=(0.4, 50), n10=(0.2,), n20=(0.02, 100)),
        "lms": measured(False, n5=(0.09, 60), n10=(0.3,), n20=(0.1, 90)),
        "deis": measured(False, n5=(0.05, 70), n10=(0.01,), n20=(0.01, 90)),
        "euler": measured(False, n5=(0.7, 50), n10=(0.4,), n20=(0.15, 60)),
        "lcm": measured(True, n5=(1, 10), n20=(1, 30)),
        "ddpm": measured(True, n5=(1, 20), n20=(1, 40)),
    },
)


def test_near_is_where_it_stays_near() -> None:
    near = {name: sr.near_from(one) for name, one in RESULTS.samplers.items()}
    expected = {"ddim": "over 20", "unipc": "20", "lms": "20", "deis": "5", "lcm": ""}
    assert {name: near[name] for name in expected} == expected


def test_samplers_are_ordered_by_distance_or_by_adherence() -> None:
    assert sr.ranked(RESULTS.samplers) == ["deis", "unipc", "lms", "euler", "ddim"]
    assert sr.with_noise(RESULTS.samplers) == ["ddpm", "lcm"]


def test_tables_hold_what_was_measured() -> None:
    lines = cs.table(RESULTS, ["deis", "lcm"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["`deis`", "5", "70 / 35 %", "90 / 45 %"]
    assert cells[3] == ["`lcm`", "", "10 / 5 %", "30 / 15 %"]


def test_the_short_table_is_of_the_nearest_and_the_default() -> None:
    lines = cs.short_table(RESULTS).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:] if line.startswith("|")]
    assert names == ["`deis`", "`unipc`", "`lms`", "`ddim`"]
    assert lines[-1].startswith("Distance and detail are medians of 2 prompts; images of 3 were")
    assert "`ddim` end 1 % from the solution" in lines[-1]


def test_the_figure_points_out_the_nearest_and_the_default() -> None:
    chart = cs.chart(RESULTS)
    assert set(chart.points) == {
        (name, n) for name in ("ddim", "unipc", "lms", "deis", "euler") for n in (5, 10, 20)
    }
    tables = (0, 1)
    assert set(chart.cells) == {
        (i, s, n) for i in tables for s in RESULTS.samplers for n in (5, 20)
    }

    def colour(name: str) -> tuple[int, int, int]:
        x, y = chart.points[name, 10]
        return chart.image.getpixel((round(2 * x), round(2 * y)))

    names = ("deis", "unipc", "lms", "ddim")
    assert [colour(name) for name in names] == [*sampler_chart.HIGHLIGHTS, sampler_chart.INK]
    tops = [chart.cells[0, name, 5].top for name in (*sr.ranked(RESULTS.samplers), "ddpm", "lcm")]
    assert tops == sorted(tops)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    sr.write_results(file, RESULTS)
    assert sr.read_results(file) == RESULTS
    assert json.loads(file.read_text())["samplers"]["unipc"]["runs"]["10"]["steps"] == 10


# -- everything together --------------------------------------------------------------------------


def test_a_run_is_continued_drawn_and_written_down(
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cs, "SOLUTION_STEPS", 20)
    done: list[tuple[str, int]] = []
    run_sampler = cs.run_sampler

    def counted(model: DemoModel, task: Task, sampler: str, steps: int) -> list[Tensor]:
        done.append((sampler, steps))
        return run_sampler(model, task, sampler, steps)

    monkeypatch.setattr(cs, "run_sampler", counted)
    classifier, results = tmp_path / "its.pt", tmp_path / "new" / "results.json"
    torch.save(AttributeClassifier(scenes.ATTRIBUTES).state_dict(), classifier)
    options = ["--json", str(results), "--classifier", str(classifier), "--files", str(tiny_data)]
    options += ["--prompts", "2", "--solved", "1", "--evaluations", "2", "3", "--classify-at", "3"]
    cs.main([*options, "--samplers", "ddim"])
    once = [("ddim", 2), ("ddim", 3), ("ddim", 3)]
    assert done == [("lms", 20), ("ddim", 20), *once]
    done.clear()
    cs.main([*options, "--samplers", "ddim", "heun", "euler-a"])
    assert done == [("heun", 1), ("heun", 2), ("heun", 2), ("euler-a", 3), ("euler-a", 3)]
    assert 0 < sr.read_results(results).check < 1

    image, readme = tmp_path / "image.png", tmp_path / "README.md"
    readme.write_text("# A title\n<!-- begin: samplers -->\n<!-- end: samplers -->\n")
    options = ["--from-json", str(results), "--image", str(image), "--write", str(readme)]
    cs.main(options)
    assert "| `ddim`" in readme.read_text()
    with Image.open(image) as opened:
        assert opened.width == sampler_chart.WIDTH * sampler_chart.SCALE
    assert "| `euler-a`" in capsys.readouterr().out

    options = ["--json", str(results), "--classifier", str(classifier)]
    options += ["--files", str(tiny_data)]
    with pytest.raises(SystemExit, match="name another file"):
        cs.main(
            ["--json", str(results), "--classifier", str(classifier), "--files", str(tiny_data)]
        )
