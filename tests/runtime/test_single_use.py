"""A session for a single request: what is made of weights has to pay off within it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpy.runtime.loading as loading_module
from sdpy.checkpoints import Lora, write_checkpoint
from sdpy.optimizations.base import PassContext
from sdpy.pipelines.events import ImageDecoded
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.execution import Execution
from sdpy.runtime.session import Session
from sdpy.zoo.source import ModelSource
from support.compare import normal, relative_error
from support.tiny import tiny_session, tiny_source, tiny_weights

REQUEST = Request("lighthouse", steps=1, width=32, height=32)


def image(session: Session, request: Request = REQUEST, **options: Any) -> Tensor:
    (found,) = (
        event.pixels
        for event in generate(session, [request], **options)
        if isinstance(event, ImageDecoded)
    )
    return found


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[PassContext]:
    """How each model was to compute, in the order in which they were loaded."""
    found: list[PassContext] = []

    def note(model: nn.Module, context: PassContext) -> None:
        found.append(context)
        apply_passes(model, context)

    apply_passes = loading_module.apply_passes
    monkeypatch.setattr(loading_module, "apply_passes", note)
    return found


def evaluations(contexts: list[PassContext]) -> list[int | None]:
    found = [context.evaluations for context in contexts]
    contexts.clear()
    return found


def test_models_are_told_how_often_they_compute(
    tiny_data: Path, contexts: list[PassContext]
) -> None:
    for request, expected in (
        (REQUEST, [1, 1, 1]),
        (replace(REQUEST, steps=4), [1, 4, 1]),
        (replace(REQUEST, steps=3, scheduler="heun"), [1, 5, 1]),
    ):
        image(tiny_session(tiny_data, keep_models=False), request)
        assert evaluations(contexts) == expected
    batches = replace(REQUEST, steps=2, num_samples=5, batch_size=2)
    list(generate(tiny_session(tiny_data, keep_models=False), [batches]))
    assert evaluations(contexts) == [1, 6, 3]


def test_nobody_knows_where_models_stay_or_steps_are_shown(
    tiny_data: Path, contexts: list[PassContext]
) -> None:
    image(tiny_session(tiny_data))
    assert evaluations(contexts) == [None] * 3
    image(tiny_session(tiny_data, keep_models=False), step_interval=1)
    assert evaluations(contexts) == [None] * 3


@pytest.mark.parametrize("steps", [1, 4])
def test_the_image_is_that_of_a_session_but_for_rounding(tiny_data: Path, steps: int) -> None:
    request = replace(REQUEST, steps=steps)
    kept = image(tiny_session(tiny_data), request)
    once = image(tiny_session(tiny_data, keep_models=False), request)
    assert relative_error(once, kept) <= 1e-4


def test_from_nine_evaluations_on_it_is_the_same_to_the_bit(tiny_data: Path) -> None:
    request = replace(REQUEST, steps=9)
    kept = image(tiny_session(tiny_data), request)
    assert torch.equal(kept, image(tiny_session(tiny_data, keep_models=False), request))


# --- weights of another dtype ------------------------------------------------------------------


def half_source(data: Path, folder: Path) -> ModelSource:
    """The tiny model with a UNet in float16, in a file that can be mapped."""
    path = folder / "unet.safetensors"
    write_checkpoint(path, {name: one.half() for name, one in tiny_weights("unet").items()})
    source = tiny_source(data)
    files = replace(source.files, weights={**source.files.weights, "unet": path})
    return replace(source, files=files)


def a_lora(folder: Path) -> tuple[Lora, ...]:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    width = len(
        tiny_weights("unet")["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    )
    tensors = {
        f"{key}.lora_down.weight": normal(4, width),
        f"{key}.lora_up.weight": normal(width, 4),
    }
    write_checkpoint(folder / "lora.safetensors", tensors)
    return (Lora(folder / "lora.safetensors", 0.5),)


@pytest.mark.parametrize("with_lora", [False, True])
def test_weights_for_a_single_evaluation_are_converted_when_they_are_used(
    tiny_data: Path, tmp_path: Path, contexts: list[PassContext], with_lora: bool
) -> None:
    source = half_source(tiny_data, tmp_path)
    request = replace(REQUEST, lora=a_lora(tmp_path) if with_lora else ())
    kept = image(Session(source), request)
    assert not any(context.streamed for context in contexts)
    contexts.clear()
    once = image(Session(source, keep_models=False), request)
    assert [context.streamed for context in contexts] == [False, True, False]
    assert relative_error(once, kept) <= 1e-4
    contexts.clear()
    image(Session(source, keep_models=False), replace(request, steps=2))
    assert not any(context.streamed for context in contexts)
    if with_lora:
        assert relative_error(once, image(Session(source))) > 1e-3


@pytest.mark.parametrize("fast_kernels", [False, True])
def test_in_bfloat16_too(
    tiny_data: Path,
    contexts: list[PassContext],
    monkeypatch: pytest.MonkeyPatch,
    fast_kernels: bool,
) -> None:
    """The autoencoder's weights are few, and it computes faster with what is made of them."""
    monkeypatch.setattr("sdpy.runtime.execution.cpu_has_bfloat16", lambda: True)
    execution = Execution(dtype=torch.bfloat16, fast_kernels=fast_kernels)
    kept = image(tiny_session(tiny_data, execution=execution))
    contexts.clear()
    once = image(tiny_session(tiny_data, execution=execution, keep_models=False))
    assert [context.streamed for context in contexts] == [True, True, False]
    if fast_kernels:  # convolutions take other forms, of which none is farther from float32
        exact = image(tiny_session(tiny_data))
        assert relative_error(once, exact) <= 1.5 * relative_error(kept, exact)
    else:
        assert torch.equal(once, kept)


# --- memory and models that were there already -------------------------------------------------


@pytest.mark.parametrize(
    ("keep_models", "memory", "given_back"),
    [(True, "auto", True), (False, "auto", False), (False, 10**11, True), (False, "low", True)],
)
def test_the_decoder_takes_the_memory_of_the_unet(
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep_models: bool,
    memory: str | int,
    given_back: bool,
) -> None:
    """Nothing is given back to the system in between, unless somebody else may need it."""
    calls: list[None] = []
    giving = "sdpy.runtime.loaded_models.give_back_freed_memory"
    monkeypatch.setattr(giving, lambda: calls.append(None))
    session = tiny_session(tiny_data, keep_models=keep_models, execution=Execution(memory=memory))
    image(session)
    session.close()
    assert bool(calls) == given_back


def test_models_are_built_once(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That which weights are checked against is filled with them."""
    made: list[str] = []
    make = ModelSource.make

    def note(self: ModelSource, name: str, path: Path | None = None) -> nn.Module:
        made.append(name)
        return make(self, name, path)

    monkeypatch.setattr(ModelSource, "make", note)
    session = tiny_session(tiny_data)
    image(session)
    assert sorted(made) == ["text_encoder", "unet", "vae"]
    session.loaded.release()
    image(session)
    assert sorted(made) == ["text_encoder", "unet", "unet", "vae", "vae"]
