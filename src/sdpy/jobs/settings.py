"""What many jobs have in common, found out once for all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sdpy.errors import ShortageError, UsageError
from sdpy.images.files import blank_image
from sdpy.images.frame import size_text
from sdpy.images.mask import load_mask, same_proportions
from sdpy.images.reading import load_image, size_of
from sdpy.jobs.job import Job
from sdpy.jobs.options import OptionGroups
from sdpy.jobs.sessions import Sessions, session_key
from sdpy.jobs.values import image_values
from sdpy.metadata.record import NUMERICS
from sdpy.options import given
from sdpy.pipelines.control_options import control_images
from sdpy.pipelines.inputs import ImageRequest, PreparedRequest, mask_options, prepare_request
from sdpy.pipelines.plan import PlannedRequest, plan_request, resolved
from sdpy.pipelines.recording import Recorder
from sdpy.pipelines.request import Request
from sdpy.pipelines.values import AUTO
from sdpy.runtime.options import DEFAULT_MODEL, ComputeOptions, ModelOptions
from sdpy.runtime.planner import fastest_batch, plan_memory
from sdpy.runtime.session import Session
from sdpy.runtime.workload import Workload

MOST_SETTINGS = 1024
"""That are remembered."""

_PER_IMAGE = frozenset(
    (
        *("prompt", "negative_prompt", "seed", "image", "mask"),
        *("output", "output_folder", "output_name"),
    )
)
"""Options in which images that are computed together may differ."""

_OF_EACH = frozenset(
    ("prompt", "slug", "words", "date", "time", "datetime", "index", "sample", "seed")
)
"""Fields of names that are of the single image, or of the run."""

# These options of a model change rounding at most, or which files are read, whose content counts.
_CHANGES_ROUNDING = frozenset(
    (
        *(field.name for field in fields(ComputeOptions)),
        *("model", "data", "weights", "vocab_file"),
    )
)
# And these options of a request change nothing but how many images are made at a time.
_CHANGES_NOTHING = frozenset(("num-samples", "batch-size", "seed", "negative-prompt"))

_WHITE, _GREY, _BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)


@dataclass(frozen=True, eq=False)
class Group:
    """What jobs have in common that can be computed together.

    Attributes:
        order: by which jobs are sorted, so that models, LoRAs and sizes change less often.
        batch: how many are computed together.
        memory: bytes that they take.
        evaluations: of the UNet for each image, where a context counts as one.
        latent_size: height and width of an image's latents.
        model: which model, and how it computes.
    """

    order: tuple[Hashable, ...]
    batch: int
    memory: float
    evaluations: int
    latent_size: tuple[int, int]
    model: ModelOptions

    @property
    def work(self) -> int:
        """What an image's time grows with, roughly."""
        return self.evaluations * self.latent_size[0] * self.latent_size[1]


@dataclass(frozen=True, eq=False)
class Settings:
    """What many jobs have in common: all of their options but those of the single image.

    Attributes:
        model: which model, and how it computes.
        group: with which jobs they can be computed together.
        request: without image and mask.
        room: tokens that fit into a chunk of a prompt.
        values: for the names of files.
        content: what identifies the images, as far as it depends on these.
    """

    model: ModelOptions
    group: Group
    request: Request
    room: int
    values: Mapping[str, Any]
    content: str


