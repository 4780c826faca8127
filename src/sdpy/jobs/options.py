"""The options that a job may have: those of generate, img2img and inpaint, by their names there.

The table is made of the declarations of these options (`sdpy.options`), so a new option can stand
in a job as soon as it is declared.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from sdpy.components import COMPONENTS
from sdpy.errors import UsageError
from sdpy.foreign import foreign_hint
from sdpy.options import Option, option, options_of, parse
from sdpy.pipelines.control_options import ControlOptions
from sdpy.pipelines.request import STRENGTH, GenerationOptions, MaskOptions
from sdpy.pipelines.values import RANDOM, is_random
from sdpy.runtime.options import ModelOptions

_JOB = "Jobs"

DEFAULT_OUTPUT = "out/{index:05d}_{seed}_{slug}.png"


def read_numbers(values: Any) -> tuple[float, ...]:
    """Numbers, of a list or of text with commas between them.

    Raises:
        UsageError: something else than numbers.
    """
    given = values.split(",") if isinstance(values, str) else values
    try:
        return tuple(float(value) for value in given)
    except (TypeError, ValueError):
        raise UsageError(
            f"--lora-weights {values}: give numbers with commas, such as 0.8,0.5"
        ) from None


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a job is: the arguments of the single commands, as options."""

    prompt: str | None = option(
        None, "--prompt", "-p", help="What to generate, in jobs that do not say it.", panel=_JOB
    )
    image: Path | None = option(
        None,
        "--image",
        "--file",
        help="The image to change; with it, a job is an image-to-image.",
        panel=_JOB,
        shown_default="none",
    )
    mask: Path | None = option(
        None,
        "--mask",
        help="Its mask, white where it is repainted; with it, a job is an inpainting.",
        panel=_JOB,
        shown_default="none",
    )
    strength: float | None = STRENGTH
    output: str = option(
        DEFAULT_OUTPUT,
        "--output",
        "-o",
        "--final-image",
        help="Name of the files, with fields in braces that are filled in for each image: line, "
        "index, seed, steps, scheduler, guidance, width, height, model, slug, words, date, n (the "
        "next free number), or any option of a job. Folders are made as needed.",
        panel=_JOB,
        metavar="TEMPLATE",
    )
    output_folder: Path | None = option(
        None,
        "--output-folder",
        help="Folder of the files, in place of that of --output.",
        panel=_JOB,
        shown_default="none",
    )
    output_name: str | None = option(
        None,
        "--output-name",
        help="Name of the files, in the folder of --output.",
        panel=_JOB,
        shown_default="none",
    )
    lora_weights: tuple[float, ...] = option(
        (),
        "--lora-weights",
        help="Weights of the LoRAs of --lora, in their order.",
        panel=_JOB,
        metavar="W,...",
        shown_default="their own",
        cli_type=str,
        parse=read_numbers,
    )


def read_seed(value: int | str) -> int | str:
    """A seed, or that one is to be drawn for each image: ``random`` or -1.

    Raises:
        UsageError: it is neither.
    """
    if is_random(value):
        return RANDOM
    text = str(value).strip()
    if not text.isascii() or not text.isdigit() or int(text) >= 2**63:
        raise UsageError(f"--seed {value}: use random, -1 for the same, or 0 to {2**63 - 1}")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class JobGenerationOptions(GenerationOptions):
    """The options of a request; a seed that is to be drawn is drawn for each image anew."""

    seed: Any = option(
        32,
        "--seed",
        help="Seed of the noise. Image k of a job, counted from 0, uses SEED + k. random, or -1: "
        "one is drawn for each image.",
        panel="Generation",
        metavar="INTEGER|random",
        cli_type=str,
        parse=read_seed,
        label="Seed",
        always=True,
    )


GROUPS: tuple[type, ...] = (
    *(TaskOptions, JobGenerationOptions, MaskOptions, ControlOptions, ModelOptions),
)


@dataclass(frozen=True)
class JobOption:
    """An option of jobs.

    Attributes:
        name: its field's, under which jobs keep it.
        group: the dataclass that has the field; None for the file of a component.
        one: its declaration; None for the file of a component.
        type: of its value, or of each value where it takes several.
        takes_several: whether its value is a list, as that of ``--lora`` is.
        is_pair: whether numbers with commas are one value, as those of ``--guidance-interval``.
        flag_value: what a switch of this name without a value says.
    """

    name: str
    group: type | None
    one: Option | None
    type: type
    takes_several: bool = False
    is_pair: bool = False
    flag_value: bool = True

    def value(self, raw: Any) -> Any:
        """The value that a job keeps, of what JSON, TOML, YAML, CSV or a text line gives.

        Numbers, booleans and text, or a tuple of them; what the declaration says about its range
        and its form is checked when the request is made.

        Raises:
            UsageError: it is of another kind.
        """
        if self.takes_several:
            several = raw if isinstance(raw, list | tuple) else [raw]
            return tuple(self._single(each) for each in several)
        if self.is_pair and isinstance(raw, list | tuple):
            return ",".join(f"{self._number(each):g}" for each in raw)
        if self.name == "seed":
            return RANDOM if is_random(raw) else self._whole(raw)
        if self.type is bool and not self.flag_value:
            return not self._single(raw)
        return self._single(raw)

    def _single(self, raw: Any) -> Any:
        if self.type is bool:
            words = {"true": True, "yes": True, "on": True, "1": True}
            words |= {"false": False, "no": False, "off": False, "0": False}
            known = words.get(str(raw).strip().lower())
            if known is None:
                raise self._wrong(raw, "true or false")
            return known
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise self._wrong(raw, "text" if self.type in (str, Path) else "a number")
        if self.type is int:
            return self._whole(raw)
        if self.type is float:
            return self._number(raw)
        return raw if isinstance(raw, str) else f"{raw}"

    def _whole(self, raw: Any) -> int:
        try:
            if isinstance(raw, bool):
                raise ValueError
            number = int(raw)
            if number != raw and not isinstance(raw, str):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(raw, "a whole number") from None
        return number

    def _number(self, raw: Any) -> float:
        try:
            number = float(raw)
            if isinstance(raw, bool) or not math.isfinite(number):
                raise ValueError
        except (TypeError, ValueError):
            raise self._wrong(raw, "a number") from None
        return number

    def _wrong(self, raw: Any, kind: str) -> UsageError:
        shown = repr(raw) if isinstance(raw, str) else f"{raw}"
        return UsageError(f"{self.name.replace('_', '-')} {shown}: give {kind}")


