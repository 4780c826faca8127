"""Captured steps of the denoising loop against those that the program does one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import write_checkpoint
from sdpy.errors import GenerationError
from sdpy.models import ControlNetConfig, ControlNetModel, UNet2DConditionModel
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact.folded_attention import PromptCaching
from sdpy.pipelines.controlnet import Control, loaded_controls
from sdpy.pipelines.denoise import Step, denoise
from sdpy.pipelines.guidance import Guidance
from sdpy.pipelines.loop import InitialLatents, KnownRegion
from sdpy.runtime.devices import place, seeded_generator
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import Fallback
from sdpy.schedulers import SCHEDULERS, NoiseConfig, Scheduler, make_scheduler
from sdpy.text.conditioning import Conditioning, ConditioningSchedule, PromptConditioning
from support.captures import CountedGraphs, ReplayedOperators
from support.compare import randomise, relative_error
from support.tiny import TINY, random_image, tiny_model, tiny_session

TOLERANCE = 2e-5
STEPS = 4


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where graphs are replayed operators, and where they are CUDA's."""
    return torch.device(request.param)


def made_graphs(device: torch.device, failing: Exception | None = None) -> CountedGraphs:
    return (ReplayedOperators if device == CPU else CountedGraphs)(device, failing)


@pytest.fixture
def graphs(device: torch.device) -> CountedGraphs:
    return made_graphs(device)


@pytest.fixture
def unet(device: torch.device) -> UNet2DConditionModel:
    """As on a GPU: what depends on the prompt is kept."""
    model = tiny_model("unet").eval().to(device)
    assert isinstance(model, UNet2DConditionModel)
    PromptCaching().apply(model, PassContext(device=GPU))
    return model


def scheduler_of(name: str = "ddim", steps: int = STEPS) -> Scheduler:
    info = SCHEDULERS[name]
    made = make_scheduler(name, NoiseConfig(), eta=None if info.eta is None else 1.0)
    made.set_timesteps(steps)
    return made


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded_generator(seed))


def prompts(batch: int = 1, seed: int = 0, tokens: int = 77) -> PromptConditioning:
    return PromptConditioning(
        (Conditioning(numbers(batch, tokens, 32, seed=seed)),),
        Conditioning(numbers(batch, tokens, 32, seed=seed + 1)),
    )


def loop(
    unet: Any,
    graphs: CountedGraphs | None,
    *,
    scheduler: str = "ddim",
    steps: int = STEPS,
    shape: Sequence[int] = (1, 4, 8, 6),
    schedule: ConditioningSchedule | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    start: InitialLatents | None = None,
    **options: Any,
) -> list[Step]:
    """All steps of a loop."""
    batch = shape[0]
    if start is None:
        start = InitialLatents(numbers(*shape, seed=seed + 10))
    return list(
        denoise(
            unet,
            scheduler_of(scheduler, steps),
            start,
            ConditioningSchedule((prompts(batch, seed),)) if schedule is None else schedule,
            Guidance((7.5,) * batch) if guidance is None else guidance,
            generators=[seeded_generator(seed + i) for i in range(batch)],
            graphs=graphs,
            **options,
        )
    )


def check(unet: Any, graphs: CountedGraphs, **options: Any) -> None:
    """Both ways have the same latents after each step."""
    expected, found = loop(unet, None, **options), loop(unet, graphs, **options)
    assert len(expected) == len(found)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours.latents, theirs.latents) <= TOLERANCE
        assert ours.notices == ()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_sampler_is_captured_once(
    unet: UNet2DConditionModel, graphs: CountedGraphs, scheduler: str
) -> None:
    check(unet, graphs, scheduler=scheduler)
    assert graphs.captured == 1
    assert graphs.launched == len(scheduler_of(scheduler).timesteps)


