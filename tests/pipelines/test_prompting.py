"""Prompts in whole runs: lengths, weights, layers, new words, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import TextualInversion, write_checkpoint
from sdpy.errors import UsageError, WeightsError
from sdpy.models import CLIPTextModel, UNet2DConditionModel
from sdpy.pipelines.events import Detail, Event, ImageDecoded, Notice, PromptTokenized
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from support.compare import normal, randomise
from support.tasks import text2img
from support.tiny import TINY, tiny_files, tiny_session, tiny_source

IDLE = (
    "the negative prompt is not looked at: the guidance scale is 1, or this UNet takes the scale "
    "itself"
)
LONG = "cat dark " * 60  # 120 tokens: two chunks


@pytest.fixture
def session(tiny_data: Path) -> Session:
    return tiny_session(tiny_data)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the UNet is shown of the prompts, evaluation by evaluation."""
    seen: list[Tensor] = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        seen.append(conditions["encoder_hidden_states"])
        return forward(self, sample, timestep, **conditions)

    monkeypatch.setattr(UNet2DConditionModel, "forward", noting)
    return seen


def run(session: Session, prompt: str, **request: Any) -> tuple[list[Event], Tensor]:
    """The events of a run, and its image."""
    options = Request(prompt, **{"steps": 2, **request})
    events = list(text2img(session, options, width=32, height=32))
    (decoded,) = [event for event in events if isinstance(event, ImageDecoded)]
    assert decoded.pixels.isfinite().all()
    return events, decoded.pixels


def told(events: list[Event]) -> list[str]:
    return [
        event.text if isinstance(event, Notice) else f"{event.what}: {event.prompt}"
        for event in events
        if isinstance(event, (Notice, PromptTokenized))
    ]


@pytest.mark.parametrize(
    ("prompt", "negative", "chunks"),
    [
        ("cat", "", 1),
        ("cat", LONG, 2),
        (LONG, "cat", 2),
        ("cat BREAK dark BREAK cat", LONG, 3),
        (LONG * 2, "", 4),
    ],
)
def test_both_prompts_reach_the_unet_with_as_many_chunks(
    session: Session, contexts: list[Tensor], prompt: str, negative: str, chunks: int
) -> None:
    run(session, prompt, negative_prompt=negative)
    assert [tuple(context.shape) for context in contexts] == [(2, chunks * 77, 32)] * 2


def test_the_end_of_a_long_prompt_counts(session: Session) -> None:
    long = "cat " * 80
    _, image = run(session, long + "dark")
    _, other = run(session, long + "lighthouse")
    assert not torch.equal(image, other)


def test_the_lengths_are_told_before_the_first_step(session: Session) -> None:
    events, _ = run(session, "cat (dark)", negative_prompt=LONG)
    kinds = [type(event) for event in events if not isinstance(event, Detail)]
    assert kinds[:2] == [PromptTokenized, PromptTokenized]
    assert told(events) == [
        "prompt: 2 of 75 tokens; weighted: 'dark' 1.1",
        "negative prompt: 120 tokens in 2 chunks of 75",
    ]
    assert told(run(session, "cat")[0]) == ["prompt: 1 of 75 tokens"]


def test_without_guidance_the_negative_prompt_is_told_to_be_idle(
    session: Session, contexts: list[Tensor]
) -> None:
    events, image = run(session, "cat", negative_prompt=LONG, guidance_scale=1)
    assert told(events) == [
        "prompt: 1 of 75 tokens",
        IDLE,
    ]
    assert {tuple(context.shape) for context in contexts} == {(1, 77, 32)}
    assert torch.equal(image, run(session, "cat", guidance_scale=1)[1])


def test_a_unet_that_takes_the_guidance_scale_sees_no_negative_prompt(
    tiny_data: Path, tmp_path: Path, contexts: list[Tensor]
) -> None:
    unet = randomise(UNet2DConditionModel(replace(TINY.unet, time_cond_proj_dim=12)))
    write_checkpoint(tmp_path / "unet.ot", unet.state_dict())
    files = tiny_files(tiny_data).with_weights(unet=tmp_path / "unet.ot")
    events, _ = run(
        Session(replace(tiny_source(tiny_data), files=files)), "cat", negative_prompt=LONG
    )
    assert IDLE in told(events)
    assert {tuple(context.shape) for context in contexts} == {(1, 77, 32)}


def test_a_prompt_that_is_refused_is_so_before_a_model_is_loaded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLIPTextModel, "__init__", None)  # not even an empty one
    monkeypatch.setattr(session, "check", lambda loras: None)
    request = Request("cat", negative_prompt=LONG, long_prompt="error")
    with pytest.raises(UsageError, match="the negative prompt takes more than one chunk"):
        next(text2img(session, request, width=32, height=32))


def test_clip_skip_leaves_out_layers(session: Session) -> None:
    _, all_layers = run(session, "cat", clip_skip=1)
    assert torch.equal(all_layers, run(session, "cat")[1])
    assert not torch.equal(all_layers, run(session, "cat", clip_skip=2)[1])
    for wrong in (0, -1, 3):
        with pytest.raises(UsageError, match=f"--clip-skip {wrong}: .* has 2 layers"):
            run(session, "cat", clip_skip=wrong)


def test_new_words_paint_what_they_stand_for(tiny_data: Path) -> None:
    """A new word with the vector that the vocabulary has for "cat" stands for a cat."""
    plain = tiny_session(tiny_data)
    (cat,) = plain.tokenizer.encode("cat")
    with plain.models().text_encoder() as text_encoder:
        table = text_encoder.text_model.embeddings.token_embedding.weight
        vectors = torch.stack([table[cat], table[cat]]).clone()
    twice = TextualInversion(Path("twice.pt"), ("catcat",), vectors)
    taught = tiny_session(tiny_data)
    words = (twice,)
    events, image = run(taught, "dark catcat", embedding=words)
    assert told(events) == ["prompt: 3 of 75 tokens"]
    assert torch.equal(image, run(plain, "dark cat cat")[1])
    assert not torch.equal(image, run(plain, "dark catcat")[1])


def test_a_new_word_that_nobody_says_is_told(tiny_data: Path) -> None:
    word = TextualInversion(Path("a.pt"), ("a", "<a>"), normal(1, 32))
    session = tiny_session(tiny_data)
    words = (word,)
    message = "a.pt is not used, for no prompt says 'a' or '<a>'"
    assert message in told(run(session, "cat", embedding=words)[0])
    said = run(session, "cat", negative_prompt="<a>", embedding=words)
    assert message not in told(said[0])


def test_a_new_word_for_another_model_is_refused(tiny_data: Path) -> None:
    word = TextualInversion(Path("a.pt"), ("a",), normal(1, 48))
    session = tiny_session(tiny_data)
    words = (word,)
    with pytest.raises(WeightsError, match="a.pt: an embedding 48 wide"):
        run(session, "cat", embedding=words)


def test_a_long_prompt_without_chunks_is_cut_and_told(
    tiny_data: Path, contexts: list[Tensor]
) -> None:
    session = tiny_session(tiny_data, replace(TINY, guidance_scale=1.0))
    events, _ = run(session, "cat " * 75 + "dark house", long_prompt="truncate")
    assert told(events) == [
        "prompt: 75 of 75 tokens",
        "the prompt is too long, its end was left out: 'dark house'",
    ]
    assert {tuple(context.shape) for context in contexts} == {(1, 77, 32)}
