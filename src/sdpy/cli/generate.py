"""``sdpy generate PROMPT``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdpy.cli.images import make_images, prompt_of
from sdpy.cli.options import OutputOptions
from sdpy.pipelines.control_options import ControlOptions, control_images
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.request import GenerationOptions
from sdpy.runtime.options import ModelOptions


def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            help="What to generate; - reads it from standard input.",
            show_default=False,
        ),
    ],
    options: GenerationOptions,
    control: ControlOptions,
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """Generate an image of a prompt.

    The image is as large as those that the model was trained on, such as 512x512 with Stable
    Diffusion 1.5, unless --width and --height say otherwise.
    """
    make_images(
        model,
        output,
        lambda: ImageRequest(prompt_of(prompt), controls=control_images(control), **vars(options)),
    )
