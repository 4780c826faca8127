"""Text to image, image to image and inpainting: seeds, evaluations, strengths, masks."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdpy.errors import GenerationError, ImageError, SdpyError, UsageError, WeightsError
from sdpy.images.mask import composite
from sdpy.images.tensors import mask_to_tensor, tensor_to_image
from sdpy.models import AutoencoderKL, UNet2DConditionModel
from sdpy.pipelines.events import Event, ImageDecoded, Notice, Progress, StepDecoded
from sdpy.pipelines.generate import generate
from sdpy.pipelines.guidance import classifier_free_guidance
from sdpy.pipelines.loop import KnownRegion
from sdpy.pipelines.request import Request
from sdpy.pipelines.vae import decode
from sdpy.runtime.request_models import RequestModels
from sdpy.runtime.session import Session
from sdpy.schedulers.noise import make_alphas_cumprod
from support.tasks import decoded, img2img, inpaint, one_image, text2img
from support.tiny import TINY, TINY_INPAINT, TINY_V, random_image, tiny_model, tiny_session

SIDE = 32


@pytest.fixture
def session(tiny_data: Path) -> Session:
    return tiny_session(tiny_data)


def white_right_half() -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return mask


def run(task: str, session: Session, request: Request, **options: Any) -> Iterator[Event]:
    image = random_image(SIDE, SIDE)
    if task == "generate":
        return text2img(session, request, **{"width": SIDE, "height": SIDE, **options})
    if task == "img2img":
        return img2img(session, request, image, **{"strength": 0.5, **options})
    return inpaint(session, request, image, options.pop("mask", white_right_half()), **options)


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
    session = tiny_session(tiny_data, unet=unet)
    request = Request("lighthouse", steps=3, seed=5, eta=eta, batch_size=1)
    three = decoded(run(task, session, replace(request, num_samples=3)))
    assert [one.seed for one in three] == [5, 6, 7]
    assert [one.sample for one in three] == [0, 1, 2]
    assert [one.number for one in three] == [1, 2, 3]
    for one in three:
        alone = one_image(run(task, session, replace(request, seed=one.seed)))
        assert torch.equal(one.pixels, alone)
    assert not torch.equal(three[0].pixels, three[1].pixels)


@pytest.mark.parametrize("task", TASKS)
def test_the_global_generator_is_neither_used_nor_touched(session: Session, task: str) -> None:
    request = Request("lighthouse", steps=2, eta=0.5)
    torch.manual_seed(1)
    first = one_image(run(task, session, request))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, one_image(run(task, session, request)))


def test_seed_zero_is_a_seed(session: Session) -> None:
    images = [
        one_image(run("generate", session, Request("x", steps=1, seed=seed))) for seed in (0, 0, 1)
    ]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


# --- evaluations -------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The samples that a UNet is shown, one for each evaluation."""
    seen: list[Tensor] = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        seen.append(sample)
        return forward(self, sample, timestep, **conditions)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    return seen


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float]]:
    """(batch, channels, timestep) of each evaluation of a UNet."""
    seen: list[tuple[int, int, float]] = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        rows = len(conditions["encoder_hidden_states"])
        seen.append((rows, sample.shape[1], float(timestep)))
        return forward(self, sample, timestep, **conditions)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    return seen


ORIGINAL_30 = [float(33 * s) for s in range(30, 0, -1)]  # without the useless one at 0


def test_the_original_s_timesteps_but_the_last(session: Session, evaluations: Any) -> None:
    list(run("generate", session, Request("x", steps=30, guidance_scale=1)))
    assert evaluations == [(1, 4, timestep) for timestep in ORIGINAL_30]


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 1), (0.0, 2), (7.5, 2), (None, 2)])
@pytest.mark.parametrize("task", TASKS)
def test_guidance_of_one_needs_half_the_work(
    session: Session, evaluations: Any, task: str, scale: float | None, batch: int
) -> None:
    list(run(task, session, Request("x", steps=4, guidance_scale=scale)))
    assert evaluations and {batch for batch, _, _ in evaluations} == {batch}


