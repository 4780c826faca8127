"""What happens when memory runs out or numbers go wrong in the midst of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdpy.runtime.execution as execution_module
from sdpy.errors import GenerationError, ShortageError, is_shortage
from sdpy.models import AutoencoderKL, UNet2DConditionModel
from sdpy.models.attention import Attention
from sdpy.models.vae import Decoder, Encoder
from sdpy.optimizations.exact.sliced_attention import SlicedAttention
from sdpy.pipelines.events import Detail, Event, ImageDecoded, Notice, Progress
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.fallbacks import Fallback, attempt
from sdpy.runtime.session import Session
from support.compare import relative_error
from support.tasks import img2img, text2img
from support.tiny import placed, random_image, tiny_session

REQUEST = Request("x", steps=3)
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB, max allowed: 9 GB)"),
]


def run_request(session: Session, request: Request = REQUEST) -> tuple[Tensor, list[str]]:
    """A image and the notices before it."""
    return outcome(text2img(session, request, width=32, height=32))


def outcome(events: Iterator[Event]) -> tuple[Tensor, list[str]]:
    told, images = [], []
    for event in events:
        if isinstance(event, Notice):
            told.append(event.text)
        elif isinstance(event, ImageDecoded):
            images.append(event.pixels)
    (image,) = images
    return image, told


Failing = Callable[..., list[int]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Makes calls of a class's forward, counted from 0, raise an error; returns those that did."""

    def failing(cls: type, calls: set[int], error: Exception) -> list[int]:
        forward = cls.forward  # type: ignore[attr-defined]
        count, raised = 0, []

        def fail(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 in calls:
                raised.append(count - 1)
                raise error
            return forward(self, *args, **options)

        monkeypatch.setattr(cls, "forward", fail)
        return raised

    return failing


# --- memory ------------------------------------------------------------------------------------


def test_the_allocator_s_own_words_are_known() -> None:
    """As this version of torch has them."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_shortage(caught.value)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_shortages_are_known(error: Exception) -> None:
    assert is_shortage(error)


@pytest.mark.parametrize("error", [ValueError("memory"), RuntimeError("mat1 and mat2"), OSError()])
def test_other_errors_are_not_shortages(error: Exception) -> None:
    assert not is_shortage(error)
    events = attempt(lambda: (_ for _ in ()).throw(error), [Fallback("x", lambda: None)], "it")
    with pytest.raises(type(error)):
        next(events)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_decoder_is_run_in_tiles(tiny_data: Path, failing: Failing, error: Exception) -> None:
    session = tiny_session(tiny_data, execution=Execution(fast_kernels=False))
    expected, told = run_request(session)
    assert told == []
    assert failing(Decoder, {0}, error) == []
    image, told = run_request(session)
    assert told == ["not enough memory for the autoencoder: running it in tiles"]
    assert relative_error(image, expected) <= 1e-5


def test_the_next_image_is_tried_as_usual(tiny_data: Path, failing: Failing) -> None:
    """Memory may be there again."""
    failing(Decoder, {0}, MemoryError())
    request = replace(REQUEST, num_samples=2, batch_size=1)
    session = tiny_session(tiny_data, execution=Execution(fast_kernels=False))
    kinds = [type(event) for event in text2img(session, request, width=32, height=32)]
    assert [kind for kind in kinds if kind in (Notice, ImageDecoded)] == [
        Notice,
        ImageDecoded,
        ImageDecoded,
    ]


def test_tiles_are_not_tried_twice(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shortage(*_: Any) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(AutoencoderKL, "decode", shortage)
    session = tiny_session(tiny_data, execution=Execution(tiled=True))
    with pytest.raises(ShortageError, match="not enough memory for the autoencoder: use a sm"):
        run_request(session)


def test_a_gpu_s_decoder_is_run_on_the_cpu_at_last(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    """Another number of the CPU stands in for a GPU."""
    plain = Execution(fast_kernels=False)
    expected, _ = run_request(tiny_session(tiny_data, execution=plain))
    placement = placed(vae=torch.device("cpu", 0))
    assert placement["vae"] != Placement()["vae"]
    decode, count = AutoencoderKL.decode, 0

    def short_twice(self: AutoencoderKL, latents: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents)

    monkeypatch.setattr(AutoencoderKL, "decode", short_twice)
    image, told = run_request(tiny_session(tiny_data, placement=placement, execution=plain))
    assert told == [
        "not enough memory for the autoencoder: running it in tiles",
        "not enough memory for the autoencoder: running it on the CPU",
    ]
    assert relative_error(image, expected) <= 1e-5


def test_the_encoder_likewise(tiny_data: Path, failing: Failing) -> None:
    def run() -> tuple[Tensor, list[str]]:
        session = tiny_session(tiny_data, execution=Execution(fast_kernels=False))
        image = random_image(32, 32)
        return outcome(img2img(session, REQUEST, image, strength=0.7))

    expected, _ = run()
    failing(Encoder, {0}, MemoryError())
    image, told = run()
    assert told == ["not enough memory for the autoencoder: running it in tiles"]
    assert relative_error(image, expected) <= 1e-5


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++-2m", "euler-a", "pndm"])
def test_a_step_is_done_again_with_sliced_attention(
    tiny_data: Path, failing: Failing, scheduler: str
) -> None:
    """Once, without a trace in samplers that remember or draw noise."""
    request = Request("x", steps=4, scheduler=scheduler)
    expected, _ = run_request(tiny_session(tiny_data), request)
    assert failing(UNet2DConditionModel, {2}, MemoryError()) == []
    image, told = run_request(tiny_session(tiny_data, execution=Execution()), request)
    assert told == [
        "not enough memory for the UNet: computing its attention in slices from here on"
    ]
    assert relative_error(image, expected) <= 1e-4


def test_it_is_said_when_it_happens(tiny_data: Path, failing: Failing) -> None:
    failing(UNet2DConditionModel, {1}, MemoryError())
    plain = tiny_session(tiny_data, execution=Execution(fast_kernels=False))
    events = list(text2img(plain, REQUEST, width=32, height=32))
    steps = [
        event.step if isinstance(event, Progress) else type(event).__name__
        for event in events
        if not isinstance(event, Detail)
    ]
    assert steps == ["PromptTokenized", 0, 1, "Notice", 2, 3, "ImageDecoded"]


def test_the_attention_is_sliced(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, failing: Failing
) -> None:
    sliced: list[bool] = []
    forward = Attention.forward

    def look(self: Attention, *args: Any) -> Tensor:
        sliced.append(isinstance(self.attend, SlicedAttention))
        return forward(self, *args)

    monkeypatch.setattr(Attention, "forward", look)
    failing(UNet2DConditionModel, {1}, MemoryError())
    run_request(tiny_session(tiny_data, execution=Execution(fast_kernels=False)))
    third = len(sliced) // 3
    assert sliced == [False] * third + [True] * 2 * third


def test_slices_that_are_there_are_no_fallback(tiny_data: Path, failing: Failing) -> None:
    failing(UNet2DConditionModel, {1}, MemoryError())
    session = tiny_session(
        tiny_data, execution=Execution(sliced_attention_size=1, fast_kernels=False)
    )
    with pytest.raises(ShortageError, match="not enough memory for the UNet: use a smaller"):
        run_request(session)


def test_twice_is_too_often(tiny_data: Path, failing: Failing) -> None:
    failing(UNet2DConditionModel, {1, 3}, MemoryError())
    with pytest.raises(ShortageError) as caught:
        run_request(tiny_session(tiny_data, execution=Execution(fast_kernels=False)))
    assert caught.value.exit_code == 7
    assert "\n" not in str(caught.value)


# --- numbers -----------------------------------------------------------------------------------


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Changes what the decoder gives."""
    decode = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, x: change(decode(self, x)))


