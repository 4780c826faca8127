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

import compare_samplers as cs
import evaluate_demo as ev
from sdpy.errors import UsageError
from sdpy.pipelines import Components, Execution, Settings, generate
from sdpy.pipelines.vae import decode
from sdpy.samplers import SAMPLERS
from sdpy.schedulers import make_alphas_cumprod
from support.tiny import TINY_V, tiny_components

NOISY = {"ddpm", "euler-a", "kdpm2-a", "dpm++-2m-sde", "dpm++-3m-sde", "lcm", "tcd"}
TASK = ev.withheld_tasks(1)[0]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare on the tiny model."""
    monkeypatch.setattr(cs, "DEMO", TINY_V)
    monkeypatch.setattr(ev, "SIZE", 32)


@pytest.fixture
def components(tiny_data: Path) -> Components:
    keep = frozenset({"text_encoder", "unet", "vae"})
    return tiny_components(tiny_data, TINY_V, keep=keep, execution=Execution(fast_kernels=False))


# -- a network that knows its data, of which the solution is a formula ----------------------------


class GaussianNetwork:
    """Predicts the velocity for data of independent normal numbers of deviation ``spread``."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(time_cond_proj_dim=None)
    sigmas = np.sqrt(1 / make_alphas_cumprod(TINY_V.noise).clamp(min=2.0**-24).numpy() - 1)

    def __init__(self, spread: float) -> None:
        self.spread = spread

    def __call__(self, sample: Tensor, t: Tensor, *_: object, **__: object) -> Tensor:
        sigma = float(np.interp(t.item(), np.arange(1000), self.sigmas))
        alpha = 1 / (1 + sigma**2)
        x_0 = math.sqrt(alpha) * self.spread**2 / (alpha * self.spread**2 + 1 - alpha) * sample
        noise = (sample - math.sqrt(alpha) * x_0) / math.sqrt(1 - alpha)
        return math.sqrt(alpha) * noise - math.sqrt(1 - alpha) * x_0


FIRST_SIGMA = float(GaussianNetwork.sigmas[0])


@pytest.fixture
def gaussian(components: Components, monkeypatch: pytest.MonkeyPatch) -> GaussianNetwork:
    """What ``components`` have for a UNet."""
    network = GaussianNetwork(spread=0.1)

    @contextmanager
    def unet(_: Components) -> Iterator[GaussianNetwork]:
        yield network

    monkeypatch.setattr(Components, "unet", unet)
    return network


def exact(spread: float, sigma: float) -> Tensor:
    """The solution at a noise level, latents of variance 1: the deviation is scaled, no more."""
    start = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(TASK.seed))
    return start * math.sqrt((spread**2 + sigma**2) / (1 + sigma**2))


def relative(a: Tensor, b: Tensor) -> float:
    """Written unlike `compare_samplers.distance`."""
    return float(np.linalg.norm((a - b).numpy()) / np.linalg.norm(b.numpy()))


def test_the_solution_is_found_at_both_ends(
    components: Components, gaussian: GaussianNetwork
) -> None:
    solution = cs.solve(components, TASK)
    assert relative(solution.clean, exact(gaussian.spread, 0)) < 0.005
    assert relative(solution.noisy, exact(gaussian.spread, FIRST_SIGMA)) < 0.005
    assert relative(solution.clean, solution.noisy) > 0.03


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - NOISY))
def test_samplers_without_noise_come_to_the_solution(
    components: Components, gaussian: GaussianNetwork, sampler: str
) -> None:
    gaussian.spread = 0.5
    *_, ended = cs.walk(components, TASK, sampler, 250)
    assert relative(ended, exact(gaussian.spread, 0)) < 0.02


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - NOISY))
def test_samplers_without_noise_end_where_it_is_said(
    components: Components, gaussian: GaussianNetwork, sampler: str
) -> None:
    gaussian.spread = 0  # only noise is left, if any
    *_, ended = cs.walk(components, TASK, sampler, 20)
    clean = cs.ends_clean(cs.planned(components, sampler, 20))
    expected = exact(0, 0 if clean else FIRST_SIGMA)
    assert (ended - expected).norm() < 0.2 * exact(0, FIRST_SIGMA).norm()


def test_ddim_in_1000_steps_is_at_no_distance_from_itself(
    components: Components, gaussian: GaussianNetwork
) -> None:
    *_, ended = cs.walk(components, TASK, "ddim", 1000)
    bench = cs.Bench(components, ev.Reader(), cs.Setup(1, 1, (10, 1000), (), ""))
    walked = bench.measure("ddim", [cs.Solution(torch.ones(1), ended, 1.0)]).walked
    assert walked[1000].distances == (0,)
    assert walked[10].distances[0] > 0.01


