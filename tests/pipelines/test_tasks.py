"""Text to picture, picture to picture and inpainting: seeds, evaluations, strengths, masks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpy.errors import ImageError, SdpyError, UsageError, WeightsError
from sdpy.images.mask import composite
from sdpy.images.tensors import mask_to_tensor, tensor_to_image
from sdpy.models import UNet2DConditionModel
from sdpy.pipelines import (
    Components,
    Event,
    Notice,
    Painted,
    Progress,
    Settings,
    generate,
    img2img,
    inpaint,
)
from sdpy.pipelines.denoise import classifier_free_guidance
from sdpy.schedulers.noise import make_alphas_cumprod
from support.tiny import TINY, TINY_INPAINT, TINY_V, random_picture, tiny_components, tiny_model

SIDE = 32


@pytest.fixture
def components(tiny_data: Path) -> Components:
    return tiny_components(tiny_data)


def white_right_half() -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return mask


def run(task: str, components: Components, settings: Settings, **options: Any) -> Iterator[Event]:
    picture = random_picture(SIDE, SIDE)
    if task == "generate":
        return generate(components, settings, **{"width": SIDE, "height": SIDE, **options})
    if task == "img2img":
        return img2img(components, settings, picture, **{"strength": 0.5, **options})
    return inpaint(
        components, settings, picture, options.pop("mask", white_right_half()), **options
    )


def painted(events: Iterator[Event]) -> list[Painted]:
    return [event for event in events if isinstance(event, Painted)]


def one_picture(events: Iterator[Event]) -> Tensor:
    (one,) = painted(events)
    return one.picture


TASKS = ("generate", "img2img", "inpaint")


# --- seeds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("task", "unet"),
    [*((task, "unet.ot") for task in TASKS), ("inpaint", "unet-inpaint.ot")],
)
def test_the_same_seed_paints_the_same_alone_or_among_others(
    tiny_data: Path, task: str, eta: float, unet: str
) -> None:
    components = tiny_components(tiny_data, unet=unet)
    settings = Settings("lighthouse", steps=3, seed=5, eta=eta)
    three = painted(run(task, components, replace(settings, num_samples=3)))
    assert [one.seed for one in three] == [5, 6, 7]
    assert [one.sample for one in three] == [1, 2, 3]
    for one in three:
        alone = one_picture(run(task, components, replace(settings, seed=one.seed)))
        assert torch.equal(one.picture, alone)
    assert not torch.equal(three[0].picture, three[1].picture)


@pytest.mark.parametrize("task", TASKS)
def test_the_global_generator_is_neither_used_nor_touched(
    components: Components, task: str
) -> None:
    settings = Settings("lighthouse", steps=2, eta=0.5)
    torch.manual_seed(1)
    first = one_picture(run(task, components, settings))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, one_picture(run(task, components, settings)))


def test_seed_zero_is_a_seed(components: Components) -> None:
    pictures = [
        one_picture(run("generate", components, Settings("x", steps=1, seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


# --- evaluations -------------------------------------------------------------------------------


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float]]:
    """(batch, channels, timestep) of each evaluation of a UNet."""
    seen: list[tuple[int, int, float]] = []
    forward = UNet2DConditionModel.forward

    def noting(
        self: Any, sample: Tensor, timestep: Tensor, context: Tensor, **residuals: Any
    ) -> Tensor:
        assert len(context) == len(sample)
        seen.append((sample.shape[0], sample.shape[1], float(timestep)))
        return forward(self, sample, timestep, context, **residuals)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    return seen


ORIGINAL_30 = [float(33 * s) for s in range(30, 0, -1)]  # without the useless one at 0


def test_the_original_s_timesteps_but_the_last(components: Components, evaluations: Any) -> None:
    list(run("generate", components, Settings("x", steps=30, guidance_scale=1)))
    assert evaluations == [(1, 4, timestep) for timestep in ORIGINAL_30]


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 1), (0.0, 2), (7.5, 2), (None, 2)])
@pytest.mark.parametrize("task", TASKS)
def test_guidance_of_one_needs_half_the_work(
    components: Components, evaluations: Any, task: str, scale: float | None, batch: int
) -> None:
    list(run(task, components, Settings("x", steps=4, guidance_scale=scale)))
    assert evaluations and {batch for batch, _, _ in evaluations} == {batch}


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_strength_is_the_share_of_the_steps(
    components: Components, evaluations: Any, task: str, strength: float
) -> None:
    events = list(run(task, components, Settings("x", steps=30), strength=strength))
    count = int(30 * strength)
    assert [timestep for _, _, timestep in evaluations] == ORIGINAL_30[30 - count :]
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(count + 1))
    assert {event.steps for event in progress} == {count}


def test_nine_channels_are_shown_the_mask_and_the_masked_picture(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    forward = UNet2DConditionModel.forward

    def noting(
        self: Any, sample: Tensor, timestep: Tensor, context: Tensor, **residuals: Any
    ) -> Tensor:
        shown.append(sample)
        return forward(self, sample, timestep, context, **residuals)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    components = tiny_components(tiny_data, TINY_INPAINT, unet="unet-inpaint.ot")
    mask = white_right_half()
    list(run("inpaint", components, Settings("x", steps=2, seed=3), mask=mask))

    generator = torch.Generator().manual_seed(3)
    vae = tiny_model("vae")
    with torch.inference_mode():
        posterior = vae.encode(random_picture(SIDE, SIDE) * (1 - mask))
        draw = torch.randn(posterior.mean.shape, generator=generator)
        masked = (posterior.mean + posterior.std * draw) * 0.18215
    noise = torch.randn(masked.shape, generator=generator)
    for sample in shown:
        assert torch.equal(sample[:1], sample[1:])
        assert torch.equal(sample[0, 4], mask[0, 0, ::2, ::2])
        torch.testing.assert_close(sample[:1, 5:], masked, rtol=1e-5, atol=1e-6)
    assert torch.equal(shown[0][:1, :4], noise)
    assert not torch.equal(shown[1][:1, :4], noise)


def test_guidance_on_numbers_worked_by_hand() -> None:
    negative, positive = torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[[[3.0, 2.0]]]])
    both = torch.cat([negative, positive])
    for scale, expected in {0.0: [1, -2], 1.0: [3, 2], 2.0: [5, 6], 7.5: [16, 28]}.items():
        assert classifier_free_guidance(both, scale).flatten().tolist() == expected
    assert torch.equal(classifier_free_guidance(positive, 7.5), positive)


def test_the_negative_prompt_takes_the_place_of_the_empty_one(components: Components) -> None:
    """At scale 0 only the negative prompt counts; it then paints what it paints as a prompt."""
    settings = Settings("cat", negative_prompt="lighthouse", steps=2, guidance_scale=0)
    as_negative = one_picture(run("generate", components, settings))
    settings = Settings("lighthouse", steps=2, guidance_scale=1)
    as_prompt = one_picture(run("generate", components, settings))
    torch.testing.assert_close(as_negative, as_prompt, rtol=1e-4, atol=1e-4)
    other = one_picture(run("generate", components, replace(settings, prompt="cat")))
    assert (as_prompt - other).abs().max() > 0.01


# --- strength ----------------------------------------------------------------------------------


def test_strength_zero_encodes_and_decodes_without_noise(components: Components) -> None:
    result = one_picture(run("img2img", components, Settings("x", steps=4, seed=8), strength=0.0))
    vae, picture = tiny_model("vae"), random_picture(SIDE, SIDE)
    with torch.inference_mode():
        posterior = vae.encode(picture)
        draw = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(8))
        expected = vae.decode(posterior.mean + posterior.std * draw)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_strength_too_small_for_a_step_is_as_none(components: Components) -> None:
    settings = Settings("x", steps=30)
    none = one_picture(run("img2img", components, settings, strength=0.0))
    little = one_picture(run("img2img", components, settings, strength=0.01))
    assert torch.equal(none, little)


def test_inpainting_at_full_strength_begins_with_pure_noise(
    components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    forward = UNet2DConditionModel.forward

    def noting(
        self: Any, sample: Tensor, timestep: Tensor, context: Tensor, **residuals: Any
    ) -> Tensor:
        shown.append(sample[:1])
        return forward(self, sample, timestep, context, **residuals)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    list(run("inpaint", components, Settings("x", steps=2, seed=4), strength=1.0))
    generator = torch.Generator().manual_seed(4)
    torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=generator)  # the posterior's
    assert torch.equal(shown[0], torch.randn(shown[0].shape, generator=generator))


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_other_strengths_are_refused(components: Components, task: str, strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        next(run(task, components, Settings("x"), strength=strength))


# --- inpainting --------------------------------------------------------------------------------


@pytest.mark.parametrize("unet", ["unet.ot", "unet-inpaint.ot"])
def test_pixels_outside_the_mask_are_kept(tiny_data: Path, unet: str) -> None:
    components = tiny_components(tiny_data, TINY_INPAINT, unet=unet)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 5:20, 9:30] = 1
    picture = tensor_to_image(random_picture(SIDE, SIDE))
    result = one_picture(run("inpaint", components, Settings("x", steps=3), mask=mask))
    white = tensor_to_image(mask.expand(1, 3, -1, -1) * 2 - 1).convert("L")
    assert torch.equal(mask_to_tensor(white), mask)
    finished = np.asarray(composite(picture, tensor_to_image(result), white))
    inside = mask[0, 0].bool().numpy()
    assert np.array_equal(finished[~inside], np.asarray(picture)[~inside])
    assert np.array_equal(finished[inside], np.asarray(tensor_to_image(result))[inside])
    assert not np.array_equal(finished[inside], np.asarray(picture)[inside])


@pytest.mark.parametrize("variant", [TINY, TINY_V], ids=["epsilon", "v_prediction"])
def test_blending_ends_with_the_picture_s_own_latents_outside(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, variant: Any
) -> None:
    decoded: list[Tensor] = []

    def noting(components: Components, latents: Tensor) -> Generator[Notice, None, Tensor]:
        decoded.append(latents)
        yield from ()
        return torch.zeros(1, 3, SIDE, SIDE)

    monkeypatch.setattr("sdpy.pipelines.paint.decoding", noting)
    components = tiny_components(tiny_data, variant)
    list(run("inpaint", components, Settings("x", steps=3, seed=1)))
    with torch.inference_mode():
        posterior = tiny_model("vae").encode(random_picture(SIDE, SIDE))
        draw = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
        original = (posterior.mean + posterior.std * draw) * 0.18215
    outside = white_right_half()[..., ::2, ::2].expand_as(original) == 0
    torch.testing.assert_close(decoded[0][outside], original[outside], rtol=1e-5, atol=1e-6)
    assert (decoded[0] - original)[~outside].abs().max() > 0.1


@pytest.mark.parametrize("unet", ["unet.ot", "unet-inpaint.ot"])
def test_a_mask_that_vanishes_among_the_latents_is_refused(tiny_data: Path, unet: str) -> None:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 1::2, 1::2] = 1  # nearest neighbour takes even rows and columns
    components = tiny_components(tiny_data, unet=unet)
    with pytest.raises(ImageError, match="2x2 pixels"):
        next(run("inpaint", components, Settings("x"), mask=mask))


def test_an_all_white_mask_repaints_everything(components: Components) -> None:
    all_white = torch.ones(1, 1, SIDE, SIDE)
    settings = Settings("x", steps=3, seed=2)
    blended = one_picture(run("inpaint", components, settings, mask=all_white))
    assert (blended - random_picture(SIDE, SIDE)).abs().mean() > 0.05


def test_an_ordinary_unet_in_the_place_of_an_inpainting_one_is_told(tiny_data: Path) -> None:
    components = tiny_components(tiny_data, TINY_INPAINT)
    first = next(run("inpaint", components, Settings("x", steps=1)))
    assert isinstance(first, Notice)
    assert str(tiny_data / "unet.ot") in first.text
    components = tiny_components(tiny_data, TINY_INPAINT, unet="unet-inpaint.ot")
    assert not any(
        isinstance(event, Notice) for event in run("inpaint", components, Settings("x", steps=1))
    )


@pytest.mark.parametrize(
    ("task", "unet", "needed"),
    [
        ("generate", "unet-inpaint.ot", "4 are needed"),
        ("img2img", "unet-inpaint.ot", "4 are needed"),
        ("generate", "unet-5.ot", "4 are needed"),
        ("inpaint", "unet-5.ot", "4 or 9 are needed"),
    ],
)
def test_a_unet_for_another_task_is_refused(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, task: str, unet: str, needed: str
) -> None:
    monkeypatch.setattr("sdpy.pipelines.components.load_weights", pytest.fail)
    components = tiny_components(tiny_data, unet=unet)
    with pytest.raises(WeightsError) as caught:
        next(run(task, components, Settings("x")))
    assert str(tiny_data / unet) in str(caught.value)
    assert needed in str(caught.value)


# --- sizes and settings ------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(16, 16), (18, 50), (64, 34)])
def test_sizes_are_width_by_height(components: Components, width: int, height: int) -> None:
    result = one_picture(
        run("generate", components, Settings("x", steps=1), width=width, height=height)
    )
    assert result.shape == (1, 3, height, width)
    assert result.dtype == torch.float32


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (33, 32, "--width 33: use a multiple of 2 from 16 on, such as 32"),
        (32, 47, "--height 47: use a multiple of 2 from 16 on, such as 48"),
        (14, 32, "--width 14: use a multiple of 2 from 16 on, such as 16"),
        (32, 0, "--height 0: use a multiple of 2 from 16 on, such as 16"),
    ],
)
def test_other_sizes_are_refused(
    components: Components, width: int, height: int, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        next(run("generate", components, Settings("x"), width=width, height=height))
    assert str(caught.value) == message


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": 1001},
        {"scheduler": "nope"},
        {"timestep_spacing": "nope"},
        {"eta": 1.5},
        {"eta": float("nan")},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_before_any_model_is_loaded(
    components: Components, monkeypatch: pytest.MonkeyPatch, task: str, changes: Any
) -> None:
    monkeypatch.setattr("sdpy.pipelines.components.load_weights", pytest.fail)
    with pytest.raises(SdpyError) as caught:
        next(run(task, components, Settings("x", **changes)))
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


def test_the_user_s_spacing_and_guidance_go_before_the_variant_s(tiny_data: Path) -> None:
    components = tiny_components(tiny_data, replace(TINY, guidance_scale=3.0))
    own = one_picture(run("generate", components, Settings("cat", steps=3)))
    same = Settings("cat", steps=3, guidance_scale=3.0, timestep_spacing="original")
    assert torch.equal(own, one_picture(run("generate", components, same)))
    for change in ({"guidance_scale": 0.0}, {"timestep_spacing": "leading"}):
        other = one_picture(run("generate", components, replace(same, **change)))
        assert not torch.equal(own, other)


def test_a_prompt_that_is_too_long_is_told(components: Components) -> None:
    long = "lighthouse " * 80
    negative = "cat " * 75 + "dark end"
    settings = Settings(long, negative, steps=1, long_prompt="truncate")
    notices = [e.text for e in run("generate", components, settings) if isinstance(e, Notice)]
    assert len(notices) == 2
    assert notices[0].startswith("the prompt is too long")
    assert notices[1] == "the negative prompt is too long, its end was left out: 'dark end'"


# --- the original's schedule -------------------------------------------------------------------


def test_the_skipped_evaluation_changes_no_grey_level(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step at timestep 0, written out from its formula, after a whole run of ours."""
    runs: list[Tensor] = []

    def noting(components: Components, latents: Tensor) -> Generator[Notice, None, Tensor]:
        runs.append(latents)
        yield from ()
        return torch.zeros(1, 3, SIDE, SIDE)

    components = tiny_components(tiny_data)
    with monkeypatch.context() as patch:
        patch.setattr("sdpy.pipelines.paint.decoding", noting)
        list(run("generate", components, Settings("lighthouse at dark", steps=30)))
    (latents,) = runs
    a_0 = make_alphas_cumprod(TINY.noise)[0].item()
    with torch.inference_mode():
        context = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
        e = tiny_model("unet")(latents, torch.tensor(0), context)
        x0 = (latents - (1 - a_0) ** 0.5 * e) / a_0**0.5
        after = a_0**0.5 * x0 + (1 - a_0) ** 0.5 * e
        pictures = [tiny_model("vae").decode(x / 0.18215) for x in (latents, after)]
    levels = [np.asarray(tensor_to_image(picture)) for picture in pictures]
    assert levels[0].std() > 10
    assert np.array_equal(*levels)