@pytest.mark.parametrize("strength", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_strength_is_the_share_of_the_steps(
    session: Session, evaluations: Any, task: str, strength: float
) -> None:
    events = list(run(task, session, Request("x", steps=30), strength=strength))
    count = int(30 * strength)
    assert [timestep for _, _, timestep in evaluations] == ORIGINAL_30[30 - count :]
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == list(range(count + 1))
    assert {event.steps for event in progress} == {count}


def test_nine_channels_are_shown_the_mask_and_the_masked_image(
    tiny_data: Path, shown: list[Tensor]
) -> None:
    session = tiny_session(tiny_data, TINY_INPAINT, unet="unet-inpaint.ot")
    mask = white_right_half()
    list(run("inpaint", session, Request("x", steps=2, seed=3), mask=mask))

    generator = torch.Generator().manual_seed(3)
    vae = tiny_model("vae")
    with torch.inference_mode():
        posterior = vae.encode(random_image(SIDE, SIDE) * (1 - mask))
        draw = torch.randn(posterior.mean.shape, generator=generator)
        masked = (posterior.mean + posterior.std * draw) * 0.18215
    noise = torch.randn(masked.shape, generator=generator)
    for sample in shown:
        assert len(sample) == 1
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


def test_the_negative_prompt_takes_the_place_of_the_empty_one(session: Session) -> None:
    """At scale 0 only the negative prompt counts, as if it were the prompt."""
    request = Request("cat", negative_prompt="lighthouse", steps=2, guidance_scale=0)
    as_negative = one_image(run("generate", session, request))
    request = Request("lighthouse", steps=2, guidance_scale=1)
    as_prompt = one_image(run("generate", session, request))
    torch.testing.assert_close(as_negative, as_prompt, rtol=1e-4, atol=1e-4)
    other = one_image(run("generate", session, replace(request, prompt="cat")))
    assert (as_prompt - other).abs().max() > 0.01


# --- strength ----------------------------------------------------------------------------------


def test_strength_zero_encodes_and_decodes_without_noise(session: Session) -> None:
    result = one_image(run("img2img", session, Request("x", steps=4, seed=8), strength=0.0))
    vae, image = tiny_model("vae"), random_image(SIDE, SIDE)
    with torch.inference_mode():
        posterior = vae.encode(image)
        draw = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(8))
        expected = vae.decode(posterior.mean + posterior.std * draw)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_strength_too_small_for_a_step_is_as_none(session: Session) -> None:
    request = Request("x", steps=30)
    none = one_image(run("img2img", session, request, strength=0.0))
    little = one_image(run("img2img", session, request, strength=0.01))
    assert torch.equal(none, little)


def test_inpainting_at_full_strength_begins_with_pure_noise(
    session: Session, shown: list[Tensor]
) -> None:
    list(run("inpaint", session, Request("x", steps=2, seed=4), strength=1.0))
    generator = torch.Generator().manual_seed(4)
    torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=generator)  # the posterior's
    assert torch.equal(shown[0], torch.randn(shown[0].shape, generator=generator))


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_other_strengths_are_refused(session: Session, task: str, strength: float) -> None:
    with pytest.raises(UsageError, match="strength"):
        next(run(task, session, Request("x"), strength=strength))


# --- inpainting --------------------------------------------------------------------------------


@pytest.mark.parametrize("unet", ["unet.ot", "unet-inpaint.ot"])
def test_pixels_outside_the_mask_are_kept(tiny_data: Path, unet: str) -> None:
    session = tiny_session(tiny_data, TINY_INPAINT, unet=unet)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 5:20, 9:30] = 1
    image = tensor_to_image(random_image(SIDE, SIDE))
    result = one_image(run("inpaint", session, Request("x", steps=3), mask=mask))
    white = tensor_to_image(mask.expand(1, 3, -1, -1) * 2 - 1).convert("L")
    assert torch.equal(mask_to_tensor(white), mask)
    finished = np.asarray(composite(image, tensor_to_image(result), white))
    inside = mask[0, 0].bool().numpy()
    assert np.array_equal(finished[~inside], np.asarray(image)[~inside])
    assert np.array_equal(finished[inside], np.asarray(tensor_to_image(result))[inside])
    assert not np.array_equal(finished[inside], np.asarray(image)[inside])


@pytest.mark.parametrize("variant", [TINY, TINY_V], ids=["epsilon", "v_prediction"])
def test_blending_ends_with_the_image_s_own_latents_outside(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, variant: Any
) -> None:
    seen: list[Tensor] = []

    def noting(
        models: RequestModels, latents: Tensor, **options: Any
    ) -> Generator[Notice, None, Tensor]:
        seen.append(latents)
        yield from ()
        return torch.zeros(1, 3, SIDE, SIDE)

    monkeypatch.setattr("sdpy.pipelines.generate.decode", noting)
    session = tiny_session(tiny_data, variant)
    list(run("inpaint", session, Request("x", steps=3, seed=1)))
    with torch.inference_mode():
        posterior = tiny_model("vae").encode(random_image(SIDE, SIDE))
        draw = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
        original = (posterior.mean + posterior.std * draw) * 0.18215
    outside = white_right_half()[..., ::2, ::2].expand_as(original) == 0
    torch.testing.assert_close(seen[0][outside], original[outside], rtol=1e-5, atol=1e-6)
    assert (seen[0] - original)[~outside].abs().max() > 0.1


