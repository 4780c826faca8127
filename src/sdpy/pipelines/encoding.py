"""From planned prompts to what the UNet is conditioned on."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sdpy.pipelines.plan import PlannedRequest
from sdpy.runtime.request_models import RequestModels
from sdpy.text.conditioning import (
    Conditioning,
    ConditioningSchedule,
    PromptConditioning,
    encode_prompts,
)
from sdpy.text.schedule import StepPrompts


@dataclass(frozen=True)
class _Missing:
    """Prompts of some steps that are not encoded yet.

    Attributes:
        plan: of their request.
        prompts: of each text encoder, by what they depend on.
    """

    plan: PlannedRequest
    prompts: dict[Hashable, tuple[StepPrompts, ...]]


def encode_plans(
    models: RequestModels, plans: Sequence[PlannedRequest]
) -> list[ConditioningSchedule]:
    """What the images of each request are guided by; a prompt that repeats is encoded once."""
    session = models.session
    steps = [plan.prompts.steps() for plan in plans]
    keys = [
        [_prompt_key(models, plan, prompts) for prompts in distinct]
        for plan, (distinct, _) in zip(plans, steps, strict=True)
    ]
    encoded: dict[Hashable, PromptConditioning] = {}
    missing: list[_Missing] = []
    for plan, (distinct, _), some in zip(plans, steps, keys, strict=True):
        absent: dict[Hashable, tuple[StepPrompts, ...]] = {}
        for key, prompts in zip(some, distinct, strict=True):
            if session.has_prompt(key):
                encoded[key] = session.cached_prompt(key)
            elif not any(key in others.prompts for others in missing):
                absent[key] = prompts
        if absent:
            missing.append(_Missing(plan, absent))
    for key, made in _encode(models, missing):
        encoded[key] = made
        session.cache_prompt(key, made)
        session.counters.encoded_prompts += 1
    return [
        ConditioningSchedule(
            tuple(_told_sizes(plan, encoded[key]) for key in some),
            indices if len(some) > 1 else (),
            None if plan.prompts.weights is None else (plan.prompts.weights,),
        )
        for plan, (_, indices), some in zip(plans, steps, keys, strict=True)
    ]


def _encode(
    models: RequestModels, missing: Sequence[_Missing]
) -> Iterator[tuple[Hashable, PromptConditioning]]:
    """Encode prompts by one text encoder after the other, each of which is loaded once."""
    if not missing:
        return
    session, variant = models.session, models.variant
    by_encoder: list[list[list[tuple[Conditioning, ...]]]] = []
    for i, name in enumerate(variant.text_encoders):
        with models.text_encoder(name) as text_encoder:
            by_encoder.append(
                [
                    encode_prompts(
                        [prompts[i].all for prompts in one.prompts.values()],
                        session.headers.tokenizer,
                        text_encoder,
                        chunks=[_most_chunks(prompts) for prompts in one.prompts.values()],
                        pad_id=variant.pad_ids.get(name),
                        skip_layers=variant.skip_layers + one.plan.request.clip_skip - 1,
                        final_norm=variant.final_norm,
                        added_embeddings=_added_embeddings(one.plan, name),
                    )
                    for one in missing
                ]
            )
    for one, of_encoders in zip(missing, zip(*by_encoder, strict=True), strict=True):
        for key, groups in zip(one.prompts, zip(*of_encoders, strict=True), strict=True):
            # Of each prompt of the group, what all text encoders made of it.
            *parts, negative = (Conditioning.join(made) for made in zip(*groups, strict=True))
            if one.plan.zero_negative:
                negative = negative.zeros()
            yield key, PromptConditioning(tuple(parts), negative)


def _added_embeddings(plan: PlannedRequest, text_encoder: str) -> list[Tensor]:
    """The vectors of new words for a text encoder."""
    found = [one.of(text_encoder) for one in plan.request.embedding]
    return [vectors for vectors in found if vectors is not None]


def _most_chunks(prompts: Sequence[StepPrompts]) -> int:
    """All that the UNet sees together is as long as the longest."""
    return max(len(one.chunks) for group in prompts for one in group.all)


def _told_sizes(plan: PlannedRequest, encoded: PromptConditioning) -> PromptConditioning:
    """The same with what the UNet is told of sizes, where it is told any."""
    if plan.sizes is None or plan.negative_sizes is None:
        return encoded
    device = encoded.negative.encoder_hidden_states.device
    ids, negative_ids = (one.to(device) for one in (plan.sizes, plan.negative_sizes))
    return PromptConditioning(
        tuple(replace(prompt, time_ids=ids) for prompt in encoded.prompts),
        replace(encoded.negative, time_ids=negative_ids),
    )


def _prompt_key(
    models: RequestModels, plan: PlannedRequest, prompts: Sequence[StepPrompts]
) -> Hashable:
    """What encoded prompts depend on."""
    tokens = tuple(
        tuple(tuple((token.ids, token.weight) for token in chunk) for chunk in prompt.chunks)
        for group in prompts
        for prompt in group.all
    )
    words = tuple(
        vectors.numpy().tobytes()
        for name in models.variant.text_encoders
        for vectors in _added_embeddings(plan, name)
    )
    encoders = tuple(models.key(name) for name in models.variant.text_encoders)
    return (encoders, tokens, plan.request.clip_skip, plan.zero_negative, words)