@cache
def job_options() -> Mapping[str, JobOption]:
    """All options of jobs, by all of their names, with underscores."""
    found: dict[str, JobOption] = {}
    for group in GROUPS:
        for field, one in options_of(group):
            for name, known in _named(group, field, one):
                found.setdefault(name, known)
    return found


def _named(
    group: type, field: dataclasses.Field[Any], one: Option
) -> Iterator[tuple[str, JobOption]]:
    if not one.flags:  # the files of components
        for component in COMPONENTS.values():
            if component.option is not None:
                known = JobOption(f"{component.name}_weights", None, None, Path)
                yield known.name, known
                yield normal(component.option), known
        return
    hint = _type_of(field, one)
    several = get_origin(hint) is list
    kind = get_args(hint)[0] if several else hint
    is_pair = str(field.type).startswith("tuple") and one.cli_type is str
    known = JobOption(field.name, group, one, kind, several, is_pair)
    yield field.name, known
    for flag in one.flags:
        positive, *negative = flag.split("/")
        if positive.startswith("--"):
            yield normal(positive), known
        for name in negative:
            yield normal(name), replace(known, flag_value=False)


def _type_of(field: dataclasses.Field[Any], one: Option) -> Any:
    """The type of a value, without ``None``."""
    hint = one.cli_type
    if hint is None:
        hint = eval(str(field.type), {"Path": Path})
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    return hint if get_origin(hint) is list or not kinds else kinds[0]


def normal(name: str) -> str:
    """The name of an option without its dashes in front, and with underscores."""
    return name.strip().lstrip("-").replace("-", "_").lower()


_ALONE = ("intermediary_images", "step_images", "step_interval", "step_animation")
"""Options of the commands for single images that jobs have not.

In a folder of thousands of images, theirs would be taken for such.
"""


def find_option(name: str) -> JobOption:
    """The option of that name, with dashes or underscores.

    Raises:
        UsageError: there is none.
    """
    known = job_options()
    found = known.get(normal(name))
    if found is not None:
        return found
    if normal(name) in _ALONE:
        raise UsageError(
            f"'{name}' is no option of jobs: make this image with sdpy generate, img2img or inpaint"
        )
    ours = foreign_hint(name)
    near = difflib.get_close_matches(normal(name), known, n=1)
    if ours is not None and normal(ours) in known:
        hint = f"use '{ours.lstrip('-')}'"
    else:
        hint = f"did you mean '{near[0]}'?" if near else "'sdpy generate --help' lists them"
    raise UsageError(
        f"unknown option '{name}': {hint} (a name that begins with an underscore is your own)"
    )


@dataclass(frozen=True)
class OptionGroups:
    """Values of all options that a job may have: those of the command, or of a job with them.

    Attributes:
        task, generation, mask, control, model: by groups.
    """

    task: TaskOptions = TaskOptions()
    generation: JobGenerationOptions = JobGenerationOptions()
    mask: MaskOptions = MaskOptions()
    control: ControlOptions = ControlOptions()
    model: ModelOptions = ModelOptions()

    def with_options(self, options: Mapping[str, Any]) -> OptionGroups:
        """The same with the options that a job names; see `JobOption.value`.

        Raises:
            UsageError: text that makes no value.
            WeightsError: a textual inversion that cannot be read.
        """
        by_group: dict[type | None, dict[str, Any]] = {}
        for name, value in options.items():
            one = job_options()[name]
            if isinstance(value, tuple):
                value = [Path(each) if one.type is Path else each for each in value]
            elif one.type is Path:
                value = Path(value)
            by_group.setdefault(one.group, {})[name] = value
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            group = getattr(self, field.name)
            values = by_group.get(type(group))
            if values:
                changed[field.name] = replace(group, **parse(type(group), values))
        files = by_group.get(None)
        if files:
            model = changed.get("model", self.model)
            named = {name.removesuffix("_weights"): path for name, path in files.items()}
            changed["model"] = replace(model, weights={**(model.weights or {}), **named})
        return replace(self, **changed)