def test_distances_are_medians_of_relative_deviations() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 4, 3, 5, generator=generator) for _ in range(2))
    assert cs.distance(a, b) == pytest.approx(relative(a, b), rel=1e-5)
    assert cs.distance(3 * b, b) == pytest.approx(2)
    walked = {5: cs.Walked(5, (0.5, 0.1, 0.2)), 9: cs.Walked(9, (), (True,))}
    assert cs.median_distances(cs.Measured(False, False, walked)) == {5: 0.2}


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


def test_samplers_that_draw_noise_are_known(components: Components) -> None:
    assert {name for name in SAMPLERS if cs.adds_noise(components, name)} == NOISY


def test_samplers_that_begin_late_are_known(components: Components) -> None:
    late = {name for name in SAMPLERS if cs.begins_late(components, name)}
    assert late == {"pndm", "heun", "kdpm2", "kdpm2-a"}


@pytest.mark.parametrize(
    "sampler, steps", [("ddim", 10), ("pndm", 9), ("heun", 5), ("kdpm2-a", 5), ("dpm++-2s", 10)]
)
def test_all_get_as_many_evaluations(components: Components, sampler: str, steps: int) -> None:
    assert cs.steps_within(components, sampler, 10) == steps


@pytest.mark.parametrize("sampler", ["ddim", "heun", "euler-a", "dpm++-3s", "tcd"])
def test_walks_are_those_of_the_command(components: Components, sampler: str) -> None:
    settings = Settings(TASK.prompt, steps=3, seed=TASK.seed, scheduler=sampler)
    expected = ev.painted(generate(components, settings, width=32, height=32))
    latents = cs.walk(components, TASK, sampler, 3)
    assert len(latents) == (5 if sampler == "heun" else 3)
    assert torch.equal(decode(components, latents[-1]), expected)


# -- measuring ------------------------------------------------------------------------------------

SETUP = cs.Setup(prompts=3, solved=2, evaluations=(2, 4), read_at=(4, 5), weights="abc")


def test_pictures_are_read_and_distances_taken_where_asked(
    components: Components, gaussian: GaussianNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: ev.Reader, pictures: list[Tensor]) -> list[ev.Reading]:
        tasks = ev.withheld_tasks(len(pictures))
        right = [ev.attributes(task.scene) for task in tasks]
        return [{**right[0], "time": "never"}, *right[1:]]

    monkeypatch.setattr(ev, "read", read)
    bench = cs.Bench(components, ev.Reader(), SETUP)
    ones = torch.ones(1, 4, 16, 16)
    solutions = [cs.Solution(ones, 2 * ones, detail=0.1)] * 2
    plain, noisy = (bench.measure(name, solutions) for name in ("heun", "euler-a"))
    assert (plain.noisy, plain.late) == (False, True)
    assert (noisy.noisy, noisy.late) == (True, False)
    read_back = (False, True, True)
    assert {n: (w.steps, len(w.distances), w.as_asked) for n, w in plain.walked.items()} == {
        2: (1, 2, ()),
        4: (2, 2, read_back),
        5: (3, 0, read_back),
    }
    assert {n: w.as_asked for n, w in noisy.walked.items()} == {4: read_back, 5: read_back}
    assert all(w.distances == () for w in noisy.walked.values())
    assert cs.adherence(noisy) == pytest.approx({4: 200 / 3, 5: 200 / 3})
    *_, ended = cs.walk(components, bench.tasks[1], "heun", 2)
    assert plain.walked[4].distances[1] == pytest.approx(relative(ended, ones))
    assert plain.walked[4].details[1] == pytest.approx(
        cs.detail(decode(components, ended)) / 0.1, rel=1e-4
    )
    assert [len(w.details) for w in plain.walked.values()] == [0, 2, 2]
    assert [len(w.details) for w in noisy.walked.values()] == [2, 2]


def measured(noisy: bool, **walked: tuple[float, ...]) -> cs.Measured:
    """Distance, and percentage where it was read, by evaluations, such as ``n5=(0.2, 50)``."""

    def one(n: int, distance: float, percent: float | None = None) -> cs.Walked:
        distances = () if noisy else (distance,) * 3
        if percent is None:
            return cs.Walked(n, distances)
        as_asked = tuple(i < percent for i in range(0, 100, 10))
        return cs.Walked(n, distances, as_asked, details=(0.0, percent / 200, 9.0))

    return cs.Measured(noisy, False, {int(n[1:]): one(int(n[1:]), *w) for n, w in walked.items()})