def test_other_prompts_latents_and_noise_take_the_places(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    for seed in (0, 5):
        check(unet, graphs, scheduler="dpm++-2m-sde", seed=seed)
    assert graphs.captured == 1


def test_samplers_of_the_same_window_share_a_graph(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    for scheduler, steps in (("ddim", 5), ("euler-a", 8), ("lcm", 3)):
        check(unet, graphs, scheduler=scheduler, steps=steps)
    assert graphs.captured == 1


def test_other_sizes_batches_and_lengths_have_graphs_of_their_own(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"shape": (1, 4, 10, 8)},
        {"shape": (3, 4, 8, 6), "guidance": Guidance((7.5, 1.0, 0.0))},
        {"schedule": ConditioningSchedule((prompts(tokens=154),))},
        {"guidance": Guidance((1.0,))},
        {"guidance": Guidance((5.0,), rescale=0.7)},
    )
    for _ in range(2):
        for kind in kinds[:4]:
            check(unet, graphs, **kind)
    assert graphs.captured == 4
    for kind in kinds[4:]:
        check(unet, graphs, **kind)
    assert graphs.captured == 6


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++-2m"])
def test_guidance_in_an_interval_has_two_graphs(
    unet: UNet2DConditionModel, graphs: CountedGraphs, scheduler: str
) -> None:
    for scale in (7.5, 3.0):
        guidance = Guidance((scale,), interval=(0.2, 0.8))
        check(unet, graphs, scheduler=scheduler, guidance=guidance)
    assert graphs.captured == 2


def test_prompts_that_change_are_copied_into_their_place(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    schedule = ConditioningSchedule((prompts(seed=1), prompts(seed=3)), (0, 1, 1, 0))
    check(unet, graphs, schedule=schedule)
    assert graphs.captured == 1


def test_joined_prompts(unet: UNet2DConditionModel, graphs: CountedGraphs) -> None:
    parts = tuple(Conditioning(numbers(2, 77, 32, seed=seed)) for seed in range(3))
    joined = PromptConditioning(parts[:2], parts[2])
    for weights in (((1.0, 0.5), (0.7, -0.2)), ((1.0, 2.0), (0.1, 0.2))):
        schedule = ConditioningSchedule((joined,), weights=weights)
        guidance = Guidance((7.5, 4.0), interval=(0.0, 0.6))
        check(unet, graphs, shape=(2, 4, 8, 6), schedule=schedule, guidance=guidance)
    assert graphs.captured == 1  # without guidance, the scale is another one and all else the same


@pytest.mark.parametrize("scheduler", ["euler", "ddpm", "unipc", "heun"])
def test_what_inpainting_keeps_and_shows(
    device: torch.device, graphs: CountedGraphs, scheduler: str
) -> None:
    model = tiny_model("unet", in_channels=9).to(device)
    for seed in (0, 20):
        noise = numbers(1, 4, 8, 6, seed=seed)
        known = KnownRegion(numbers(1, 4, 8, 6, seed=seed + 1), noise, (noise[:, :1] > 0).float())
        beside = numbers(1, 5, 8, 6, seed=seed + 2)
        check(model, graphs, scheduler=scheduler, start=InitialLatents(noise, beside, known))
    assert graphs.captured == 1


@pytest.fixture
def controlnet(tmp_path: Path) -> Path:
    config = ControlNetConfig(unet=TINY.unet, conditioning_embedding_out_channels=(4, 8))
    weights = tmp_path / "control.safetensors"
    write_checkpoint(weights, randomise(ControlNetModel(config), seed=9).state_dict())
    return weights


def test_controlnets(
    tiny_data: Path, controlnet: Path, device: torch.device, graphs: CountedGraphs
) -> None:
    """They begin and end, are shown other images, and are loaded again in other places."""
    session = tiny_session(
        tiny_data, execution=Execution(fast_kernels=False), placement=place(device=str(device))
    )
    for time in range(3):
        models = session.models() if time < 2 else session.models().releasing("controlnet")
        image = (random_image(12, 16, seed=time) + 1) / 2
        shown = (Control(controlnet, image, scale=0.8), Control(controlnet, image, end=0.5))
        with models.unet() as unet, loaded_controls(models, [shown]) as controls:
            check(unet, graphs, controls=controls)
        assert graphs.captured == 2
    with models.unet() as unet, loaded_controls(models, [shown]) as controls:
        check(unet, graphs, controls=controls)
    assert graphs.captured == 4


def test_weights_in_other_places_are_captured_anew(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    check(unet, graphs)
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.1)  # in its place
    check(unet, graphs)
    assert graphs.captured == 1
    unet.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight.detach() * 1.1)
    check(unet, graphs)
    assert graphs.captured == 2


def test_a_loop_of_some_steps_takes_the_samplers_step_outside(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    """As with a refiner, which does the last steps with the same scheduler."""
    results = []
    for used in (None, graphs):
        scheduler, latents = scheduler_of("dpm++-2m"), numbers(1, 4, 8, 6, seed=3)
        for steps in (range(3), range(3, STEPS)):
            for step in denoise(
                unet,
                scheduler,
                InitialLatents(latents),
                ConditioningSchedule((prompts(),)),
                Guidance((7.5,)),
                steps=steps,
                graphs=used,
            ):
                latents = step.latents
        results.append(latents)
    assert relative_error(results[1], results[0]) <= TOLERANCE
    assert (graphs.captured, graphs.launched) == (1, STEPS)


def test_long_windows_are_taken_outside(unet: UNet2DConditionModel, graphs: CountedGraphs) -> None:
    check(unet, graphs, scheduler="unipc", steps=67)
    assert graphs.captured == 1


def test_what_cannot_be_captured_is_done_without(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    schedule = ConditioningSchedule((prompts(seed=1), prompts(seed=3)), (0, 1, 1, 0))
    expected = loop(unet, None, scheduler="dpm++-2m", schedule=schedule)
    graphs.failing = RuntimeError("no such operator\nand more")
    found = loop(unet, graphs, scheduler="dpm++-2m", schedule=schedule)
    assert relative_error(found[-1].latents, expected[-1].latents) <= TOLERANCE
    (told,) = (notice.text for step in found for notice in step.notices)
    assert told == (
        "a step cannot be captured as a CUDA graph (no such operator): going on without"
    )


def test_a_shortage_stops_capturing_before_anything_else(
    unet: UNet2DConditionModel, graphs: CountedGraphs
) -> None:
    expected = loop(unet, None, scheduler="euler-a")
    graphs.failing = torch.OutOfMemoryError("CUDA out of memory")
    taken: list[str] = []
    found = loop(
        unet,
        graphs,
        scheduler="euler-a",
        fallbacks=[Fallback("slices", lambda: taken.append("slices"))],
    )
    assert relative_error(found[-1].latents, expected[-1].latents) <= TOLERANCE
    (told,) = (notice.text for step in found for notice in step.notices)
    assert told == (
        "not enough memory for the UNet: doing each step without a CUDA graph from here on"
    )
    assert taken == []


def test_bad_numbers_are_found(unet: UNet2DConditionModel, graphs: CountedGraphs) -> None:
    check(unet, graphs)
    bad = replace(prompts(), negative=Conditioning(torch.full((1, 77, 32), torch.nan)))
    schedule = ConditioningSchedule((prompts(), bad), (0, 0, 1, 0))
    with pytest.raises(GenerationError, match=f"step 3 of {STEPS} gave latents"):
        loop(unet, graphs, schedule=schedule)
    check(unet, graphs)  # nothing of it is left
    assert graphs.captured == 1
