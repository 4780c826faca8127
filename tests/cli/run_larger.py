"""``python run_larger.py FOLDER OPTIONS``: generate with a UNet of 170 MB; print the peak in bytes.

``--write`` writes the weights instead, ``--nothing`` generates nothing.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import sdpy.pipelines  # that it counts where nothing is generated, too
from sdpy.checkpoints import write_checkpoint
from sdpy.cli.app import run
from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.exact import streaming
from sdpy.zoo.variants import VARIANTS
from support.compare import randomise
from support.tiny import TINY, write_tiny

LARGER = TINY.with_configs(
    unet=replace(
        TINY.unet,
        block_out_channels=(64, 384),
        cross_attention=(False, True),
        attention_heads=(4, 8),
        layers_per_block=2,
    ),
)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(peak)


def main(folder: Path, *options: str) -> None:
    torch.set_num_threads(1)
    VARIANTS["sd15"] = LARGER
    if options == ("--write",):
        write_tiny(folder)
        model = randomise(UNet2DConditionModel(LARGER.unet))
        write_checkpoint(folder / "unet.safetensors", model.state_dict())
        return
    streaming.PIECE_BYTES = 8 * 2**20
    if options != ("--nothing",):
        weights = ("--data", str(folder), "--unet-weights", str(folder / "unet.safetensors"))
        image = ("-o", str(folder / "a.png"), "--steps", "2", "--plain-kernels")
        with contextlib.redirect_stdout(io.StringIO()):
            code = run(["generate", "x", *weights, *image, *options])
        assert code == 0
    print(peak_bytes())


if __name__ == "__main__":
    assert sdpy.pipelines
    main(Path(sys.argv[1]), *sys.argv[2:])
