"""From declared options to Typer's parameters.

A command takes groups of options as dataclasses, whose fields `sdpy.options.option` declares;
`flatten` spreads them out for Typer, and puts them together again for the command.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from sdpy.components import COMPONENTS
from sdpy.options import Option, check_ranges, option, options_of, parse, range_text
from sdpy.runtime.options import EMA_HELP, VARIANT_HELP

_OUTPUT = "Output"


def flatten(command: Callable[..., None]) -> Callable[..., None]:
    """A function with the fields of ``command``'s dataclass parameters as its own parameters."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = hints[name]
        if not dataclasses.is_dataclass(group):
            parameters.append(_keyword(name, group, parameter.default))
            continue
        groups[name] = group
        for field, one in options_of(group):
            if one.flags:
                parameters.append(_typer_parameter(group, field, one))
            else:
                parameters += _component_parameters()

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            chosen: dict[str, Any] = {}
            for field, one in options_of(group):
                if one.flags:
                    chosen[field.name] = values.pop(field.name)
                else:
                    chosen[field.name] = _chosen_components(values)
            values[name] = group(**parse(group, _without_missing(group, chosen)))
            check_ranges(values[name])
        command(**values)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del flat.__wrapped__
    return flat


def _without_missing(group: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that Typer says are None, so that they get the defaults of their fields."""
    return {name: value for name, value in values.items() if value is not None}


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _typer_parameter(group: Any, field: dataclasses.Field[Any], one: Option) -> inspect.Parameter:
    """The Typer option of a field. Typer does not show defaults of None; the help texts do."""
    hint = _field_type(group, field) if one.cli_type is None else one.cli_type
    default = field.default
    if one.cli_type is not None and not isinstance(default, str):
        default, hint = None, hint | None
    settings: dict[str, Any] = {"help": _with_range(one), "rich_help_panel": one.panel}
    metavar = _METAVARS.get(hint) if one.metavar is None else one.metavar
    if metavar is not None:
        settings["metavar"] = metavar
    if one.shown_default is not None:
        settings["show_default"] = one.shown_default
    annotated: Any = Annotated
    annotation = annotated[hint, typer.Option(*one.flags, **settings)]
    return _keyword(field.name, annotation, default)


def _field_type(group: Any, field: dataclasses.Field[Any]) -> Any:
    """The type of a field whose annotation needs no import."""
    return eval(str(field.type), {"Path": Path})


_METAVARS: dict[Any, str] = {
    **dict.fromkeys((int, int | None), "N"),
    **dict.fromkeys((float, float | None), "X"),
    **dict.fromkeys((str, str | None), "TEXT"),
    **dict.fromkeys((Path, Path | None, list[Path], list[Path] | None), "PATH"),
}
"""What ``--help`` calls a value. Longer names leave too little of a narrow terminal to the text."""


_LARGEST_TOLD = 9999
"""The largest maximum that ``--help`` tells; others only keep off what no machine could do."""


def _with_range(one: Option) -> str:
    """The help text, and the range where it is one that people come near."""
    if one.minimum is None or one.maximum is None or one.maximum > _LARGEST_TOLD:
        return one.help
    return f"{one.help} {range_text(one.minimum, one.maximum)}."


def _component_parameters() -> Iterable[inspect.Parameter]:
    """An option for each component that a file can be named for."""
    for component in COMPONENTS.values():
        if component.option is None:
            continue
        annotation = Annotated[
            Path | None,
            typer.Option(
                component.option,
                metavar="PATH",
                help=component.option_help,
                show_default=f"{component.data_files[0]} in DATA",
                rich_help_panel="Model and weights",
            ),
        ]
        yield _keyword(f"{component.name}_weights", annotation, None)


def _chosen_components(values: dict[str, Any]) -> dict[str, Path]:
    given = {
        name: values.pop(f"{name}_weights")
        for name, component in COMPONENTS.items()
        if component.option is not None
    }
    return {name: path for name, path in given.items() if path is not None}


Width = Annotated[int | None, typer.Option(metavar="N", min=1, max=8192, help="Width in pixels.")]
Height = Annotated[int | None, typer.Option(metavar="N", min=1, max=8192, help="Height in pixels.")]

VariantOption = Annotated[
    str | None,
    typer.Option("--variant", show_default="those without one", help=VARIANT_HELP),
]
EmaOption = Annotated[bool, typer.Option("--ema", help=EMA_HELP)]

Prompt = Annotated[
    str,
    typer.Option(
        "--prompt", "-p", metavar="TEXT", help="What to generate; - reads it from standard input."
    ),
]

Strength = Annotated[
    float,
    typer.Option(
        metavar="X",
        help="How much to change the image: the share of the steps that is done. 0 to 1.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the images go, and what is told meanwhile."""

    final_image: Path = option(
        Path("sd_final.png"),
        "--final-image",
        "--output",
        "-o",
        help="File to write: .png, .jpg or .webp; - is a PNG on standard output. Several images "
        "are numbered, as in sd_final.1.png. May have fields in braces, such as {seed}, {slug}, "
        "{date}, and {n} for the next free number; a wrong one lists them all.",
        panel=_OUTPUT,
    )
    overwrite: bool = option(
        False,
        "--overwrite",
        help="Replace files whose names have fields, too. A plain name always does.",
        panel=_OUTPUT,
    )
    no_clobber: bool = option(
        False,
        "--no-clobber",
        help="Refuse, before any work, to replace a file that exists.",
        panel=_OUTPUT,
    )
    step_images: bool = option(
        False,
        "--intermediary-images",
        "--step-images",
        help="Also write what the image looks like after each step: sd_final.step-07.png. TAESD "
        "(--vae-weights) makes this quick.",
        panel=_OUTPUT,
    )
    step_interval: int = option(
        1,
        "--step-interval",
        help="Write it every so many steps.",
        panel=_OUTPUT,
        metavar="N",
        minimum=1,
    )
    step_animation: bool = option(
        False,
        "--step-animation",
        help="Write it as an animation instead: sd_final.steps.webp.",
        panel=_OUTPUT,
    )
    no_metadata: bool = option(
        False,
        "--no-metadata",
        help="Write files that do not say how their images were made.",
        panel=_OUTPUT,
    )
    json: bool = option(
        False,
        "--json",
        help="Print a JSON object a line for each image, with all of its metadata, in the place "
        "of its path.",
        panel=_OUTPUT,
    )
    quiet: bool = option(False, "--quiet", "-q", help="Print nothing but errors.", panel=_OUTPUT)
    verbose: bool = option(
        False,
        "--verbose",
        help="Also say how many images are computed together, and what stays in memory.",
        panel=_OUTPUT,
    )
