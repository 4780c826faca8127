"""The samplers in the pipelines, which know none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from pipelines.test_tasks import TASKS, one_picture, run
from sdpy.errors import UsageError
from sdpy.pipelines import Notice, Progress, Settings
from sdpy.pipelines.denoise import classifier_free_guidance
from sdpy.pipelines.paint import plan
from sdpy.schedulers import SCHEDULERS
from support.tiny import tiny_components


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.0, 7.5])
def test_guidance_rescale(scale: float, rescale: float) -> None:
    both = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    guided = both[:1] + scale * (both[1:] - both[:1])
    expected = rescale_noise_cfg(guided, both[1:], rescale)
    torch.testing.assert_close(classifier_free_guidance(both, scale, rescale), expected)
    assert torch.equal(classifier_free_guidance(both[1:], 1.0, rescale), both[1:])


@pytest.mark.parametrize("rescale", [-0.1, 1.1, float("nan")])
def test_a_rescale_outside_its_range_is_refused(tiny_data: Path, rescale: float) -> None:
    settings = Settings("x", guidance_rescale=rescale)
    with pytest.raises(UsageError, match="guidance rescale"):
        list(run("generate", tiny_components(tiny_data), settings))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_does_every_task(tiny_data: Path, scheduler: str, task: str) -> None:
    components = tiny_components(tiny_data)
    settings = Settings("lighthouse", steps=4, scheduler=scheduler, guidance_rescale=0.5)
    events = list(run(task, components, settings))
    assert not any(isinstance(event, Notice) for event in events)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(progress[-1].steps + 1))
    assert progress[-1].steps >= int(4 * (1.0 if task == "generate" else 0.5))
    picture = events[-1].picture
    assert picture.isfinite().all()
    again = one_picture(run(task, components, settings))
    assert torch.equal(picture, again)


def test_settings_reach_the_sampler(tiny_data: Path) -> None:
    components = tiny_components(tiny_data)
    scheduler = plan(components, Settings("x", steps=5, scheduler="DPM++ 2M Karras"))
    assert scheduler.sigma_schedule == "karras"
    assert scheduler.timestep_spacing == "linspace"  # it cannot take the variant's "original"
    settings = Settings(
        "x",
        steps=5,
        scheduler="euler",
        timestep_spacing="trailing",
        sigmas="beta",
        prediction_type="sample",
    )
    scheduler = plan(components, settings, 2)
    assert scheduler.sigma_schedule == "beta"
    assert scheduler.timestep_spacing == "trailing"
    assert scheduler.noise.prediction_type == "sample"
    assert len(scheduler.timesteps) == 3
    assert plan(components, Settings("x", eta=0.25)).eta == 0.25
    assert plan(components, Settings("x")).timestep_spacing == "original"
