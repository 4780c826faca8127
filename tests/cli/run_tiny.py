"""``python run_tiny.py ARGUMENTS``: the command line with the tiny models, as its own process."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from sdpy.__main__ import main
from sdpy.zoo.variants import VARIANTS
from support.tiny import TINY, TINY_INPAINT

if __name__ == "__main__":
    torch.set_num_threads(1)
    VARIANTS.update({"sd15": TINY, "sd15-inpaint": TINY_INPAINT})
    main()
