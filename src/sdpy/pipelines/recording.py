"""Writing down how an image was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdpy import __version__
from sdpy.checkpoints import DTYPES_BY_NAME, FileState, file_state, fingerprint, lora_fingerprint
from sdpy.components import COMPONENTS
from sdpy.images.metadata import ImageTexts
from sdpy.metadata.parameters import Parameters, parameters_text
from sdpy.metadata.record import ImageRecord, RecordedFile
from sdpy.options import facts_of, given, number_text
from sdpy.pipelines.controlnet import control_type_count
from sdpy.pipelines.inputs import ControlImage, ImageRequest, mask_options
from sdpy.pipelines.plan import find_task_name
from sdpy.pipelines.request import MaskOptions, Request
from sdpy.pipelines.values import shown_path
from sdpy.runtime.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdpy.pipelines.inputs import ImageLike
    from sdpy.runtime.options import ModelOptions

_FIRST_FACTS = ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed")
"""In the order of A1111's web UI."""

# Of a run, not of an image.
_LEFT_OUT = ("num-samples", "batch-size")


@dataclass(frozen=True, eq=False)
class Recorder:
    """Writes records of the images of one request.

    Attributes:
        session: whose models make them.
        asked: the request as it was given.
    """

    session: Session
    asked: ImageRequest

    def expect(self) -> None:
        """Begin to hash the weights, beside other work."""
        self.session.hashes.expect(file for _, file in self._weights)

    def texts(self, resolved: Request, size: tuple[int, int]) -> ImageTexts:
        """The texts for the file of an image; waits for the hashes.

        Args:
            resolved: the request of this image alone.
            size: width and height of the finished image.
        """
        record = self.record(resolved, size)
        return ImageTexts(
            parameters_text(self.parameters(record, resolved)),
            record.to_json(),
        )

    def record(self, resolved: Request, size: tuple[int, int]) -> ImageRecord:
        """The record of an image; see `texts`."""
        session = self.session
        options = {} if session.options is None else _model_options(session.options)
        options |= _plain(given(resolved))
        if self.asked.image is not None:
            options |= {"width": self.asked.width, "height": self.asked.height}
        for name, image in (("image", self.asked.image), ("mask", self.asked.mask)):
            if isinstance(image, str | os.PathLike):
                options[name] = shown_path(image)
        if self._mask_options is not None:
            options |= _plain(given(self._mask_options))
        options |= _control_options(self.asked.controls)
        return ImageRecord(
            task=find_task_name(resolved),
            prompt=resolved.prompt,
            options={name: value for name, value in options.items() if name not in _LEFT_OUT},
            size=size,
            model={
                "name": session.name,
                "variant": session.variant.name,
                "prediction-type": session.variant.noise.prediction_type,
            },
            files=self.files,
            environment=environment(session),
        )

    def parameters(self, record: ImageRecord, resolved: Request) -> Parameters:
        """What A1111's text says of an image."""
        session = self.session
        labelled = facts_of(resolved)
        if self._mask_options is not None:
            labelled |= facts_of(self._mask_options)
        facts = {label: labelled.pop(label) for label in _FIRST_FACTS if label in labelled}
        facts["Size"] = f"{record.size[0]}x{record.size[1]}"
        facts["Model hash"] = _short(record.files_of("unet"))
        facts["Model"] = session.name
        own = session.options
        for name in (own.weights or {}) if own is not None else {}:
            files, label = record.files_of(name), COMPONENTS[name].label
            facts |= {f"{label} hash": _short(files), label: Path(files[0].name).stem}
        facts |= labelled
        if own is not None and own.prediction_type is not None:
            facts["Prediction type"] = own.prediction_type
        if own is not None and own.refiner is not None:
            facts["Refiner"] = f"{Path(own.refiner).stem} [{_short(record.files_of('refiner'))}]"
        if session.execution.dtype != torch.float32:
            facts["Dtype"] = record.environment["dtype"]
        for label, role in (("Lora hashes", "lora"), ("TI hashes", "embedding")):
            files = record.files_of(role)
            if files:
                facts[label] = ", ".join(
                    f"{Path(one.name).stem}: {one.sha256[:10]}" for one in files
                )
        for i, lora in enumerate(resolved.lora):
            facts[f"LoRA {i}"] = f"{lora.path.name}:{number_text(lora.weight)}"
        for i, control in enumerate(resolved.controls):
            span = f"{number_text(control.start)}-{number_text(control.end)}"
            told = f"{control.weights.name}:{number_text(control.scale)} {span}"
            takes_type = control_type_count(session, control.weights) > 0
            facts[f"ControlNet {i}"] = f"{told} {control.control_type}" if takes_type else told
        for approximation in resolved.approximations:
            facts |= approximation.facts()
        facts["Version"] = f"sdpy {__version__}"
        return Parameters(record.prompt, resolved.negative_prompt or "", facts)

    @property
    def _mask_options(self) -> MaskOptions | None:
        """How the mask was read; None where there is none."""
        return None if self.asked.mask is None else mask_options(self.asked)

    @cached_property
    def _weights(self) -> list[tuple[str, FileState]]:
        """The files that the models read, by their roles."""
        source = self.session.source
        found = [
            (name, state) for name in source.files.weights for state in source.fingerprint(name)
        ]
        if self.session.refiner is not None:
            refiner = self.session.refiner.source
            for name, role in (("unet", "refiner"), ("text_encoder_2", "refiner text_encoder_2")):
                if name in refiner.files.weights:
                    found += [(role, state) for state in refiner.fingerprint(name)]
        found.append(("vocabulary", file_state(Path(source.files.vocabulary))))
        for role, paths in (
            ("embedding", [one.path for one in self.asked.embedding]),
            *(
                (source.companion(path), [path])
                for path in (Path(control.weights) for control in self.asked.controls)
            ),
        ):
            found += [(role, state) for path in paths for state in fingerprint(path)]
        for lora in self.asked.lora:
            found += [("lora", state) for state in lora_fingerprint(lora.path)]
        return found

    @cached_property
    def files(self) -> tuple[RecordedFile, ...]:
        """All files, with their hashes, which are waited for."""
        hashes = self.session.hashes
        weights = (
            RecordedFile(role, Path(state.path).name, hashes.sha256(state))
            for role, state in self._weights
        )
        return (*weights, *self._images())

    def _images(self) -> Iterator[RecordedFile]:
        images = [("image", self.asked.image), ("mask", self.asked.mask)]
        images += [("control image", control.image) for control in self.asked.controls]
        for role, image in images:
            if image is not None:
                yield RecordedFile(role, *_name_and_hash(self.session, image))


