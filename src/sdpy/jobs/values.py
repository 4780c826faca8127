"""The values of the fields of an image's name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sdpy.jobs.fields import moment_fields, prompt_fields
from sdpy.options import given
from sdpy.pipelines.request import GenerationOptions, Request
from sdpy.pipelines.values import sampler_label

OPTION_FIELDS = tuple(name.replace("-", "_") for name in given(GenerationOptions()))
"""Every option of a request can stand in a name, with underscores."""


def image_values(
    resolved: Request, *, model: str, size: tuple[int, int], moment: datetime, sample: int = 0
) -> dict[str, Any]:
    """The values of the fields of one image's name.

    Args:
        resolved: the request of the image, with what was left to the model filled in.
        model: name of the model.
        size: width and height of the finished image.
        moment: when the run began.
        sample: number of the image within its request, from 0.
    """
    assert resolved.scheduler is not None
    options = {name.replace("-", "_"): value for name, value in given(resolved).items()}
    return {
        **options,
        **prompt_fields(resolved.prompt),
        **moment_fields(moment),
        "index": sample + 1,
        "sample": sample + 1,
        "sampler": sampler_label(resolved.scheduler),
        "guidance": resolved.guidance_scale,
        "width": size[0],
        "height": size[1],
        "model": model,
    }