def one_bad(bad: float) -> Callable[[Tensor], Tensor]:
    def change(image: Tensor) -> Tensor:
        image = image.clone()
        image[0, 1, 3, 4] = bad
        return image

    return change


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_no_number_is_an_error(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    changing(monkeypatch, one_bad(bad))
    with pytest.raises(GenerationError, match="pixels that are not finite.*vae.ot") as caught:
        run_request(tiny_session(tiny_data))
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda image: torch.full_like(image, -1),
        lambda image: image - 100,  # black, once it is cut to what a file can hold
        lambda image: image + 100,
        lambda image: image[..., :1, :1].clamp(-1, 1).expand_as(image) + 1e-4 * image,
    ],
    ids=["black", "below black", "above white", "some colour"],
)
def test_one_colour_is_an_error(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]
) -> None:
    changing(monkeypatch, change)
    with pytest.raises(GenerationError, match="one colour"):
        run_request(tiny_session(tiny_data))


def test_a_single_other_pixel_is_a_image(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changing(monkeypatch, lambda image: one_bad(0.5)(torch.full_like(image, -1)))
    assert run_request(tiny_session(tiny_data))[1] == []


def has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution_module, "cpu_has_bfloat16", lambda: True)


def test_the_decoder_is_tried_once_more_in_fp32(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bfloat16(monkeypatch)
    decode, dtypes = AutoencoderKL.decode, []

    def overflowing(self: AutoencoderKL, latents: Tensor) -> Tensor:
        dtypes.append(latents.dtype)
        image = decode(self, latents)
        return image if latents.dtype == torch.float32 else image * torch.nan

    monkeypatch.setattr(AutoencoderKL, "decode", overflowing)
    session = tiny_session(tiny_data, execution=Execution(dtype=torch.bfloat16))
    image, told = run_request(session)
    assert dtypes == [torch.bfloat16, torch.float32]
    assert told == ["the decoder gave pixels that are not finite: doing it again in fp32"]
    assert image.isfinite().all()


def test_once_more_is_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bfloat16(monkeypatch)
    changing(monkeypatch, lambda image: image * torch.nan)
    session = tiny_session(tiny_data, execution=Execution(dtype=torch.bfloat16))
    with pytest.raises(GenerationError, match="not finite"):
        run_request(session)


def test_latents_of_a_image_that_are_not_finite(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GenerationError, match="became latents that are not finite"):
        outcome(
            img2img(
                tiny_session(tiny_data),
                REQUEST,
                torch.full((1, 3, 32, 32), torch.nan),
                strength=0.5,
            )
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("dtype", "hint"), [(torch.float32, "other weights"), (torch.bfloat16, "--dtype fp32")]
)
def test_the_step_is_named_at_which_latents_go_wrong(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, bad: float, dtype: torch.dtype, hint: str
) -> None:
    has_bfloat16(monkeypatch)
    forward, count = UNet2DConditionModel.forward, 0

    def bad_at_last(self: Any, *args: Any, **options: Any) -> Tensor:
        nonlocal count
        count += 1
        prediction = forward(self, *args, **options).clone()
        if count == 2:
            prediction[:, 1, 2, 3] = bad
        return prediction

    monkeypatch.setattr(UNet2DConditionModel, "forward", bad_at_last)
    execution = Execution(dtype=dtype, fast_kernels=False)
    with pytest.raises(GenerationError, match="step 2 of 3 gave latents") as caught:
        run_request(tiny_session(tiny_data, execution=execution))
    for words in ("--scheduler", "--guidance-scale", hint):
        assert words in str(caught.value)
