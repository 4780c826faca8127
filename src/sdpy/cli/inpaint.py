"""``sdpy inpaint FILE MASK``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdpy.cli.images import check_streams, image_of, make_images, prompt_of
from sdpy.cli.options import OutputOptions, Prompt, Strength
from sdpy.pipelines.control_options import ControlOptions, control_images
from sdpy.pipelines.inputs import ImageRequest
from sdpy.pipelines.request import GenerationOptions, MaskOptions
from sdpy.runtime.options import ModelOptions


def inpaint(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The image to change; - reads it from standard input.",
            show_default=False,
        ),
    ],
    mask: Annotated[
        Path,
        typer.Argument(metavar="MASK", help="Its mask: white is repainted.", show_default=False),
    ],
    options: GenerationOptions,
    mask_options: MaskOptions,
    control: ControlOptions,
    model: ModelOptions,
    output: OutputOptions,
    prompt: Prompt = "Face of a yellow cat, high resolution, sitting on a park bench",
    strength: Strength = 1.0,
) -> None:
    """Repaint a part of an image; the pixels outside the mask come back unchanged.

    The mask is an image of the same proportions: white is repainted, black is kept, and of grey
    pixels a share is repainted, the more the brighter. Transparency counts as black; but in a mask
    that is a photograph, what was erased is repainted. Weights made for inpainting
    (unet-inpaint.ot in DATA) are used if they are there, ordinary ones otherwise. Write a PNG: .jpg
    and .webp files change all pixels a little.

    Any image will do: it is turned upright as its EXIF data says; transparency is laid over
    white; palettes, grey and 16-bit images become 8-bit RGB. The result has the image's size,
    however odd (it is padded meanwhile), unless the image has more pixels than the model can work
    with (1024x1024; the demo model 128x128), or --width and --height ask for another size: then it
    is scaled, and cropped to the centre.
    """
    check_streams(FILE=file, MASK=mask, **{"--prompt": prompt})
    make_images(
        model,
        output,
        lambda: ImageRequest(
            prompt_of(prompt),
            image=image_of(file),
            mask=image_of(mask),
            strength=strength,
            controls=control_images(control),
            **vars(mask_options),
            **vars(options),
        ),
        default_model="sd15-inpaint",
    )
