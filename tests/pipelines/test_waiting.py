"""Nothing in the denoising loop waits for the device on which the UNet runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdpy.checkpoints import write_checkpoint
from sdpy.errors import GenerationError
from sdpy.models import ControlNetConfig, ControlNetModel
from sdpy.optimizations.approximate import approximate
from sdpy.pipelines.controlnet import Control, loaded_controls
from sdpy.pipelines.denoise import denoise
from sdpy.pipelines.finite_check import FiniteCheck
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents, KnownRegion
from sdpy.pipelines.plan import plan_schedule
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import seeded_generator
from sdpy.runtime.execution import Execution
from sdpy.schedulers import SCHEDULERS
from sdpy.text.conditioning import Conditioning, ConditioningSchedule, PromptConditioning
from support.compare import randomise
from support.tiny import TINY, random_image, tiny_session
from support.waiting import counting_waits


def waits_in_loop(
    folder: Path, request: Request, controls: tuple[Control, ...] = (), known: bool = False
) -> list[str]:
    """What waits between the first step and the last of a batch of two images."""
    session = tiny_session(folder, execution=Execution(fast_kernels=False))
    models, scheduler = session.models(), plan_schedule(session, request)
    numbers = seeded_generator(0)
    noise = torch.randn(2, 4, 16, 16, generator=numbers)
    prompt, negative = (torch.randn(2, 77, 32, generator=numbers) for _ in range(2))
    region = KnownRegion(noise, noise, (noise[:, :1] > 0).float()) if known else None
    with (
        models.unet() as unet,
        loaded_controls(models, [controls, controls]) as loaded,
        approximate(unet, request.approximations, [0, 1]) as approximated,
    ):
        steps = denoise(
            approximated,
            scheduler,
            InitialLatents(noise, known=region),
            ConditioningSchedule(
                (PromptConditioning((Conditioning(prompt),), Conditioning(negative)),)
            ),
            Guidance((7.5, 3.0), request.guidance_rescale, request.guidance_interval),
            generators=[seeded_generator(seed) for seed in range(2)],
            controls=loaded,
        )
        next(steps)  # begins the loop
        with counting_waits() as waits:
            for _ in range(len(scheduler.timesteps) - 1):
                next(steps)
        assert next(steps, None) is None
    return waits


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where that costs nothing, each step is looked at as soon as it is done."""
    init = FiniteCheck.__init__

    def later(self: FiniteCheck, *args: Any) -> None:
        init(self, *args)
        self.at_once = False

    monkeypatch.setattr(FiniteCheck, "__init__", later)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_sampler_makes_the_loop_wait(tiny_data: Path, scheduler: str) -> None:
    assert waits_in_loop(tiny_data, Request("x", steps=4, scheduler=scheduler)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_rescale": 0.7},
        {"guidance_interval": (0.2, 0.6)},
        {"deepcache": 2},
        {"token_merging": 0.5},
        {"eta": 1.0},
    ],
    ids=str,
)
def test_nor_does_any_option(tiny_data: Path, options: dict[str, Any]) -> None:
    assert waits_in_loop(tiny_data, Request("x", steps=5, **options)) == []


def test_nor_do_controlnets_and_what_inpainting_keeps(tiny_data: Path, tmp_path: Path) -> None:
    config = ControlNetConfig(unet=TINY.unet, conditioning_embedding_out_channels=(4, 8))
    weights = tmp_path / "control.safetensors"
    write_checkpoint(weights, randomise(ControlNetModel(config), seed=9).state_dict())
    controls = (Control(weights, (random_image(32, 32) + 1) / 2),)
    assert waits_in_loop(tiny_data, Request("x", steps=4), controls, known=True) == []


def test_bad_numbers_are_found_after_the_last_step(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpy.models import UNet2DConditionModel

    forward, count = UNet2DConditionModel.forward, 0

    def bad_at_second(self: Any, *args: Any, **options: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return forward(self, *args, **options) * (torch.nan if count == 2 else 1)

    monkeypatch.setattr(UNet2DConditionModel, "forward", bad_at_second)
    with pytest.raises(GenerationError, match="step 2 of 4 gave latents"):
        waits_in_loop(tiny_data, Request("x", steps=4))
    assert count == 4
