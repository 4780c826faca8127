"""Variants in prompts, ``{night|noon}`` and ``__times__``, by the package dynamicprompts."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdpy.errors import UsageError
from sdpy.pipelines.values import RANDOM

_NAME = re.compile(r"__[~@]?(?P<name>[\w/*.-]+?)(?:\(.*?\))?__")

MODES = ("random", "all")

MOST_COMBINATIONS = 100_000
"""Of one prompt."""


@dataclass(frozen=True)
class Wildcards:
    """Replaces wildcards in prompts.

    Attributes:
        folder: of the files that ``__name__`` stands for.
        mode: ``random``: one choice, which the seed decides; ``all``: every combination.
    """

    folder: Path
    mode: str = "random"

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            UsageError: an unknown mode, no such folder, or the package is not there.
        """
        if self.mode not in MODES:
            raise UsageError(f"unknown --wildcard-mode '{self.mode}': use one of random, all")
        if not self.folder.is_dir():
            raise UsageError(f"--wildcards {self.folder}: is no folder; name one with .txt files")
        _ = self._manager

    def prompts(self, template: str, seed: int | str) -> Iterator[str | None]:
        """The prompts that a template stands for; None for one that a seed is yet to decide.

        Raises:
            UsageError: the template cannot be read, or has too many combinations.
        """
        self._check_names(template, set())
        if self.mode == "random":
            yield None if seed == RANDOM else self.choose(template, int(seed))
            return
        from dynamicprompts.generators import CombinatorialPromptGenerator

        generator = CombinatorialPromptGenerator(wildcard_manager=self._manager)
        with _refusing(template):
            found = generator.generate(template, MOST_COMBINATIONS + 1)
        if len(found) > MOST_COMBINATIONS:
            raise UsageError(
                f"the prompt has more than {MOST_COMBINATIONS:,} combinations; use "
                "--wildcard-mode random"
            )
        yield from map(str, dict.fromkeys(found))

    def choose(self, template: str, seed: int) -> str:
        """The prompt that a seed chooses; the same each time.

        Raises:
            UsageError: the template cannot be read.
        """
        from dynamicprompts.generators import RandomPromptGenerator

        generator = RandomPromptGenerator(wildcard_manager=self._manager, seed=seed)
        with _refusing(template):
            (prompt,) = generator.generate(template, 1)
        return str(prompt)

    def _check_names(self, text: str, seen: set[str]) -> None:
        """Refuse names that stand for nothing, also within the files of others.

        dynamicprompts leaves their text, or goes on for ever.
        """
        for match in _NAME.finditer(text):
            name = match["name"]
            if name in seen:
                continue
            seen.add(name)
            values = self._manager.get_values(name)
            if not values:
                raise UsageError(
                    f"there is no wildcard __{name}__; add {name}.txt to {self.folder}"
                )
            for value in values.string_values:
                self._check_names(value, seen)

    @cached_property
    def _manager(self) -> Any:
        try:
            from dynamicprompts.wildcards import WildcardManager
        except ImportError:
            raise UsageError(
                "--wildcards takes dynamicprompts: install it with pip install 'sdpy[wildcards]'"
            ) from None
        return WildcardManager(self.folder)


@contextmanager
def _refusing(template: str) -> Iterator[None]:
    """Turn what dynamicprompts raises into an error of ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its parser
            yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"the wildcards of '{template}' cannot be read ({reason}); check its braces"
        ) from error
