"""The prompts and sizes of a request, as the text encoders and the UNet of its model take them."""

from __future__ import annotations

from torch import Tensor

from sdpy.errors import UsageError
from sdpy.pipelines.request import Request
from sdpy.runtime.session import Session
from sdpy.text.prompts import TokenizedPrompt, check_textual_inversions, tokenize_prompt
from sdpy.text.schedule import EncoderPrompts, PromptSchedule
from sdpy.text.sizes import ImageSizes
from sdpy.zoo.variants import ModelVariant

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""That SDXL's refiner is told unless the request says others, as by diffusers."""

_OPTIONS = {
    "original_size": "original_size",
    "crop": "crop",
    "target_size": "target_size",
    "aesthetic_score": "aesthetic_score",
    "negative_aesthetic_score": "aesthetic_score",
}
"""Fields of a request, and which of the `ImageSizes` each is."""


def plan_prompts(session: Session, request: Request, steps: int, scaled: bool) -> EncoderPrompts:
    """The prompts in each of ``steps`` steps; ``scaled``: at a guidance scale other than 1.

    Raises:
        UsageError: a prompt that is too long, too many layers skipped, or a prompt for a text
            encoder that the model does not have.
        WeightsError: a textual inversion for another model.
    """
    variant = session.variant
    encoders = list(variant.text_encoders.values())
    check_textual_inversions(request.embedding, variant.text_encoders)
    least = min(config.num_hidden_layers - variant.skip_layers for config in encoders)
    if not 1 <= request.clip_skip <= least:
        raise UsageError(
            f"--clip-skip {request.clip_skip}: this text encoder has {least} layers, use 1 (all of "
            f"them) to {least}"
        )
    for flag, text in (
        ("--prompt-2", request.prompt_2),
        ("--negative-prompt-2", request.negative_prompt_2),
    ):
        if text is not None and len(encoders) < 2:
            raise UsageError(f"{flag} is for models with two text encoders: leave it out")

    def tokenize(text: str, what: str) -> TokenizedPrompt:
        return tokenize_prompt(
            text,
            session.headers.tokenizer,
            variant.text_encoder,
            syntax=request.prompt_syntax,
            long_prompt=request.long_prompt,
            textual_inversions=request.embedding,
            what=what,
        )

    def schedule(prompt: str, negative: str | None) -> PromptSchedule:
        plain = request.prompt_syntax == "plain"
        return PromptSchedule.of(
            prompt, negative or "", steps, tokenize, plain=plain, scaled=scaled
        )

    first = schedule(request.prompt, request.negative_prompt)
    if request.prompt_2 is None and request.negative_prompt_2 is None:
        return EncoderPrompts((first,) * len(encoders))
    second = schedule(
        request.prompt if request.prompt_2 is None else request.prompt_2,
        request.negative_prompt if request.negative_prompt_2 is None else request.negative_prompt_2,
    )
    if len(second.parts) != len(first.parts):
        raise UsageError(
            f"AND joins {len(first.parts)} prompts for the first text encoder and "
            f"{len(second.parts)} for the second: join as many"
        )
    return EncoderPrompts((first, second))


def has_zero_negative(variant: ModelVariant, request: Request) -> bool:
    """Whether zeros take the place of the negative prompt's embeddings: where it is absent."""
    absent = request.negative_prompt is None and request.negative_prompt_2 is None
    return absent and variant.force_zeros_for_empty_prompt


def check_size_options(session: Session, request: Request) -> None:
    """Refuse sizes that nobody is told.

    Raises:
        UsageError: neither the model nor its refiner is told of such a size.
    """
    told = {*session.variant.size_conditions}
    if session.refiner is not None:
        told |= {*session.refiner.variant.size_conditions}
    for option, name in _OPTIONS.items():
        if getattr(request, option) is not None and name not in told:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(
                f"{flag}: {session.variant.name} is not told such a number; leave {flag} out"
            )


def plan_sizes(
    variant: ModelVariant, request: Request, *, width: int, height: int
) -> tuple[Tensor | None, Tensor | None]:
    """What the UNet is told of sizes with the prompt, and with the negative prompt.

    Args:
        variant: says what that is.
        request: what is asked for.
        width, height: of the generated image.
    """
    if not variant.size_conditions:
        return None, None
    left, top = (0, 0) if request.crop is None else request.crop
    score, negative_score = request.aesthetic_score, request.negative_aesthetic_score

    def told(score: float) -> Tensor:
        sizes = ImageSizes(
            original_size=_height_first(request.original_size, width, height),
            crop=(top, left),
            target_size=_height_first(request.target_size, width, height),
            aesthetic_score=score,
        )
        return sizes.time_ids(variant.size_conditions)

    return (
        told(AESTHETIC_SCORE if score is None else score),
        told(NEGATIVE_AESTHETIC_SCORE if negative_score is None else negative_score),
    )


def _height_first(size: tuple[int, int] | None, width: int, height: int) -> tuple[int, int]:
    """Height and width of a size that is given the other way round, or else these."""
    return (height, width) if size is None else (size[1], size[0])
