"""The text that A1111's web UI writes into images, and that many programs read.

::

    a castle, at dusk
    Negative prompt: people
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, ...

Readers split the last line at commas, so a value with a comma, a colon or a line break stands in
quotes, as JSON writes it. Source: A1111's web UI 1.10, ``modules/infotext_utils.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE_PROMPT = "Negative prompt: "

_FACT = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST_FACTS = 3
"""With fewer, A1111 takes the last line to be a part of the prompt."""


@dataclass(frozen=True)
class Parameters:
    """What the text says.

    Attributes:
        prompt: what was to be generated.
        negative_prompt: what was to be avoided.
        facts: the values of the last line by their labels, in its order, without quotes.
    """

    prompt: str
    negative_prompt: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


def parameters_text(parameters: Parameters) -> str:
    """The text of some parameters; `parse_parameters` is its inverse."""
    lines = [parameters.prompt]
    if parameters.negative_prompt:
        lines.append(NEGATIVE_PROMPT + parameters.negative_prompt)
    facts = parameters.facts.items()
    lines.append(", ".join(f"{label}: {quote(value)}" for label, value in facts))
    return "\n".join(lines)


def parse_parameters(text: str) -> Parameters:
    """Read such a text, whoever wrote it.

    Where a prompt has a line that begins with "Negative prompt:", nobody can tell; the text up to
    the first such line is the prompt.
    """
    *lines, last = text.strip().split("\n")
    facts = {label.strip(): unquote(value.strip()) for label, value in _FACT.findall(last)}
    if len(facts) < _FEWEST_FACTS:
        lines, facts = [*lines, last], {}
    mark = NEGATIVE_PROMPT.strip()
    negative = next((k for k, line in enumerate(lines) if line.startswith(mark)), len(lines))
    avoided = "\n".join(lines[negative:]).removeprefix(mark).strip()
    return Parameters("\n".join(lines[:negative]).strip(), avoided, facts)


def quote(value: object) -> str:
    """A value as it stands in the last line."""
    text = str(value)
    needs_quotes = any(mark in text for mark in ',:\n"')
    return json.dumps(text, ensure_ascii=False) if needs_quotes else text


def unquote(text: str) -> str:
    """The value that stands in the last line as ``text``."""
    if len(text) < 2 or not (text.startswith('"') and text.endswith('"')):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text
