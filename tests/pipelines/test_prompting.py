"""Prompts in whole runs: lengths, weights, layers, new words, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import Lora, TextualInversion, write_checkpoint
from sdpy.errors import UsageError, WeightsError
from sdpy.models import CLIPTextModel, UNet2DConditionModel
from sdpy.pipelines.events import Detail, Event, ImageDecoded, Notice, PromptTokenized
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from support.compare import assert_same_images, normal, randomise, relative_error
from support.tasks import decoded, text2img
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
    (one,) = [event for event in events if isinstance(event, ImageDecoded)]
    assert one.pixels.isfinite().all()
    return events, one.pixels


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
    monkeypatch.setattr(session.headers, "check", lambda loras: None)
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
    (cat,) = plain.headers.tokenizer.encode("cat")
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


def test_new_words_for_stable_diffusion_xl_are_refused(tiny_data: Path) -> None:
    word = TextualInversion(Path("a.pt"), ("a",), normal(1, 32), normal(1, 48))
    with pytest.raises(WeightsError, match="a.pt is an embedding for Stable Diffusion XL"):
        run(tiny_session(tiny_data), "cat", embedding=(word,))


def test_words_that_a_lora_brings(tiny_data: Path, tmp_path: Path) -> None:
    """They are known to prompts, unless the user gives others of the same name."""
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {
        f"{layer}.lora_A.weight": torch.zeros(1, 16),
        f"{layer}.lora_B.weight": torch.zeros(16, 1),
    }
    vectors = normal(2, 32)
    bundled = {**factors, "bundle_emb.zorbel.string_to_param.*": vectors}
    write_checkpoint(tmp_path / "bundle.safetensors", bundled)
    session, loras = tiny_session(tiny_data), (Lora(tmp_path / "bundle.safetensors"),)
    word = TextualInversion(Path("a.pt"), ("zorbel",), vectors)
    image = run(session, "zorbel cat", lora=loras)[1]
    assert torch.equal(image, run(session, "zorbel cat", embedding=(word,))[1])
    assert not torch.equal(image, run(session, "zorbel cat")[1])
    other = TextualInversion(Path("b.pt"), ("ZORBEL",), normal(1, 32, seed=5))
    both = run(session, "zorbel cat", lora=loras, embedding=(other,))[1]
    assert torch.equal(both, run(session, "zorbel cat", embedding=(other,))[1])
    message = "a word of " + str(tmp_path / "bundle.safetensors") + " is not used"
    assert any(message in line for line in told(run(session, "cat", lora=loras)[0]))


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


# --- prompts that change, and prompts that are joined ------------------------------------------


def embedding(session: Session, prompt: str) -> Tensor:
    """(1, 77, D) of a prompt in one chunk."""
    (_, made) = encoded(session, prompt)
    return made[1:]


def encoded(session: Session, prompt: str) -> tuple[list[Event], Tensor]:
    seen: list[Tensor] = []
    forward = UNet2DConditionModel.forward

    def noting(self: Any, sample: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        seen.append(conditions["encoder_hidden_states"])
        return forward(self, sample, timestep, **conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "forward", noting)
        events, _ = run(session, prompt, steps=1)
    return events, seen[0]


def test_each_step_has_its_own_prompt(session: Session, contexts: list[Tensor]) -> None:
    cat, dark = embedding(session, "the cat"), embedding(session, "the dark")
    contexts.clear()
    events, _ = run(session, "the [cat:dark:0.5]", negative_prompt="[the|house]", steps=4)
    the, house = embedding(session, "the"), embedding(session, "house")
    expected = [(the, cat), (house, cat), (the, dark), (house, dark)]
    for shown, pair in zip(contexts, expected, strict=False):
        assert torch.equal(shown, torch.cat(pair))
    assert told(events) == [
        "prompt editing, steps 1 to 2, 'the cat': 2 of 75 tokens",
        "prompt editing, steps 3 to 4, 'the dark': 2 of 75 tokens",
        "negative prompt editing, steps 1, 3, 'the': 1 of 75 tokens",
        "negative prompt editing, steps 2, 4, 'house': 1 of 75 tokens",
    ]


def test_a_prompt_that_changes_to_itself_is_the_plain_one(session: Session) -> None:
    _, image = run(session, "the cat")
    assert torch.equal(image, run(session, "the [cat:cat:1]")[1])
    assert not torch.equal(image, run(session, "the [cat:dark:1]")[1])
    assert not torch.equal(image, run(session, "the [cat:cat:1]", prompt_syntax="plain")[1])


def test_texts_are_encoded_once(session: Session) -> None:
    run(session, "[cat|dark|cat|house]", steps=12)
    assert session.counters.encoded_prompts == 3
    run(session, "[house|cat]", steps=2)
    assert session.counters.encoded_prompts == 3


def test_images_whose_prompts_change_at_other_steps_are_as_alone(session: Session) -> None:
    prompts = ["[cat:dark:1]", "[cat:dark:3]", "[house|cat]", "cat " * 80]
    requests = [Request(prompt, steps=4, width=32, height=32, batch_size=4) for prompt in prompts]
    together = decoded(generate(session, requests))
    alone = [decoded(generate(session, [request]))[0] for request in requests]
    assert_same_images([one.pixels for one in together], [one.pixels for one in alone])


def test_and_of_one_prompt_twice_is_guidance_by_the_sum(session: Session) -> None:
    _, twice = run(session, "cat :0.75 AND cat :1.25", guidance_scale=3.0)
    _, strong = run(session, "cat", guidance_scale=6.0)
    assert relative_error(twice, strong) <= 1e-4
    _, opposed = run(session, "cat AND dark AND dark :-1", guidance_scale=3.0)
    assert relative_error(opposed, run(session, "cat", guidance_scale=3.0)[1]) <= 1e-4


def test_and_at_scale_one_and_outside_the_interval(session: Session) -> None:
    """The prediction for the prompt is the negative one and the weighted ways from there."""
    _, image = run(session, "cat :0.5 AND cat", negative_prompt="dark", guidance_scale=1.0)
    expected = run(session, "cat", negative_prompt="dark", guidance_scale=1.5)[1]
    assert relative_error(image, expected) <= 1e-4
    options = {"negative_prompt": "dark", "guidance_interval": (0.4, 0.6), "steps": 2}
    _, nowhere = run(session, "cat :0.5 AND cat", guidance_scale=7.0, **options)
    assert relative_error(nowhere, expected) <= 1e-4


def test_and_is_told_with_its_weights_and_is_text_in_the_negative_prompt(
    session: Session, contexts: list[Tensor]
) -> None:
    events, _ = run(session, "cat AND the dark :1.5", negative_prompt="cat AND dark")
    assert told(events)[:3] == [
        "prompt 1 of 2 of AND, weight 1, 'cat': 1 of 75 tokens",
        "prompt 2 of 2 of AND, weight 1.5, 'the dark': 2 of 75 tokens",
        "negative prompt: 5 of 75 tokens",
    ]
    assert {len(context) for context in contexts} == {3}


def test_and_needs_a_unet_that_can_be_guided(tiny_data: Path, tmp_path: Path) -> None:
    unet = randomise(UNet2DConditionModel(replace(TINY.unet, time_cond_proj_dim=12)))
    write_checkpoint(tmp_path / "unet.ot", unet.state_dict())
    files = tiny_files(tiny_data).with_weights(unet=tmp_path / "unet.ot")
    session = Session(replace(tiny_source(tiny_data), files=files))
    with pytest.raises(UsageError, match="this UNet takes the guidance scale itself"):
        run(session, "cat AND dark")
    run(session, "[cat:dark:1]")


def test_doubts_are_told_unless_all_is_text(session: Session) -> None:
    message = "'[cat:dark]' in the prompt is read as text: prompt editing is"
    assert any(text.startswith(message) for text in told(run(session, "the [cat:dark]")[0]))
    plain = told(run(session, "the [cat:dark]", prompt_syntax="plain")[0])
    assert not any("read as text" in text for text in plain)
