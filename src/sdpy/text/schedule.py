"""What guides each step of a denoising loop, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sdpy.text.editing import Part, schedule_text, split_parts
from sdpy.text.prompts import TokenizedPrompt

Tokenize = Callable[[str], TokenizedPrompt]

TEXTS_TOLD = 8
"""Of a prompt that changes more often, so many texts are told."""


@dataclass(frozen=True)
class StepPrompts:
    """What guides a step.

    Attributes:
        parts: the prompt, or those that ``AND`` joins.
        negative: what the image is guided away from.
    """

    parts: tuple[TokenizedPrompt, ...]
    negative: TokenizedPrompt

    @property
    def all(self) -> tuple[TokenizedPrompt, ...]:
        """The prompts, and the negative prompt last."""
        return (*self.parts, self.negative)


@dataclass(frozen=True)
class EditedPrompt:
    """A prompt step by step.

    Attributes:
        texts: what it is, one after another.
        prompts: their tokens.
        at: which of them each step has; at least one step.
        weight: among others that ``AND`` joins with it.
    """

    texts: tuple[str, ...]
    prompts: tuple[TokenizedPrompt, ...]
    at: tuple[int, ...]
    weight: float = 1.0

    @classmethod
    def of(cls, part: Part, tokenize: Tokenize, steps: int, *, edited: bool) -> EditedPrompt:
        """What a prompt is in each of ``steps`` steps; where not ``edited``, it is as it stands."""
        schedule = schedule_text(part.text, steps) if edited else ((max(steps, 1), part.text),)
        texts = tuple(dict.fromkeys(text for _, text in schedule))
        at: list[int] = []
        for last, text in schedule:
            at += [texts.index(text)] * (last - len(at))
        return cls(texts, tuple(map(tokenize, texts)), tuple(at), part.weight)

    def describe(self, what: str) -> Iterator[tuple[str, TokenizedPrompt]]:
        """Its texts with their tokens, for people; of many the first ones."""
        if len(self.texts) == 1:
            yield what, self.prompts[0]
            return
        for i, text in enumerate(self.texts[:TEXTS_TOLD]):
            steps = [step for step, index in enumerate(self.at, start=1) if index == i]
            more = f" (the first of {len(self.texts)} texts)" if i == TEXTS_TOLD - 1 else ""
            yield f"{what} editing, {_steps(steps)}, '{text.strip()}'{more}", self.prompts[i]


def _steps(steps: list[int]) -> str:
    if len(steps) == 1:
        return f"step {steps[0]}"
    if steps[-1] - steps[0] == len(steps) - 1:
        return f"steps {steps[0]} to {steps[-1]}"
    shown = ", ".join(map(str, steps[:3]))
    return f"steps {shown}, ..., {steps[-1]}" if len(steps) > 3 else f"steps {shown}"


@dataclass(frozen=True)
class PromptSchedule:
    """What guides an image, step by step.

    Attributes:
        parts: the prompt, or those that ``AND`` joins.
        negative: what it is guided away from; empty where that is not looked at.
    """

    parts: tuple[EditedPrompt, ...]
    negative: EditedPrompt

    @classmethod
    def of(
        cls,
        prompt: str,
        negative: str,
        steps: int,
        tokenize: Callable[[str, str], TokenizedPrompt],
        *,
        plain: bool = False,
        scaled: bool = True,
    ) -> PromptSchedule:
        """The schedule of a prompt and its negative prompt, in which ``AND`` is text.

        Args:
            prompt, negative: as typed.
            steps: how many evaluations of the UNet there are.
            tokenize: makes tokens of a text, which its second argument calls by a name in errors.
            plain: whether all characters are text.
            scaled: whether the guidance scale is other than 1. At 1, the negative prompt is left
                out, unless ``AND`` joins several prompts.

        Raises:
            UsageError: from ``tokenize``.
        """
        parts = (Part(prompt),) if plain else split_parts(prompt)
        negative = negative if scaled or len(parts) > 1 else ""

        def edited(part: Part, what: str) -> EditedPrompt:
            return EditedPrompt.of(part, lambda text: tokenize(text, what), steps, edited=not plain)

        return cls(
            tuple(edited(part, "prompt") for part in parts),
            edited(Part(negative), "negative prompt"),
        )

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One a part; None for a prompt without ``AND``."""
        return tuple(part.weight for part in self.parts) if len(self.parts) > 1 else None

    def steps(self) -> tuple[tuple[StepPrompts, ...], tuple[int, ...]]:
        """What guides some steps or others, and which of that guides each step."""
        columns = (*(part.at for part in self.parts), self.negative.at)
        each = list(zip(*columns, strict=True))
        distinct = list(dict.fromkeys(each))
        return tuple(
            StepPrompts(
                tuple(part.prompts[i] for part, i in zip(self.parts, chosen, strict=False)),
                self.negative.prompts[chosen[-1]],
            )
            for chosen in distinct
        ), tuple(distinct.index(chosen) for chosen in each)

    def describe_prompt(self) -> Iterator[tuple[str, TokenizedPrompt]]:
        """The prompt's texts with their tokens, for people."""
        for number, part in enumerate(self.parts, start=1):
            what = "prompt"
            if len(self.parts) > 1:
                what = f"prompt {number} of {len(self.parts)} of AND, weight {part.weight:g}"
                if len(part.texts) == 1:
                    what += f", '{part.texts[0].strip()}'"
            yield from part.describe(what)

    def all_prompts(self) -> Iterator[tuple[str, TokenizedPrompt]]:
        """All texts, and whether they are of the prompt or the negative prompt."""
        for part in self.parts:
            yield from (("prompt", prompt) for prompt in part.prompts)
        yield from (("negative prompt", prompt) for prompt in self.negative.prompts)


@dataclass(frozen=True)
class EncoderPrompts:
    """The prompts of all text encoders, step by step.

    Attributes:
        schedules: one a text encoder. Where they all read the same, it is the same object. Each
            has as many parts as the first, whose weights count.
    """

    schedules: tuple[PromptSchedule, ...]

    @property
    def parts(self) -> tuple[EditedPrompt, ...]:
        """Of the first text encoder."""
        return self.schedules[0].parts

    @property
    def chunks(self) -> int:
        """Chunks of the longest prompt or negative prompt."""
        prompts = (one for schedule in self.schedules for _, one in schedule.all_prompts())
        return max(len(prompt.chunks) for prompt in prompts)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One a part; None for a prompt without ``AND``."""
        return self.schedules[0].weights

    @property
    def distinct(self) -> tuple[tuple[str, PromptSchedule], ...]:
        """Those that differ, each with what people call it, such as "prompt" and "prompt 2"."""
        one_by_one = dict.fromkeys(self.schedules)
        return tuple(
            ("" if i == 0 else f" {i + 1}", schedule) for i, schedule in enumerate(one_by_one)
        )

    def steps(self) -> tuple[tuple[tuple[StepPrompts, ...], ...], tuple[int, ...]]:
        """What guides some steps or others, by text encoder, and which of that guides each step."""
        made = {schedule: schedule.steps() for schedule in dict.fromkeys(self.schedules)}
        each = list(zip(*(made[schedule][1] for schedule in self.schedules), strict=True))
        distinct = list(dict.fromkeys(each))
        return tuple(
            tuple(made[s][0][i] for s, i in zip(self.schedules, chosen, strict=True))
            for chosen in distinct
        ), tuple(distinct.index(chosen) for chosen in each)
