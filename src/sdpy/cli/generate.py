"""``sdpy generate PROMPT``"""

from __future__ import annotations

from typing import Annotated

import typer

from sdpy.cli.control import ControlOptions, load_controls
from sdpy.cli.options import CommonOptions, Height, Width
from sdpy.cli.painting import find_components, paint_to_files, painting_settings
from sdpy.images.paths import check_output


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="What to paint.", show_default=False)
    ],
    options: CommonOptions,
    control: ControlOptions,
    width: Width = None,
    height: Height = None,
) -> None:
    """Paint a picture from a prompt.

    The picture is 512x512, the demo model's 128x128, unless --width and --height say otherwise.
    """
    check_output(options.final_image, options.num_samples)
    from sdpy import pipelines
    from sdpy.images.frame import Frame

    components = find_components(options, default_model="sd15")
    side = components.variant.sample_size
    width = side if width is None else width
    height = side if height is None else height
    controls = load_controls(control, Frame.fit((width, height), multiple=1, min_side=1))
    settings = painting_settings(prompt, options, controls)
    events = pipelines.generate(components, settings, width=width, height=height)
    paint_to_files(events, components, settings, options)
