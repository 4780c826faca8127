"""The samplers in the pipelines, which know none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from pipelines.test_tasks import TASKS, run
from sdpy.errors import UsageError
from sdpy.pipelines.events import Notice, Progress
from sdpy.pipelines.guidance import classifier_free_guidance
from sdpy.pipelines.plan import plan_schedule
from sdpy.pipelines.request import Request
from sdpy.schedulers import SCHEDULERS
from support.tasks import one_image
from support.tiny import tiny_session


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
    request = Request("x", guidance_rescale=rescale)
    with pytest.raises(UsageError, match="guidance rescale"):
        list(run("generate", tiny_session(tiny_data), request))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_does_every_task(tiny_data: Path, scheduler: str, task: str) -> None:
    session = tiny_session(tiny_data)
    request = Request("lighthouse", steps=4, scheduler=scheduler, guidance_rescale=0.5)
    events = list(run(task, session, request))
    assert not any(isinstance(event, Notice) for event in events)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(progress[-1].steps + 1))
    assert progress[-1].steps >= int(4 * (1.0 if task == "generate" else 0.5))
    image = events[-1].pixels
    assert image.isfinite().all()
    again = one_image(run(task, session, request))
    assert torch.equal(image, again)


def test_options_reach_the_sampler(tiny_data: Path) -> None:
    session = tiny_session(tiny_data)
    scheduler = plan_schedule(session, Request("x", steps=5, scheduler="DPM++ 2M Karras"))
    assert scheduler.sigma_schedule == "karras"
    assert scheduler.timestep_spacing == "linspace"  # it cannot take the variant's "original"
    request = Request(
        "x",
        steps=5,
        scheduler="euler",
        timestep_spacing="trailing",
        sigmas="beta",
    )
    scheduler = plan_schedule(session, request, 2)
    assert scheduler.sigma_schedule == "beta"
    assert scheduler.timestep_spacing == "trailing"
    assert len(scheduler.timesteps) == 3
    assert plan_schedule(session, Request("x", eta=0.25)).eta == 0.25
    assert plan_schedule(session, Request("x")).timestep_spacing == "original"
