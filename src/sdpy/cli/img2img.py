"""``sdpy img2img FILE``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdpy.cli.control import ControlOptions, load_controls
from sdpy.cli.options import CommonOptions, Height, Prompt, Strength, Width
from sdpy.cli.painting import find_components, fit_picture, paint_to_files, painting_settings
from sdpy.images.paths import check_output


def img2img(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The picture to change.", show_default=False)
    ],
    options: CommonOptions,
    control: ControlOptions,
    prompt: Prompt = "A fantasy landscape, trending on artstation.",
    strength: Strength = 0.8,
    width: Width = None,
    height: Height = None,
) -> None:
    """Change a picture towards a prompt.

    Any picture will do: it is turned upright as its EXIF data says; transparency is laid over
    white; palettes, grey and 16-bit pictures become 8-bit RGB. The result has the picture's size,
    however odd (it is padded while it is painted), unless the picture has more pixels than the
    model can work with (1024x1024; the demo model 128x128), or --width and --height ask for
    another size: then it is scaled, and cropped to the centre.
    """
    check_output(options.final_image, options.num_samples)
    from sdpy import pipelines
    from sdpy.images.files import load_image
    from sdpy.images.tensors import image_to_tensor

    image = load_image(file)
    components = find_components(options, default_model="sd15")
    frame = fit_picture(image.size, components, width, height)
    settings = painting_settings(prompt, options, load_controls(control, frame))
    picture = image_to_tensor(frame.apply(image))
    events = pipelines.img2img(components, settings, picture, strength=strength)
    paint_to_files(events, components, settings, options, finish=frame.restore)
