"""What a pipeline tells while it paints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpy.text.prompts import TokenizedPrompt


@dataclass(frozen=True)
class Notice:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class PromptRead:
    """The tokens of a prompt are known; ``what`` is "prompt" or "negative prompt"."""

    what: str
    prompt: TokenizedPrompt


@dataclass(frozen=True)
class Progress:
    """``step`` of ``steps`` is done, of sample ``sample`` (from 1) of ``samples``."""

    sample: int
    samples: int
    step: int
    steps: int


@dataclass(frozen=True)
class Painted:
    """A finished picture: (1, 3, H, W) float32 on the CPU, about [-1, 1]; samples count from 1."""

    sample: int
    seed: int
    picture: Tensor


Event = Notice | PromptRead | Progress | Painted
