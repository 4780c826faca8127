"""From what a file says to jobs, of one image each: lists multiply out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdpy.errors import SdpyError, UsageError
from sdpy.jobs.folders import InputImage
from sdpy.jobs.job import Comment, Entry, Fault, Job, Place
from sdpy.jobs.options import JobOption, OptionGroups, find_option
from sdpy.jobs.wildcards import Wildcards
from sdpy.pipelines.values import RANDOM

_RANGE = re.compile(r"(\d+)-(\d+)(?::(\d+))?")

MOST_VALUES = 1_000_000
"""Of one option of one job: more is a slip of the pen."""


@dataclass(frozen=True)
class Axis:
    """Values of an option that all jobs are multiplied by.

    Attributes:
        option: which.
        values: of it, at least one. Where a word is replaced, what stands in its place.
        search: the word of the prompt that is replaced; None for whole values.
    """

    option: JobOption
    values: tuple[Any, ...]
    search: str | None = None

    def apply(self, text: str, value: str) -> str:
        """The text with the word replaced.

        Raises:
            UsageError: the text does not have the word.
        """
        assert self.search is not None
        if self.search not in text:
            raise UsageError(
                f"the {self.option.name.replace('_', ' ')} does not have '{self.search}', which "
                "--grid replaces; write it as it stands there"
            )
        return text.replace(self.search, value)


def read_axis(text: str) -> Axis:
    """The axis that ``--grid`` names: ``seed=1,2,3``, ``seed=1-8`` or ``prompt: night|noon``.

    With a colon, the first word is looked for in the text of the option, and the image is made
    with each of the words in its place.

    Raises:
        UsageError: something else.
    """
    match = re.match(r"\s*([\w-]+)\s*([=:])(.*)", text, re.DOTALL)
    if match is None:
        raise UsageError(
            f"--grid {text}: write NAME=VALUE,VALUE or, to replace a word of the prompt, "
            "'prompt: WORD|WORD'"
        )
    name, sign, rest = match.groups()
    try:
        option = find_option(name)
        if sign == ":":
            if option.name not in ("prompt", "negative_prompt"):
                raise UsageError(f"only words of prompts can be replaced; write {name}=...")
            words = [word.strip() for word in rest.split("|")]
            if len(words) < 2 or not words[0]:
                raise UsageError("name the word and what replaces it, with | between them")
            return Axis(option, tuple(words), words[0])
        separator = "|" if "|" in rest else ","
        pieces: list[Any] = [piece.strip() for piece in rest.split(separator)]
        if option.takes_several or option.is_pair:
            pieces = [[piece] if option.takes_several else piece for piece in rest.split("|")]
        return Axis(option, tuple(choices(option, pieces)))
    except UsageError as error:
        raise UsageError(f"--grid {text}: {error}") from None


def choices(option: JobOption, raw: Any) -> list[Any]:
    """The values that a job multiplies out to by one of its options.

    A list is a choice, and so are ranges of whole numbers in text, as ``1-8``, ``0-100:10`` or
    ``1,3,5-7``. Where the option takes several values, only a list in a list is a choice.

    Raises:
        UsageError: a value of another kind, or no value.
    """
    if option.takes_several or option.is_pair:
        nested = isinstance(raw, list) and any(isinstance(each, list) for each in raw)
        texts = option.is_pair and isinstance(raw, list) and isinstance((raw or [0])[0], str)
        return [option.value(each) for each in (raw if nested or texts else [raw])]
    listed = raw if isinstance(raw, list) else [raw]
    if option.type is int or option.name == "seed":
        listed = list(itertools.chain.from_iterable(_whole_numbers(each) for each in listed))
    if not listed:
        raise UsageError(f"{option.name} is an empty list; give a value, or leave it out")
    return [option.value(each) for each in listed]


def _whole_numbers(raw: Any) -> Iterable[Any]:
    if not isinstance(raw, str) or not re.search(r"\d\s*[-,]", raw):
        return [raw]
    found: list[Any] = []
    for piece in raw.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if match is None:
            found.append(piece.strip())
            continue
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
        if step < 1 or last < first or (last - first) // step >= MOST_VALUES:
            raise UsageError(
                f"the range {piece.strip()}: write FIRST-LAST or FIRST-LAST:STEP, the larger "
                f"number last, of at most {MOST_VALUES:,} values"
            )
        found += range(first, last + 1, step)
    return found


@dataclass(frozen=True)
class Expansion:
    """How entries become jobs.

    Attributes:
        defaults: the command's options.
        axes: by which every job is multiplied.
        images: of a folder, by which every job is multiplied.
        wildcards: what replaces them in prompts; None where braces are text.
    """

    defaults: OptionGroups = field(default_factory=OptionGroups)
    axes: tuple[Axis, ...] = ()
    images: tuple[InputImage, ...] = ()
    wildcards: Wildcards | None = None

    def jobs(self, entries: Iterable[Entry | Fault | Comment]) -> Iterator[Job | Fault | Comment]:
        """The jobs of some entries, numbered from 1; faults and comments as they come."""
        index = 1
        for entry in entries:
            if not isinstance(entry, Entry):
                yield entry
                continue
            try:
                for job in self._jobs(entry, index):
                    yield job
                    index += 1
            except SdpyError as error:
                yield Fault(entry.place, error, index)
                index += 1

    def _jobs(self, entry: Entry, index: int) -> Iterator[Job]:
        own: dict[str, Any] = {}
        options: dict[str, list[Any]] = {}
        for name, raw in entry.options.items():
            if name.startswith("_"):
                own[name] = raw
                continue
            option = find_option(name)
            if option.name in options:
                raise UsageError(f"'{name}' is given twice, under two names; leave one out")
            options[option.name] = choices(option, raw)
        for axis in self.axes:
            if axis.search is None:
                if axis.option.name in options:
                    raise UsageError(
                        f"the job says '{axis.option.name}' itself, and --grid does; leave one out"
                    )
                options[axis.option.name] = list(axis.values)
        if self.images and ("image" in options or "mask" in options):
            raise UsageError("the job names an image itself, and --input does; leave one out")
        if "prompt" not in options and self.defaults.task.prompt is None:
            raise UsageError("has no prompt; give it one, or one for all jobs with --prompt")
        place, several = entry.place, [name for name, values in options.items() if len(values) > 1]
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values, strict=True))
            axes = {name: chosen[name] for name in several}
            for replaced, words in self._replaced(chosen):
                for with_image in self._with_images(replaced):
                    for job in self._samples(place, index, with_image, own, {**axes, **words}):
                        yield job
                        index += 1

    def _replaced(
        self, chosen: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
        """With each of the words in the place of those that are looked for."""
        axes = [axis for axis in self.axes if axis.search is not None]
        if not axes:
            yield chosen, {}
            return
        for words in itertools.product(*(axis.values for axis in axes)):
            replaced = dict(chosen)
            for axis, word in zip(axes, words, strict=True):
                name = axis.option.name
                text = replaced.get(name, self._default(name))
                replaced[name] = axis.apply(text or "", word)
            shown = {
                f"{axis.option.name}: {axis.search}": word
                for axis, word in zip(axes, words, strict=True)
            }
            yield replaced, shown

    def _default(self, name: str) -> Any:
        is_prompt = name == "prompt"
        return self.defaults.task.prompt if is_prompt else self.defaults.generation.negative_prompt

    def _with_images(self, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not self.images:
            yield chosen
        for image in self.images:
            mask = {} if image.mask is None else {"mask": image.mask}
            yield {**chosen, "image": image.path, **mask}

    def _samples(
        self,
        place: Place,
        index: int,
        chosen: dict[str, Any],
        own: Mapping[str, Any],
        axes: Mapping[str, Any],
    ) -> Iterator[Job]:
        """Image k of a job uses its seed + k; prompts with wildcards are chosen for each."""
        count = chosen.pop("num_samples", self.defaults.generation.num_samples)
        if not 1 <= count <= MOST_VALUES:
            raise UsageError(f"num-samples {count}: use 1 to {MOST_VALUES:,}")
        seed = chosen.get("seed", self.defaults.generation.seed)
        for sample in range(count):
            options = chosen
            if count > 1 and seed != RANDOM:
                options = {**chosen, "seed": seed + sample}
            if self.wildcards is None:
                yield Job(place, index, sample, options, own, axes)
                index += 1
                continue
            template = str(options.get("prompt", self.defaults.task.prompt))
            for prompt in self.wildcards.prompts(template, options.get("seed", seed)):
                named = options if prompt is None else {**options, "prompt": prompt}
                yield Job(place, index, sample, named, own, axes, template)
                index += 1
