"""``sdpy inpaint FILE MASK``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpy.cli.control import ControlOptions, load_controls
from sdpy.cli.options import CommonOptions, Height, Prompt, Strength, Width
from sdpy.cli.painting import find_components, fit_picture, paint_to_files, painting_settings
from sdpy.images.paths import check_output

if TYPE_CHECKING:
    from PIL.Image import Image


def inpaint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The picture to change.", show_default=False)
    ],
    mask: Annotated[
        Path,
        typer.Argument(metavar="MASK", help="Its mask: white is repainted.", show_default=False),
    ],
    options: CommonOptions,
    control: ControlOptions,
    prompt: Prompt = "Face of a yellow cat, high resolution, sitting on a park bench",
    strength: Strength = 1.0,
    width: Width = None,
    height: Height = None,
) -> None:
    """Repaint a part of a picture; the pixels outside the mask come back unchanged.

    The mask is a picture of the same proportions: where the mean of its channels is at least
    122.5 of 255, the picture is repainted; transparency counts as black. Weights made for
    inpainting (unet-inpaint.ot in DATA) are used if they are there, ordinary ones otherwise. Write
    a PNG: .jpg and .webp files change all pixels a little.

    Any picture will do: it is turned upright as its EXIF data says; transparency is laid over
    white; palettes, grey and 16-bit pictures become 8-bit RGB. The result has the picture's size,
    however odd (it is padded while it is painted), unless the picture has more pixels than the
    model can work with (1024x1024; the demo model 128x128), or --width and --height ask for
    another size: then it is scaled, and cropped to the centre.
    """
    check_output(options.final_image, options.num_samples)
    from sdpy import pipelines
    from sdpy.images.files import load_image
    from sdpy.images.mask import composite, load_mask
    from sdpy.images.tensors import image_to_tensor, mask_to_tensor

    image = load_image(file)
    white = load_mask(mask, image.size)
    components = find_components(options, default_model="sd15-inpaint")
    frame = fit_picture(image.size, components, width, height)
    settings = painting_settings(prompt, options, load_controls(control, frame))
    image, white = frame.apply(image), frame.apply_mask(white)

    def keep_outside(painted: Image) -> Image:
        return frame.restore(composite(image, painted, white))

    events = pipelines.inpaint(
        components, settings, image_to_tensor(image), mask_to_tensor(white), strength=strength
    )
    paint_to_files(events, components, settings, options, finish=keep_outside)