class SettingsFinder:
    """Finds the settings of jobs, and remembers them.

    Args:
        defaults: options of the command.
        device: on which all jobs run, whatever they say; None for their own.
        thorough: whether the pixels of input images are read, and not their sizes alone.

    Attributes:
        sessions: of the models; whoever made this closes them.
    """

    def __init__(self, defaults: OptionGroups, *, device: str | None, thorough: bool) -> None:
        self.sessions = Sessions()
        self.defaults = defaults
        self.device = device
        self.thorough = thorough
        self._settings: dict[Hashable, Settings | Exception] = {}
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}
        self._groups: dict[Hashable, Group] = {}

    def inputs_of(self, job: Job) -> tuple[str | None, str | None]:
        """The files of a job's image and mask; None where it has none."""
        task = self.defaults.task
        image = job.options.get("image", task.image)
        mask = job.options.get("mask", task.mask)
        return _text(image), _text(mask)

    def find(self, job: Job) -> Settings:
        """The settings of a job.

        Raises:
            SdpyError: it cannot work.
        """
        image, mask = self.inputs_of(job)
        if mask is not None and image is None:
            raise UsageError("a mask needs the image that it is for: name it as 'image'")
        size = None if image is None else self._size(image, "image")
        if mask is not None and size is not None:
            mask_size = self._size(mask, "mask")
            if not same_proportions(mask_size, size):
                raise UsageError(
                    f"{mask}: the mask is {size_text(mask_size)} pixels, the image "
                    f"{size_text(size)}; give a mask of the image's size or proportions"
                )
        shared = {name: value for name, value in job.options.items() if name not in _PER_IMAGE}
        return self._find_settings(shared, size, mask is not None)

    def _find_settings(
        self, shared: Mapping[str, Any], size: tuple[int, int] | None, has_mask: bool
    ) -> Settings:
        known = (*shared.items(), size, has_mask)
        found = self._settings.get(known)
        if found is None:
            try:
                found = self._make_settings(shared, size, has_mask)
            except Exception as error:
                found = error.with_traceback(None)
            while len(self._settings) >= MOST_SETTINGS:
                del self._settings[next(iter(self._settings))]
            self._settings[known] = found
        if isinstance(found, Exception):
            raise found
        return found

    def _make_settings(
        self, shared: Mapping[str, Any], size: tuple[int, int] | None, has_mask: bool
    ) -> Settings:
        groups = self.defaults.with_options(shared)
        if self.device is not None and "device" in shared:
            raise UsageError("the job names a device, and --devices does; leave one out")
        model = model_options(groups, has_mask=has_mask, device=self.device)
        session = self.sessions.find(model)
        request = image_request(groups, prompt="")
        if size is not None:
            painted = _BLACK if groups.mask.invert_mask else _WHITE
            request = replace(
                request,
                image=blank_image(size, _GREY),
                mask=blank_image(size, painted) if has_mask else None,
            )
        prepared = prepare_request(session, request)
        plan = plan_request(session, prepared.request)
        models = session.models(loras=plan.request.lora)
        workload = Workload.of(
            models,
            plan.shape,
            contexts=1 + plan.guided,
            chunks=plan.prompts.chunks,
            controls=[control.weights for control in plan.request.controls],
            encodes=size is not None,
        )
        asked = plan.request.batch_size
        batch = fastest_batch(workload) if asked == AUTO else int(asked)
        if session.execution.memory == "low" and asked == AUTO:
            batch = 1
        try:
            within = plan_memory(models, workload, batch)
            need = workload.need(within.execution, within.keep, within.batch)
        except ShortageError:  # of which the job itself will speak
            need = workload.need(models.execution, models.keep, batch)
        kind = (has_mask, size is not None)
        order = (session_key(model), plan.request.lora, plan.shape, kind, plan.batch_key, batch)
        if order not in self._groups:
            self._groups[order] = Group(
                order,
                batch,
                max(need.main, need.gpu),
                evaluations=len(plan.scheduler.timesteps) * (1 + plan.guided),
                latent_size=plan.shape[-2:],
                model=model,
            )
        return Settings(
            model,
            self._groups[order],
            replace(plan.request, image=None, mask=None),
            int(session.variant.text_encoder.max_position_embeddings) - 2,
            _name_values(session, plan, prepared),
            self._content(session, request, plan, model),
        )

    def _content(
        self,
        session: Session,
        request: ImageRequest,
        plan: PlannedRequest,
        model: ModelOptions,
    ) -> str:
        """What identifies an image, but for its prompts, seed and input images."""
        options = {
            name: value
            for name, value in given(plan.request).items()
            if name not in _CHANGES_NOTHING
        }
        options["guidance-scale"] = plan.guidance_scale
        options |= given(mask_options(request))
        # Files count by their content, wherever they lie.
        options["lora"] = [lora.weight for lora in plan.request.lora]
        options["embedding"] = [one.names for one in plan.request.embedding]
        said = {
            field.name: getattr(model, field.name)
            for field in fields(model)
            if field.name not in _CHANGES_ROUNDING
        }
        said["dtype"] = str(session.execution.dtype)
        said["prediction_type"] = session.variant.noise.prediction_type
        controls = [
            [control.preprocessor, control.scale, control.start, control.end]
            + [control.canny_low, control.canny_high, control.known_type]
            for control in request.controls
        ]
        # The weights, and the images that ControlNets are shown; the images are stand-ins.
        recorder = Recorder(session, replace(request, image=None, mask=None))
        files = [(file.role, file.sha256) for file in recorder.record(plan.request, (0, 0)).files]
        return json.dumps([NUMERICS, options, said, controls, files], default=str)

    def _size(self, path: str, kind: str) -> tuple[int, int]:
        known = (path, kind)
        if known not in self._sizes:
            if not self.thorough:
                self._sizes[known] = size_of(path)
            else:
                image = load_mask(path).image if kind == "mask" else load_image(path)
                self._sizes[known] = image.size
        return self._sizes[known]


def _name_values(
    session: Session, plan: PlannedRequest, prepared: PreparedRequest
) -> dict[str, Any]:
    """What the names of files can say of all jobs with the same settings."""
    chosen = resolved(session, plan, 0)
    options = session.options
    model = session.variant.name if options is None or options.model is None else options.model
    values = image_values(chosen, model=Path(model).stem, size=prepared.size, moment=datetime.now())
    unet = session.source.fingerprint("unet")[0]
    values["model_hash"] = session.hashes.sha256(unet)[:10]
    if plan.request.image is None:
        values["strength"] = None
    return {name: value for name, value in values.items() if name not in _OF_EACH}


def model_options(
    groups: OptionGroups, *, has_mask: bool, device: str | None = None
) -> ModelOptions:
    """The options of a job's model, with what the single commands take where they say nothing."""
    model = groups.model
    if model.model is None:
        model = replace(model, model="sd15-inpaint" if has_mask else DEFAULT_MODEL)
    return model if device is None else replace(model, device=device)


def image_request(groups: OptionGroups, prompt: str | None = None) -> ImageRequest:
    """The request of a job.

    Raises:
        UsageError: options that do not match each other.
    """
    task = groups.task
    generation = groups.generation
    if task.lora_weights:
        if len(task.lora_weights) != len(generation.lora):
            raise UsageError(
                f"{len(task.lora_weights)} weights for {len(generation.lora)} LoRAs: give one for "
                "each --lora"
            )
        weighted = zip(generation.lora, task.lora_weights, strict=True)
        generation = replace(
            generation, lora=tuple(replace(lora, weight=weight) for lora, weight in weighted)
        )
    shared = {field.name: getattr(generation, field.name) for field in fields(generation)}
    return ImageRequest(
        prompt if prompt is not None else task.prompt or "",
        image=task.image,
        mask=task.mask,
        strength=task.strength,
        controls=control_images(groups.control),
        **vars(groups.mask),
        **{**shared, "num_samples": 1, "seed": 0},
    )


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)
