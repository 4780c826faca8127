"""From how an image was made back to what makes it again."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdpy.components import COMPONENTS
from sdpy.errors import UsageError
from sdpy.metadata.parameters import Parameters
from sdpy.metadata.record import NUMERICS, ImageRecord, RecordedFile
from sdpy.options import options_of, taken
from sdpy.pipelines.control_options import ControlOptions, control_images
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.request import GenerationOptions
from sdpy.pipelines.values import read_interval
from sdpy.runtime.options import ModelOptions
from sdpy.schedulers.registry import SIGMA_LABELS, find_scheduler

_HOME = re.compile(r"(^|=)~(?=[/\\])")
_SIZE = re.compile(r"(\d+)x(\d+)")

# Facts of A1111's text that change no pixel, or that other facts say, too.
_HARMLESS = (
    *("Size", "Model", "Model hash", "Version", "VAE", "VAE hash", "Lora hashes", "TI hashes"),
    *("Schedule type", "RNG", "Emphasis", "User", "Created Date"),
)

_IMAGES = ("image", "mask", "control image")


@dataclass(frozen=True)
class Recalled:
    """What makes an image again.

    Attributes:
        request: of the image.
        model: the options of the model.
        doubts: why the result may be another image, a line each.
        files: the files that went into it, with their hashes; empty where these are not known.
        record: sdpy's own record of it; None where there is none.
    """

    request: ImageRequest
    model: ModelOptions
    doubts: tuple[str, ...] = ()
    files: tuple[RecordedFile, ...] = ()
    record: ImageRecord | None = None


def recall_record(record: ImageRecord, images: Mapping[str, Path]) -> Recalled:
    """What makes the image of a record again.

    Args:
        record: of the image.
        images: in the places of the recorded input images, by their roles.

    Raises:
        UsageError: an input image was no file and is not given, or an option cannot be.
        WeightsError: an embedding is missing or broken.
    """
    options = {name: _at_home(value) for name, value in record.options.items()}
    given = {name: options[name] for name in ("image", "mask") if options.get(name) is not None}
    given |= {name: str(path) for name, path in images.items()}
    needed = {"img2img": ("image",), "inpaint": ("image", "mask")}.get(record.task, ())
    for name in needed:
        if name not in given:
            raise UsageError(f"its {name} was no file: name one by --{name}")
    fields_given: dict[str, Any] = {name: Path(given[name]) for name in needed}
    fields_given["controls"] = control_images(ControlOptions(**taken(ControlOptions, options)))
    request = ImageRequest(record.prompt, **fields_given, **taken(ImageRequest, options))
    doubts = tuple(_doubts(record, options))
    model = _model_options(options)
    if model.threads is None and str(record.environment.get("threads", "")).isdigit():
        model = replace(model, threads=int(record.environment["threads"]))
    return Recalled(request, model, doubts, record.files, record)


def recall_parameters(parameters: Parameters, images: Mapping[str, Path]) -> Recalled:
    """What comes nearest to the image that A1111's text is of.

    Raises:
        UsageError: a sampler that sdpy does not have, or an image that needs another and is not
            given it.
    """
    facts = dict(parameters.facts)
    options: dict[str, Any] = {"negative-prompt": parameters.negative_prompt}
    is_ours = facts.get("Version", "").startswith("sdpy ")
    doubts = [] if is_ours else [_foreign_noise(facts)]
    if "Sampler" in facts:
        scheduler, sigmas = find_scheduler(facts.pop("Sampler"))
        label = facts.get("Schedule type", "")
        names = {label.lower(): name for name, label in SIGMA_LABELS.items()}
        options["scheduler"] = scheduler
        if names.get(label.lower(), sigmas) is not None:
            options["sigmas"] = names.get(label.lower(), sigmas)
        elif label not in ("", "Automatic"):
            doubts.append(f"Schedule type: {label} is not known")
    if size := _SIZE.fullmatch(facts.get("Size", "")):
        options |= {"width": int(size[1]), "height": int(size[2])}
    if facts.get("Emphasis") == "None":
        options["prompt-syntax"] = "plain"
    labels = {one.label: one for _, one in options_of(ImageRequest)}
    for label, value in facts.items():
        one = labels.get(label)
        if one is None or label in _HARMLESS:
            if label not in _HARMLESS:
                doubts.append(f"{label}: {value} is left out")
            continue
        # An interval has a comma in its option, which would have to be quoted in this text.
        is_interval = one.parse is read_interval
        options[one.name] = value.replace("-", ",") if is_interval else _number(value)
    if "strength" in options and "image" not in images:
        raise UsageError("it was made of another image: name that by --image")
    if "strength" not in options and images:
        doubts.append("it does not say of a denoising strength: the usual one is taken")
    request = ImageRequest(parameters.prompt, **{**images, **taken(ImageRequest, options)})
    hashed = facts.get("Model hash", "")
    files = (RecordedFile("unet", facts.get("Model", ""), hashed),) if hashed else ()
    named = facts.get("Model", "")
    model = ModelOptions(model=named) if is_ours and named else ModelOptions()
    return Recalled(request, model, tuple(doubts), files)


def changed_files(recalled: Recalled, found: tuple[RecordedFile, ...]) -> Iterator[str]:
    """What is to be said of files that are not those that went into the image.

    Args:
        recalled: the image, and the files that went into it.
        found: those that make it again.
    """
    roles = dict.fromkeys(file.role for file in recalled.files)
    for role in roles:
        before = [file for file in recalled.files if file.role == role]
        now = [file for file in found if file.role == role]
        if len(before) != len(now):
            yield f"it was made with {len(before)} files of {role}, not {len(now)}"
        for old, new in zip(before, now, strict=False):
            # An image that was no file is known by its pixels, others by their bytes.
            is_comparable = role not in _IMAGES or bool(old.name) == bool(new.name)
            if is_comparable and not new.sha256.startswith(old.sha256):
                label = COMPONENTS[role].label if role in COMPONENTS else role
                yield (
                    f"the {label} is another file: it was {old.name or 'one'} with SHA-256 "
                    f"{old.sha256[:10]}, now it is {new.name or 'one'} with {new.sha256[:10]}"
                )


def differing_environment(record: ImageRecord, now: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of a machine that rounds in another way."""
    if record.numerics != NUMERICS:
        yield (
            f"it cannot be the same: sdpy {record.sdpy} computed in another way (numerics "
            f"{record.numerics}, now {NUMERICS})"
        )
    for name, value in record.environment.items():
        if now.get(name) != value:
            yield f"it may differ by rounding: {name} was {value}, now it is {now.get(name)}"


