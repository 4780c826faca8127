"""Look at the scenes that the demo model learns from.

python -m scripts.demo.scenes sheet OUT.png [--seed N] [--size N]
python -m scripts.demo.scenes draw OUT.png --subject house --colour red --time dusk
python -m scripts.demo.scenes captions [--count N] [--seed N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from scripts.demo.scenes import (
    COLOURS,
    SUBJECTS,
    TIMES,
    WEATHERS,
    Scene,
    caption_at,
    contact_sheet,
    draw,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo.scenes", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="draw a contact sheet: subjects by time and weather")
    sheet.add_argument("out", type=Path, help="PNG file to write")
    sheet.add_argument("--seed", type=int, default=0, help="composition seed (default 0)")
    sheet.add_argument(
        "--size", type=int, default=128, help="pixels a side of one image (default 128)"
    )
    single = commands.add_parser("draw", help="draw one scene")
    single.add_argument("out", type=Path, help="image file to write")
    single.add_argument("--subject", choices=SUBJECTS, required=True)
    single.add_argument("--colour", choices=COLOURS)
    single.add_argument("--time", choices=TIMES, default="noon")
    single.add_argument("--weather", choices=WEATHERS, default="clear")
    single.add_argument("--seed", type=int, default=0, help="composition seed (default 0)")
    single.add_argument("--size", type=int, default=512, help="pixels a side (default 512)")
    captions = commands.add_parser("captions", help="print captions of the first training scenes")
    captions.add_argument("--count", type=int, default=40)
    captions.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "sheet":
        Image.fromarray(contact_sheet(options.seed, options.size)).save(options.out)
    elif options.command == "draw":
        o = options
        scene = Scene(o.subject, o.colour, o.time, o.weather, o.seed)
        Image.fromarray(draw(scene, o.size)).save(o.out, quality=95)
    else:
        for index in range(options.count):
            print(caption_at(index, options.seed))


if __name__ == "__main__":
    main()