RESULTS = cs.Results(
    dataclasses.replace(SETUP, evaluations=(5, 10, 20), read_at=(5, 20)),
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
    near = {name: cs.near_from(one) for name, one in RESULTS.samplers.items()}
    expected = {"ddim": "over 20", "unipc": "20", "lms": "20", "deis": "5", "lcm": ""}
    assert {name: near[name] for name in expected} == expected


def test_samplers_are_ordered_by_distance_or_by_adherence() -> None:
    assert cs.ranked(RESULTS.samplers) == ["deis", "unipc", "lms", "euler", "ddim"]
    assert cs.with_noise(RESULTS.samplers) == ["ddpm", "lcm"]


def test_tables_hold_what_was_measured() -> None:
    lines = cs.table(RESULTS, ["deis", "lcm"]).splitlines()
    assert lines[2] == "| `deis` | 5 | 70 / 35 % | 90 / 45 % |"
    assert lines[3] == "| `lcm` |  | 10 / 5 % | 30 / 15 % |"
    assert [line.count("|") for line in lines] == [5] * 4


def test_the_picture_points_out_the_nearest_and_the_default() -> None:
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
        return chart.picture.getpixel((round(2 * x), round(2 * y)))

    names = ("deis", "unipc", "lms", "ddim")
    assert [colour(name) for name in names] == [*cs.sampler_chart.HIGHLIGHTS, cs.sampler_chart.INK]
    tops = [chart.cells[0, name, 5].top for name in (*cs.ranked(RESULTS.samplers), "ddpm", "lcm")]
    assert tops == sorted(tops)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    cs.write_results(file, RESULTS)
    assert cs.read_results(file) == RESULTS
    assert json.loads(file.read_text())["samplers"]["unipc"]["walked"]["10"]["steps"] == 10


def test_the_short_table_goes_between_the_marks() -> None:
    text = f"before\n{cs.BEGIN}\nold\n{cs.END}\nafter\n"
    new = cs.insert(text, "new")
    assert new == f"before\n{cs.BEGIN}\n\nnew\n\n{cs.END}\nafter\n"
    assert cs.insert(new, "new") == new
    with pytest.raises(UsageError):
        cs.insert("no marks", "new")


# -- everything together --------------------------------------------------------------------------


def test_a_run_is_continued_drawn_and_written_down(
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cs, "SOLUTION_STEPS", 20)
    walked = []
    walk = cs.walk

    def counted(components: Components, task: ev.Task, sampler: str, steps: int) -> list[Tensor]:
        walked.append((sampler, steps))
        return walk(components, task, sampler, steps)

    monkeypatch.setattr(cs, "walk", counted)
    reader, results = tmp_path / "its.pt", tmp_path / "new" / "results.json"
    torch.save(ev.Reader().state_dict(), reader)
    options = ["--json", str(results), "--reader", str(reader), "--files", str(tiny_data)]
    options += ["--prompts", "2", "--solved", "1", "--evaluations", "2", "3", "--read-at", "3"]
    cs.main([*options, "--samplers", "ddim"])
    once = [("ddim", 2), ("ddim", 3), ("ddim", 3)]
    assert walked == [("lms", 20), ("ddim", 20), *once]
    walked.clear()
    cs.main([*options, "--samplers", "ddim", "heun", "euler-a"])
    assert walked == [("heun", 1), ("heun", 2), ("heun", 2), ("euler-a", 3), ("euler-a", 3)]
    assert 0 < cs.read_results(results).check < 1

    picture, readme = tmp_path / "picture.png", tmp_path / "README.md"
    readme.write_text(f"# A title\n{cs.BEGIN}\n{cs.END}\n")
    options = ["--from-json", str(results), "--picture", str(picture), "--readme", str(readme)]
    cs.main(options)
    assert "| `ddim` |" in readme.read_text()
    with Image.open(picture) as opened:
        assert opened.width == cs.sampler_chart.WIDTH * cs.sampler_chart.SCALE
    assert "| `euler-a` |" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="name another file"):
        cs.main(["--json", str(results), "--reader", str(reader), "--files", str(tiny_data)])


def test_a_reader_is_trained_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, renders: int) -> None:
        state = ev.Reader().state_dict()
        state["head.bias"].fill_(renders)
        torch.save(state, folder / ev.READER_FILE)

    monkeypatch.setattr(ev, "train_reader", train)
    file = tmp_path / "folder" / "a.pt"
    assert (cs.find_reader(file, 7).head.bias == 7).all()
    assert (cs.find_reader(file, 8).head.bias == 7).all()
