"""The approximations in the pipelines: which evaluations are whole, and which are guided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.test_tasks import TASKS, one_picture, painted, run
from sdpy.checkpoints import write_checkpoint
from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionModel
from sdpy.models.unet_blocks import MidBlock2D
from sdpy.optimizations.approximate import DeepCache, TokenMerging
from sdpy.pipelines import Components, Execution, Notice, Settings
from sdpy.pipelines.denoise import Walk, denoise
from sdpy.pipelines.paint import plan
from sdpy.text.prompts import PromptEmbeddings
from support.compare import randomise, relative_error
from support.tiny import TINY, tiny_components, tiny_model


@pytest.fixture
def components(tiny_data: Path) -> Components:
    return tiny_components(tiny_data, keep=frozenset({"unet"}))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch of each evaluation of the whole UNet."""
    seen: list[int] = []
    forward = MidBlock2D.forward

    def noting(self: Any, x: Tensor, *inputs: Any) -> Tensor:
        seen.append(len(x))
        return forward(self, x, *inputs)

    monkeypatch.setattr(MidBlock2D, "forward", noting)
    return seen


# --- guidance in an interval -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.0, 1.0), [2] * 10),
        ((0.2, 0.8), [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]),
        ((0.0, 0.35), [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]),
        ((0.65, 1.0), [1, 1, 1, 1, 1, 1, 1, 2, 2, 2]),
        ((0.51, 0.59), [1] * 10),
    ],
)
def test_unguided_steps_take_half_the_work(
    components: Components,
    batches: list[int],
    interval: tuple[float, float],
    expected: list[int],
) -> None:
    list(run("generate", components, Settings("x", steps=10, guidance_interval=interval)))
    assert batches == expected


@pytest.mark.parametrize("task", TASKS)
def test_without_guidance_anywhere_it_is_scale_one(components: Components, task: str) -> None:
    settings = Settings("lighthouse", steps=4, guidance_scale=7.5, guidance_rescale=0.5)
    nowhere = one_picture(run(task, components, replace(settings, guidance_interval=(0.51, 0.59))))
    unguided = one_picture(run(task, components, replace(settings, guidance_scale=1.0)))
    assert torch.equal(nowhere, unguided)
    assert not torch.equal(nowhere, one_picture(run(task, components, settings)))


def test_a_walk_written_out(components: Components) -> None:
    """DDIM's steps with predictions that are guided from the second to the third of four."""
    unet: Any = tiny_model("unet")
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, 8, generator=numbers)
    prompt, negative = (torch.randn(1, 7, 32, generator=numbers) for _ in range(2))
    settings = Settings("x", steps=4)
    steps = denoise(
        unet,
        plan(components, settings),
        Walk(noise),
        PromptEmbeddings(prompt=prompt, negative=negative),
        guidance_scale=3.0,
        guidance_interval=(0.25, 0.75),
        generator=numbers,
    )
    scheduler = plan(components, settings)
    latents = noise
    for i, (step, timestep) in enumerate(zip(steps, scheduler.timesteps, strict=True)):
        with torch.inference_mode():
            prediction = unet(latents, timestep, prompt)
            if i in (1, 2):
                away = unet(latents, timestep, negative)
                prediction = away + 3.0 * (prediction - away)
            latents = scheduler.step(prediction, timestep, latents)
        assert relative_error(step.latents, latents) <= 1e-5


@pytest.mark.parametrize(
    "interval", [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.3), (float("nan"), 1.0)]
)
def test_intervals_that_cannot_be_are_refused(
    components: Components, interval: tuple[float, float]
) -> None:
    with pytest.raises(UsageError, match="of the steps"):
        next(run("generate", components, Settings("x", guidance_interval=interval)))


def test_an_interval_without_guidance_is_told(tiny_data: Path, tmp_path: Path) -> None:
    def notices(components: Components, scale: float) -> list[str]:
        settings = Settings("x", steps=1, guidance_scale=scale, guidance_interval=(0.2, 0.8))
        events = run("generate", components, settings)
        return [event.text for event in events if isinstance(event, Notice)]

    components = tiny_components(tiny_data)
    assert notices(components, 7.5) == []
    assert "guidance interval changes nothing" in notices(components, 1.0)[0]
    config = replace(TINY.unet, time_cond_proj_dim=12)
    weights = randomise(UNet2DConditionModel(config), seed=4).state_dict()
    write_checkpoint(tmp_path / "unet.safetensors", weights)
    components.files = replace(components.files, unet=tmp_path / "unet.safetensors")
    components = replace(components, _kept={})
    assert "guidance interval changes nothing" in notices(components, 7.5)[0]


# --- approximations of the UNet ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [("ddim", 6), ("pndm", 7), ("heun", 11), ("kdpm2-a", 11), ("dpm++-3s", 6), ("lcm", 6)],
)
def test_deep_cache_counts_evaluations(
    components: Components, batches: list[int], scheduler: str, evaluations: int
) -> None:
    settings = Settings("x", steps=6, scheduler=scheduler)
    one_picture(run("generate", components, settings))
    assert len(batches) == evaluations
    batches.clear()
    settings = replace(settings, approximations=(DeepCache(3),))
    assert one_picture(run("generate", components, settings)).isfinite().all()
    assert len(batches) == len(range(0, evaluations, 3))


def test_guidance_that_begins_and_ends_renews_the_cache(
    components: Components, batches: list[int]
) -> None:
    settings = Settings("x", steps=10, guidance_interval=(0.2, 0.8), approximations=(DeepCache(4),))
    one_picture(run("generate", components, settings))
    assert batches == [1, 2, 2, 1]  # before steps 0, 2, 6 and 8


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("approximation", [DeepCache(2), TokenMerging(0.5)])
def test_each_picture_begins_anew_and_the_model_stays_exact(
    tiny_data: Path, components: Components, task: str, approximation: Any
) -> None:
    settings = Settings("lighthouse", steps=4, seed=5, num_samples=2)
    rough = replace(settings, approximations=(approximation,))
    first, second = (one.picture for one in painted(run(task, components, rough)))
    again = painted(run(task, components, rough))[0].picture
    alone = one_picture(run(task, components, replace(rough, seed=6, num_samples=1)))
    assert relative_error(first, again) <= 1e-5
    assert relative_error(second, alone) <= 1e-5
    exact = painted(run(task, components, settings))[0].picture
    unused = tiny_components(tiny_data)
    assert relative_error(exact, painted(run(task, unused, settings))[0].picture) <= 1e-5
    assert relative_error(exact, first) > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_faster_kernels_give_the_same(tiny_data: Path, task: str) -> None:
    settings = Settings(
        "lighthouse",
        steps=4,
        guidance_interval=(0.0, 0.5),
        approximations=(DeepCache(2), TokenMerging(0.5)),
    )
    pictures = [
        one_picture(run(task, tiny_components(tiny_data, execution=execution), settings))
        for execution in (Execution(fast_kernels=True), Execution(fast_kernels=False))
    ]
    assert relative_error(*pictures) <= 1e-4


@pytest.mark.parametrize(
    ("approximation", "words"),
    [
        (DeepCache(0), "every 0"),
        (DeepCache(2, 3), "this UNet has 0 to 2"),
        (TokenMerging(0.8), "0.8: use 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, approximation: Any, words: str
) -> None:
    monkeypatch.setattr("sdpy.pipelines.components.load_weights", None)
    settings = Settings("x", approximations=(approximation,))
    with pytest.raises(UsageError, match=words):
        next(run("generate", tiny_components(tiny_data), settings))
