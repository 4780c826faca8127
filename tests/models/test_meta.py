"""Models without weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from sdpy.models import CLIPTextModel, UNet2DConditionModel
from sdpy.models.meta import init_empty_weights
from support.tiny import TINY


def test_a_model_without_weights_has_the_names_and_shapes_of_a_model_and_nothing_else() -> None:
    for make in (
        lambda: CLIPTextModel(TINY.text_encoder),
        lambda: UNet2DConditionModel(TINY.unet),
        lambda: nn.MultiheadAttention(8, 2),
    ):
        with init_empty_weights():
            model = make()
        tensors = model.state_dict()
        assert all(tensor.is_meta for tensor in tensors.values())
        assert {name: tensor.shape for name, tensor in tensors.items()} == {
            name: tensor.shape for name, tensor in make().state_dict().items()
        }


def test_after_the_block_models_are_initialised_again() -> None:
    with init_empty_weights():
        pass
    layer = nn.Embedding(100, 10)
    assert layer.weight.device.type == "cpu" and 0.8 < layer.weight.std() < 1.2
    assert torch.equal(nn.LayerNorm(3).weight, torch.ones(3))


def test_generating_does_not_import_the_compiler(tmp_path: Path) -> None:
    """It takes a second or two, and comes along wherever torch computes shapes in Python."""
    code = (
        "import sys; from sdpy.cli.app import run; code = run(sys.argv[1:]); "
        "print(code, 'torch._dynamo' in sys.modules)"
    )
    options = ["--model", "demo", "--n-steps", "1", "--quiet", "-o", str(tmp_path / "picture.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "a red boat", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "False"]