def _model_options(options: Mapping[str, Any]) -> ModelOptions:
    """The options of the model, with paths as paths."""
    chosen = taken(ModelOptions, options)
    for field in fields(ModelOptions):
        if "Path" in str(field.type) and isinstance(chosen.get(field.name), str):
            chosen[field.name] = Path(chosen[field.name])
    weights = {
        name: Path(options[one.option.lstrip("-")])
        for name, one in COMPONENTS.items()
        if one.option is not None and options.get(one.option.lstrip("-")) is not None
    }
    return ModelOptions(**{**chosen, "weights": weights or None})


def _doubts(record: ImageRecord, options: Mapping[str, Any]) -> Iterator[str]:
    """Options of another version that this one does not have."""
    known = {
        flag.lstrip("-")
        for group in (ImageRequest, ModelOptions, ControlOptions, GenerationOptions)
        for _, one in options_of(group)
        for flag in one.flags
    }
    known |= {(one.option or "").lstrip("-") for one in COMPONENTS.values()} | {"image", "mask"}
    known |= {flag.split("/")[0] for flag in known}
    for name, value in options.items():
        if name not in known and value not in (None, False, [], ""):
            yield f"this version has no option --{name}, which was {value}"


def _at_home(value: Any) -> Any:
    """A value with the home folder in the place of ``~``."""
    if isinstance(value, str):
        home = os.path.expanduser("~")
        return _HOME.sub(lambda match: match[1] + home, value)
    return [_at_home(one) for one in value] if isinstance(value, list) else value


def _foreign_noise(facts: Mapping[str, str]) -> str:
    noise = facts.get("RNG", "GPU")
    if noise == "CPU":
        return "it may differ: another program made it"
    return f"it cannot be the same: another program drew its noise ({noise}), sdpy draws another"


def _number(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