@pytest.mark.parametrize("unet", ["unet.ot", "unet-inpaint.ot"])
def test_a_latent_is_repainted_if_any_of_its_pixels_is(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, unet: str
) -> None:
    """However thin the stroke, wherever it lies, and however little is repainted."""
    seen: list[Tensor] = []
    put_back, forward = KnownRegion.put_back, UNet2DConditionModel.forward

    def noting(self: KnownRegion, *args: Any) -> Tensor:
        seen.append(self.mask)
        return put_back(self, *args)

    def showing(self: Any, sample: Tensor, *args: Any, **options: Any) -> Tensor:
        if sample.shape[1] == 9:
            seen.append(sample[:, 4:5])
        return forward(self, sample, *args, **options)

    monkeypatch.setattr(KnownRegion, "put_back", noting)
    monkeypatch.setattr(UNet2DConditionModel, "forward", showing)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 5] = 0.1
    mask[..., 8, 10] = 1
    expected = torch.zeros(1, 1, SIDE // 2, SIDE // 2)
    expected[..., 2] = 1
    expected[..., 4, 5] = 1
    session = tiny_session(tiny_data, unet=unet)
    list(run("inpaint", session, Request("x", steps=1), mask=mask))
    assert torch.equal(seen[0], expected)


def test_a_mask_that_repaints_nothing_is_refused(session: Session) -> None:
    with pytest.raises(ImageError, match="nothing to repaint"):
        next(run("inpaint", session, Request("x"), mask=torch.zeros(1, 1, SIDE, SIDE)))


def test_an_all_white_mask_repaints_everything(session: Session) -> None:
    all_white = torch.ones(1, 1, SIDE, SIDE)
    request = Request("x", steps=3, seed=2)
    blended = one_image(run("inpaint", session, request, mask=all_white))
    assert (blended - random_image(SIDE, SIDE)).abs().mean() > 0.05


def test_an_ordinary_unet_in_the_place_of_an_inpainting_one_is_told(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, TINY_INPAINT)
    (notice,) = (
        event.text
        for event in run("inpaint", session, Request("x", steps=1))
        if isinstance(event, Notice)
    )
    assert str(tiny_data / "unet.ot") in notice
    session = tiny_session(tiny_data, TINY_INPAINT, unet="unet-inpaint.ot")
    assert not any(
        isinstance(event, Notice) for event in run("inpaint", session, Request("x", steps=1))
    )


@pytest.mark.parametrize("task", ["generate", "img2img"])
def test_without_a_mask_an_inpainting_unet_generates_everything(
    tiny_data: Path, shown: list[Tensor], task: str
) -> None:
    """As inpainting with a white mask does, which tests compare with diffusers."""
    session = tiny_session(tiny_data, TINY_INPAINT, unet="unet-inpaint.ot")
    request = Request("lighthouse", steps=3, seed=5, num_samples=2, batch_size=2)
    options = {} if task == "generate" else {"strength": 0.7}
    found = decoded(run(task, session, request, **options))
    assert {sample.shape[1] for sample in shown} == {9}
    assert all((sample[:, 4] == 1).all() for sample in shown)
    white = torch.ones(1, 1, SIDE, SIDE)
    expected = decoded(run("inpaint", session, request, mask=white, **options))
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize("task", TASKS)
def test_a_unet_with_other_input_channels_is_refused(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr("sdpy.runtime.loading.load_weights", pytest.fail)
    session = tiny_session(tiny_data, unet="unet-5.ot")
    with pytest.raises(WeightsError) as caught:
        next(run(task, session, Request("x")))
    assert f"{tiny_data / 'unet-5.ot'} has a UNet with 5 input channels" in str(caught.value)
    assert "sdpy runs those with 4, or 9 for inpainting" in str(caught.value)


# --- sizes and request ------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(16, 16), (18, 50), (64, 34)])
def test_sizes_are_width_by_height(session: Session, width: int, height: int) -> None:
    result = one_image(run("generate", session, Request("x", steps=1), width=width, height=height))
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
def test_other_sizes_are_refused(session: Session, width: int, height: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        next(run("generate", session, Request("x"), width=width, height=height))
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
def test_request_that_cannot_work_are_refused_before_any_model_is_loaded(
    session: Session, monkeypatch: pytest.MonkeyPatch, task: str, changes: Any
) -> None:
    monkeypatch.setattr("sdpy.runtime.loading.load_weights", pytest.fail)
    with pytest.raises(SdpyError) as caught:
        next(run(task, session, Request("x", **changes)))
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


def test_the_user_s_spacing_and_guidance_go_before_the_variant_s(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, replace(TINY, guidance_scale=3.0))
    own = one_image(run("generate", session, Request("cat", steps=3)))
    same = Request("cat", steps=3, guidance_scale=3.0, timestep_spacing="original")
    assert torch.equal(own, one_image(run("generate", session, same)))
    for change in ({"guidance_scale": 0.0}, {"timestep_spacing": "leading"}):
        other = one_image(run("generate", session, replace(same, **change)))
        assert not torch.equal(own, other)


def test_a_prompt_that_is_too_long_is_told(session: Session) -> None:
    long = "lighthouse " * 80
    negative = "cat " * 75 + "dark end"
    request = Request(long, negative_prompt=negative, steps=1, long_prompt="truncate")
    notices = [e.text for e in run("generate", session, request) if isinstance(e, Notice)]
    assert len(notices) == 2
    assert notices[0].startswith("the prompt is too long")
    assert notices[1] == "the negative prompt is too long, its end was left out: 'dark end'"


# --- the original's schedule -------------------------------------------------------------------


def test_the_skipped_evaluation_changes_no_grey_level(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step at timestep 0, written out from its formula, after a whole run of ours."""
    runs: list[Tensor] = []

    def noting(
        models: RequestModels, latents: Tensor, **options: Any
    ) -> Generator[Notice, None, Tensor]:
        runs.append(latents)
        yield from ()
        return torch.zeros(1, 3, SIDE, SIDE)

    session = tiny_session(tiny_data)
    with monkeypatch.context() as patch:
        patch.setattr("sdpy.pipelines.generate.decode", noting)
        list(run("generate", session, Request("lighthouse at dark", steps=30)))
    (latents,) = runs
    a_0 = make_alphas_cumprod(TINY.noise)[0].item()
    with torch.inference_mode():
        context = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
        e = tiny_model("unet")(latents, torch.tensor(0), context)
        x0 = (latents - (1 - a_0) ** 0.5 * e) / a_0**0.5
        after = a_0**0.5 * x0 + (1 - a_0) ** 0.5 * e
        images = [tiny_model("vae").decode(x / 0.18215) for x in (latents, after)]
    levels = [np.asarray(tensor_to_image(image)) for image in images]
    assert levels[0].std() > 10
    assert np.array_equal(*levels)


def test_a_strength_of_less_than_a_step_is_told(session: Session) -> None:
    def notices(strength: float, steps: int) -> list[str]:
        events = run("img2img", session, Request("x", steps=steps), strength=strength)
        return [event.text for event in events if isinstance(event, Notice)]

    (told,) = notices(strength=0.1, steps=7)
    assert told.startswith("--strength 0.1 of 7 steps is not even one step")
    assert told.endswith("use --strength 0.143 or more")
    assert notices(strength=0.143, steps=7) == notices(strength=0.0, steps=7) == []


def test_an_image_of_one_colour_may_stay_one(session: Session, monkeypatch: Any) -> None:
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: torch.ones(1, 3, SIDE, SIDE))
    white = torch.ones(1, 3, SIDE, SIDE)
    request = Request("x", steps=2, strength=0.5)
    list(img2img(session, request, white))
    with pytest.raises(GenerationError, match="one colour"):
        list(img2img(session, request, random_image(SIDE, SIDE)))
    with pytest.raises(GenerationError, match="one colour"):
        list(text2img(session, replace(request, strength=None), width=SIDE, height=SIDE))


def test_an_image_of_a_step_may_have_one_colour(session: Session, monkeypatch: Any) -> None:
    colours = iter([torch.zeros(1, 3, SIDE, SIDE), random_image(SIDE, SIDE)])
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: next(colours))
    request = Request("x", steps=2, width=SIDE, height=SIDE)
    events = [type(event) for event in generate(session, [request], step_interval=1)]
    assert events.count(StepDecoded) == events.count(ImageDecoded) == 1


def test_latents_that_grew_are_not_the_autoencoder_s_fault(
    session: Session, monkeypatch: Any
) -> None:
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: z.repeat(1, 1, 2, 2) * math.inf)
    with session.models().vae(), pytest.raises(GenerationError, match="latents grew to 1e\\+06"):
        list(decode(session.models(), torch.full((1, 4, 16, 16), 1e6)))
