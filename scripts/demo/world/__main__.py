"""Look at the scenes that the demo model at 256x256 learns from.

python -m scripts.demo.world sheet OUT.png [--count N] [--seed N] [--size N]
python -m scripts.demo.world captions [--count N] [--seed N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.demo.world import caption_at, draw, scene_at

COLUMNS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo.world", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="draw a contact sheet of scenes as they come")
    sheet.add_argument("out", type=Path, help="PNG file to write")
    sheet.add_argument("--size", type=int, default=256, help="pixels a side of one image")
    captions = commands.add_parser("captions", help="print their captions")
    for command in (sheet, captions):
        command.add_argument("--count", type=int, default=5 * COLUMNS)
        command.add_argument("--seed", type=int, default=0, help="number of the set of scenes")
    options = parser.parse_args(arguments)
    if options.command == "captions":
        for index in range(options.count):
            print(caption_at(index, options.seed))
        return
    drawn = [draw(scene_at(i, options.seed), options.size) for i in range(options.count)]
    rows = -(-len(drawn) // COLUMNS)
    pixels = np.full((rows * options.size, COLUMNS * options.size, 3), 255, np.uint8)
    for i, image in enumerate(drawn):
        y, x = (options.size * place for place in divmod(i, COLUMNS))
        pixels[y : y + options.size, x : x + options.size] = image
    Image.fromarray(pixels).save(options.out)


if __name__ == "__main__":
    main()
