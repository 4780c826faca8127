"""The approximations in the pipelines: which evaluations are whole, and which are guided."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.test_tasks import TASKS, run
from sdpy.checkpoints import write_checkpoint
from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionModel
from sdpy.models.unet_blocks import MidBlock2D
from sdpy.pipelines.denoise import denoise
from sdpy.pipelines.events import Notice
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents
from sdpy.pipelines.plan import plan_schedule
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from sdpy.text.conditioning import Conditioning, ConditioningSchedule, PromptConditioning
from support.compare import assert_same_images, randomise, relative_error
from support.tasks import decoded, one_image
from support.tiny import TINY, tiny_model, tiny_session, tiny_source


@pytest.fixture
def session(tiny_data: Path) -> Session:
    return tiny_session(tiny_data)


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
    session: Session,
    batches: list[int],
    interval: tuple[float, float],
    expected: list[int],
) -> None:
    list(run("generate", session, Request("x", steps=10, guidance_interval=interval)))
    assert batches == expected


@pytest.mark.parametrize("task", TASKS)
def test_without_guidance_anywhere_it_is_scale_one(session: Session, task: str) -> None:
    request = Request("lighthouse", steps=4, guidance_scale=7.5, guidance_rescale=0.5)
    nowhere = one_image(run(task, session, replace(request, guidance_interval=(0.51, 0.59))))
    unguided = one_image(run(task, session, replace(request, guidance_scale=1.0)))
    assert torch.equal(nowhere, unguided)
    assert not torch.equal(nowhere, one_image(run(task, session, request)))


def test_a_denoising_loop_written_out(session: Session) -> None:
    """DDIM's steps with predictions that are guided from the second to the third of four."""
    unet: Any = tiny_model("unet")
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, 8, generator=numbers)
    prompt, negative = (torch.randn(1, 7, 32, generator=numbers) for _ in range(2))
    request = Request("x", steps=4)
    steps = denoise(
        unet,
        plan_schedule(session, request),
        InitialLatents(noise),
        ConditioningSchedule(
            (PromptConditioning((Conditioning(prompt),), Conditioning(negative)),)
        ),
        Guidance((3.0,), interval=(0.25, 0.75)),
        generators=[numbers],
    )
    scheduler = plan_schedule(session, request)
    latents = noise
    for i, (step, timestep) in enumerate(zip(steps, scheduler.timesteps, strict=True)):
        with torch.inference_mode():
            t = torch.tensor(timestep)
            prediction = unet(latents, t, prompt)
            if i in (1, 2):
                away = unet(latents, t, negative)
                prediction = away + 3.0 * (prediction - away)
            latents = scheduler.step(prediction, timestep, latents)
        assert relative_error(step.latents, latents) <= 1e-5


@pytest.mark.parametrize(
    "interval", [(-0.1, 1.0), (0.0, 1.1), (0.5, 0.5), (0.7, 0.3), (float("nan"), 1.0)]
)
def test_intervals_that_cannot_be_are_refused(
    session: Session, interval: tuple[float, float]
) -> None:
    with pytest.raises(UsageError, match="of the steps"):
        next(run("generate", session, Request("x", guidance_interval=interval)))


def test_an_interval_without_guidance_is_told(tiny_data: Path, tmp_path: Path) -> None:
    def notices(session: Session, scale: float) -> list[str]:
        request = Request("x", steps=1, guidance_scale=scale, guidance_interval=(0.2, 0.8))
        events = run("generate", session, request)
        return [event.text for event in events if isinstance(event, Notice)]

    session = tiny_session(tiny_data)
    assert notices(session, 7.5) == []
    assert "guidance interval changes nothing" in notices(session, 1.0)[0]
    config = replace(TINY.unet, time_cond_proj_dim=12)
    weights = randomise(UNet2DConditionModel(config), seed=4).state_dict()
    write_checkpoint(tmp_path / "unet.safetensors", weights)
    source = tiny_source(tiny_data)
    files = source.files.with_weights(unet=tmp_path / "unet.safetensors")
    session = Session(replace(source, files=files))
    assert "guidance interval changes nothing" in notices(session, 7.5)[0]


# --- approximations of the UNet ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "evaluations"),
    [("ddim", 6), ("pndm", 7), ("heun", 11), ("kdpm2-a", 11), ("dpm++-3s", 6), ("lcm", 6)],
)
def test_deep_cache_counts_evaluations(
    session: Session, batches: list[int], scheduler: str, evaluations: int
) -> None:
    request = Request("x", steps=6, scheduler=scheduler)
    one_image(run("generate", session, request))
    assert len(batches) == evaluations
    batches.clear()
    request = replace(request, deepcache=3)
    assert one_image(run("generate", session, request)).isfinite().all()
    assert len(batches) == len(range(0, evaluations, 3))


def test_guidance_that_begins_and_ends_renews_the_cache(
    session: Session, batches: list[int]
) -> None:
    request = Request("x", steps=10, guidance_interval=(0.2, 0.8), deepcache=4)
    one_image(run("generate", session, request))
    assert batches == [1, 2, 2, 1]  # before steps 0, 2, 6 and 8


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("approximation", [{"deepcache": 2}, {"token_merging": 0.5}])
def test_each_image_begins_anew_and_the_model_stays_exact(
    tiny_data: Path, session: Session, task: str, approximation: Any
) -> None:
    request = Request("lighthouse", steps=4, seed=5, num_samples=2)
    rough = replace(request, **approximation)
    first, second = (one.pixels for one in decoded(run(task, session, rough)))
    again = decoded(run(task, session, rough))[0].pixels
    alone = one_image(run(task, session, replace(rough, seed=6, num_samples=1)))
    assert relative_error(first, again) <= 1e-5
    # Tokens that are equally similar are merged as the rounding in a batch of this size decides.
    assert_same_images([second], [alone])
    exact = decoded(run(task, session, request))[0].pixels
    unused = tiny_session(tiny_data)
    assert relative_error(exact, decoded(run(task, unused, request))[0].pixels) <= 1e-5
    assert relative_error(exact, first) > 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_faster_kernels_give_the_same(tiny_data: Path, task: str) -> None:
    request = Request(
        "lighthouse",
        steps=4,
        guidance_interval=(0.0, 0.5),
        deepcache=2,
        token_merging=0.5,
    )
    images = [
        one_image(run(task, tiny_session(tiny_data, execution=execution), request))
        for execution in (Execution(fast_kernels=True), Execution(fast_kernels=False))
    ]
    assert relative_error(*images) <= 1e-4


@pytest.mark.parametrize(
    ("approximation", "words"),
    [
        ({"deepcache": 0}, "every 0"),
        ({"deepcache": 2, "deepcache_branch": 3}, "this UNet has 0 to 2"),
        ({"token_merging": 0.8}, "0.8: use 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, approximation: Any, words: str
) -> None:
    monkeypatch.setattr("sdpy.runtime.loading.load_weights", None)
    request = Request("x", **approximation)
    with pytest.raises(UsageError, match=words):
        next(run("generate", tiny_session(tiny_data), request))