def _name_and_hash(session: Session, image: ImageLike) -> tuple[str, str]:
    if isinstance(image, str | os.PathLike):
        state = file_state(Path(image))
        return Path(image).name, session.hashes.sha256(state)
    return "", hash_of_pixels(image)


def hash_of_pixels(image: Image) -> str:
    """The SHA-256 of an image's RGB pixels in hexadecimal digits; its size counts, too."""
    from sdpy.images.reading import to_rgb

    rgb = to_rgb(image)
    return hashlib.sha256(b"%d %d " % rgb.size + rgb.tobytes()).hexdigest()


def _model_options(options: ModelOptions) -> dict[str, Any]:
    """The options that ask for a model, with those that name the file of a component."""
    chosen = given(options)
    for name, path in (options.weights or {}).items():
        chosen[(COMPONENTS[name].option or name).lstrip("-")] = path
    return _plain(chosen)


def _control_options(controls: tuple[ControlImage, ...]) -> dict[str, Any]:
    """The options that ask for the ControlNets; nothing where there are none."""
    if not controls:
        return {}
    images = [control.image for control in controls]
    return {
        "controlnet": [shown_path(control.weights) for control in controls],
        "control-image": [
            shown_path(image) if isinstance(image, str | os.PathLike) else None for image in images
        ],
        "control-scale": [control.scale for control in controls],
        "control-start": [control.start for control in controls],
        "control-end": [control.end for control in controls],
        "control-preprocessor": [control.preprocessor for control in controls],
        **_control_types(controls),
        "canny-low": controls[0].canny_low,
        "canny-high": controls[0].canny_high,
    }


def _control_types(controls: tuple[ControlImage, ...]) -> dict[str, Any]:
    """The option that says of what kind the control images are; nothing where it is not given."""
    if all(control.control_type is None for control in controls):
        return {}
    return {"control-type": [control.known_type or "none" for control in controls]}


def environment(session: Session) -> dict[str, str]:
    """What rounding depends on."""
    device = session.placement["unet"]
    name = str(device.type)
    if name == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name(device)
    dtypes = {dtype: name for name, dtype in DTYPES_BY_NAME.items()}
    return {
        "torch": str(torch.__version__),
        "device": name,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "dtype": dtypes.get(session.execution.dtype, str(session.execution.dtype)),
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them."""
    return {
        name: shown_path(value) if isinstance(value, os.PathLike) else value
        for name, value in values.items()
    }


def _short(files: Sequence[RecordedFile]) -> str:
    return files[0].sha256[:10]
