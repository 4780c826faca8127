"""Images that are computed together are the same as alone, in all tasks and with all options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import write_checkpoint
from sdpy.errors import ShortageError, UsageError
from sdpy.models import AutoencoderKL, ControlNetConfig, ControlNetModel, UNet2DConditionModel
from sdpy.pipelines.controlnet import Control
from sdpy.pipelines.events import Detail, Event, ImageDecoded, Notice, Progress
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from support.compare import assert_same_images, randomise
from support.tiny import TINY, random_image, tiny_session

SIDE = 32


def decoded(events: Iterator[Event]) -> list[ImageDecoded]:
    return [event for event in events if isinstance(event, ImageDecoded)]


def together(session: Session, *requests: Request, batch: int = 8) -> list[Tensor]:
    """The images of some requests, in batches."""
    asked = [replace(request, batch_size=batch) for request in requests]
    return [one.pixels for one in decoded(generate(session, asked))]


def alone(session: Session, *requests: Request) -> list[Tensor]:
    """The same images, each by a request of its own."""
    singles = [
        replace(request, seed=request.seed + k, num_samples=1)
        for request in requests
        for k in range(request.num_samples)
    ]
    return [one.pixels for single in singles for one in decoded(generate(session, [single]))]


def white_right_half() -> Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., SIDE // 2 :] = 1
    return mask


TASKS: dict[str, dict[str, Any]] = {
    "text2img": {"width": SIDE, "height": SIDE},
    "img2img": {"image": random_image(SIDE, SIDE), "strength": 0.7},
    "inpaint": {"image": random_image(SIDE, SIDE), "mask": white_right_half(), "strength": 0.7},
}


@pytest.fixture
def session(tiny_data: Path) -> Session:
    return tiny_session(tiny_data)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each evaluation of a UNet is given."""
    seen: list[int] = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, *inputs: Any, **options: Any) -> Tensor:
        seen.append(len(sample))
        return forward(self, sample, *inputs, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    return seen


# --- the same images ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [True, False], ids=["fast kernels", "plain kernels"])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_any_size_gives_the_same_images(
    tiny_data: Path, task: str, kernels: bool, rows: list[int]
) -> None:
    session = tiny_session(tiny_data, execution=Execution(fast_kernels=kernels))
    request = Request("lighthouse", steps=4, seed=5, num_samples=5, **TASKS[task])
    expected = alone(session, request)
    assert set(rows) == {1}
    for batch in (1, 2, 3, 5):
        rows.clear()
        assert_same_images(together(session, request, batch=batch), expected)
        assert max(rows) == batch


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "options",
    [
        {"eta": 1.0},
        {"scheduler": "euler-a"},
        {"scheduler": "dpm++-3m-sde"},
        {"scheduler": "kdpm2-a"},
        {"scheduler": "ddpm"},
        {"scheduler": "unipc", "sigmas": "karras"},
        {"scheduler": "pndm"},
        {"scheduler": "lcm"},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.7},
        {"guidance_interval": (0.2, 0.8)},
        {"deepcache": 2},
        {"token_merging": 0.5},
        {"deepcache": 3, "token_merging": 0.3, "guidance_interval": (0.0, 0.5)},
    ],
    ids=str,
)
def test_every_way_to_get_there(session: Session, task: str, options: dict[str, Any]) -> None:
    request = Request("lighthouse", steps=5, seed=1, num_samples=3, **TASKS[task], **options)
    assert_same_images(together(session, request), alone(session, request))


def test_a_unet_made_for_inpainting(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, unet="unet-inpaint.ot")
    request = Request("cat", steps=4, num_samples=3, **TASKS["inpaint"])
    assert_same_images(together(session, request), alone(session, request))


def test_prompts_of_different_lengths(session: Session, rows: list[int]) -> None:
    """One, two, three chunks: shorter ones are repeated, which changes nothing."""
    requests = [
        Request(prompt, negative_prompt=negative, steps=3, seed=seed, **TASKS["text2img"])
        for seed, (prompt, negative) in enumerate(
            [
                ("cat", ""),
                ("cat dark " * 60, "lighthouse"),
                ("cat BREAK dark BREAK lighthouse", ""),
                ("dark", "cat at " * 70),
            ]
        )
    ]
    images = together(session, *requests)
    assert max(rows) == 4
    assert_same_images(images, alone(session, *requests))


def test_each_image_has_its_own_guidance_and_input(session: Session, rows: list[int]) -> None:
    requests = [
        Request(
            "cat",
            negative_prompt=negative,
            image=random_image(SIDE, SIDE, seed=seed),
            steps=4,
            seed=seed,
            guidance_scale=scale,
        )
        for seed, (scale, negative) in enumerate([(7.5, ""), (2.0, "dark"), (0.0, "lighthouse")])
    ]
    images = together(session, *requests)
    assert max(rows) == 3
    assert_same_images(images, alone(session, *requests))
    assert not torch.equal(images[0], images[1])


def test_requests_that_differ_in_more_are_computed_apart(session: Session, rows: list[int]) -> None:
    first = Request("cat", steps=2, **TASKS["text2img"])
    requests = [first, replace(first, steps=3), replace(first, width=48), first]
    images = together(session, *requests)
    assert set(rows) == {1}
    assert [tuple(image.shape[-2:]) for image in images] == [(32, 32)] * 2 + [(32, 48), (32, 32)]
    assert torch.equal(images[0], images[3])


def test_controlnets(tiny_data: Path, tmp_path: Path, rows: list[int]) -> None:
    config = ControlNetConfig(unet=TINY.unet, conditioning_embedding_out_channels=(4, 8))
    weights = tmp_path / "control.safetensors"
    write_checkpoint(weights, randomise(ControlNetModel(config), seed=9).state_dict())
    session = tiny_session(tiny_data)

    def control(seed: int) -> tuple[Control, ...]:
        image = (random_image(SIDE, SIDE, seed=seed) + 1) / 2
        return (Control(weights, image, scale=0.8, end=0.75),)

    requests = [
        Request("cat", steps=4, seed=seed, num_samples=2, controls=control(seed))
        for seed in (0, 10)
    ]
    images = together(session, *requests)
    assert max(rows) == 4
    assert_same_images(images, alone(session, *requests))
    plain = alone(session, *[replace(request, controls=()) for request in requests])
    assert not torch.equal(images[0], plain[0])


# --- order, progress, batch size ----------------------------------------------------------------


def test_the_images_of_a_batch_come_before_the_next_batch(session: Session) -> None:
    request = Request("x", steps=2, num_samples=5, batch_size=2, **TASKS["text2img"])
    log: list[Any] = []
    for event in generate(session, [request]):
        if isinstance(event, Progress):
            log.append((event.first, event.last, event.images, event.step, event.steps))
        elif isinstance(event, ImageDecoded):
            log.append((event.number, event.seed))
    expected: list[Any] = []
    for first, last in ((1, 2), (3, 4), (5, 5)):
        expected += [(first, last, 5, step, 2) for step in range(3)]
        expected += [(number, 31 + number) for number in range(first, last + 1)]
    assert log == expected


@pytest.mark.parametrize("size", [0, -1, 1025, "many", "1.5", ""])
def test_a_batch_size_that_cannot_be(size: Any) -> None:
    from sdpy.options import parse

    with pytest.raises(UsageError, match="--batch-size"):
        parse(Request, {"batch_size": size})


def test_the_choice_is_told(session: Session) -> None:
    request = Request("x", steps=1, num_samples=3, batch_size=2, **TASKS["text2img"])
    told = [event.text for event in generate(session, [request]) if isinstance(event, Detail)]
    assert "images computed together: 2" in told


# --- shortage and interruption ------------------------------------------------------------------


def shortage_above(monkeypatch: pytest.MonkeyPatch, cls: Any, method: str, limit: int) -> None:
    """Memory does not suffice for more than so many samples together."""
    original = getattr(cls, method)

    def limited(self: Any, sample: Tensor, *args: Any, **options: Any) -> Any:
        if len(sample) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, sample, *args, **options)

    monkeypatch.setattr(cls, method, limited)


@pytest.mark.parametrize(
    ("cls", "method"), [(UNet2DConditionModel, "forward"), (AutoencoderKL, "decode")]
)
def test_a_shortage_halves_the_batch(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, method: str
) -> None:
    request = Request("x", steps=3, num_samples=6, eta=1.0, batch_size=5, **TASKS["text2img"])
    expected = alone(tiny_session(tiny_data), request)
    shortage_above(monkeypatch, cls, method, 2)
    events = list(generate(tiny_session(tiny_data), [request]))
    told = [event.text for event in events if isinstance(event, Notice)]
    assert "not enough memory for 5 images at a time: going on with 2 at a time" in told
    assert_same_images([one.pixels for one in decoded(iter(events))], expected)
    assert [one.number for one in decoded(iter(events))] == [1, 2, 3, 4, 5, 6]


def test_one_image_that_does_not_fit_is_an_error(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortage_above(monkeypatch, UNet2DConditionModel, "forward", 0)
    request = Request("x", steps=3, num_samples=2, batch_size=2, **TASKS["text2img"])
    with pytest.raises(ShortageError):
        list(generate(tiny_session(tiny_data), [request]))


def test_an_interrupted_batch_leaves_the_session_as_it_was(session: Session) -> None:
    request = Request("x", steps=4, num_samples=2, batch_size=2, deepcache=2, token_merging=0.5)
    expected = together(session, request)
    events = generate(session, [request])
    for event in events:
        if isinstance(event, Progress) and event.step == 2:
            break
    events.close()
    assert_same_images(together(session, request), expected)
    plain = replace(request, deepcache=None, token_merging=None)
    assert_same_images(together(session, plain), alone(session, plain))
