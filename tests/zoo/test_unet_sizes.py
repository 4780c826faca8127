"""Layers of transformers, the middle and added conditions, read off shapes and written as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from sdpy.models import ControlNetConfig, ControlNetModel, UNet2DConditionModel
from sdpy.zoo.config_files import controlnet_json, unet_json
from sdpy.zoo.configs import controlnet_config, unet_config
from support.references import reference_unet
from support.tiny import TINY

SIZES = replace(
    TINY.unet,
    block_out_channels=(32, 64, 128),
    cross_attention=(False, True, True),
    attention_heads=(1, 1, 2),
    layers_per_block=2,
    use_linear_projection=True,
    norm_num_groups=32,
)
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 1600,
}
UNETS: dict[str, dict[str, Any]] = {
    "the same everywhere": {},
    "two layers everywhere": {"transformer_layers_per_block": 2},
    "the middle as the last level, which does not attend": {
        "cross_attention": (True, True, False),
        "transformer_layers_per_block": (1, 1, 3),
    },
    "by level": {"transformer_layers_per_block": (1, 2, 3), **ADDED},
    "by block": {
        "transformer_layers_per_block": (1, (2, 1), (4, 3)),
        "reverse_transformer_layers_per_block": ((3, 2, 4), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "other layers on the way up": {
        "transformer_layers_per_block": (1, 2, 1),
        "reverse_transformer_layers_per_block": (2, 3, 1),
    },
    "no middle": {"mid_block_type": None},
    "other layers at each level": {"layers_per_block": (2, 1, 3), "mid_block_type": None},
    "by block at levels of other layers": {
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (1, (2, 1), 4),
        "reverse_transformer_layers_per_block": ((3, 2), (2, 1, 1), 1),
    },
    "a level that attends to the prompt only": {
        "cross_attention": (True, True, False),
        "only_cross_attention": (True, False, False),
        "cross_attention_dim": 24,
    },
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(name: str) -> None:
    """Without a ``config.json``, and with the one that is written, which diffusers understands."""
    config = replace(SIZES, **UNETS[name])
    with torch.device("meta"):
        outline = UNet2DConditionModel(config).state_dict()
        assert unet_config(outline, {}) == config
        written = json.loads(json.dumps(unet_json(config, 8)))
        assert unet_config(outline, written) == config
        theirs = diffusers.UNet2DConditionModel.from_config(written).state_dict()
        assert theirs.keys() == reference_unet(config).state_dict().keys() == outline.keys()


def test_a_configuration_tells_what_equal_widths_hide() -> None:
    only = (True, False, False)
    config = replace(SIZES, cross_attention=(True, True, True), only_cross_attention=only)
    assert config.cross_attention_dim == config.block_out_channels[0]
    with torch.device("meta"):
        outline = UNet2DConditionModel(config).state_dict()
    assert unet_config(outline, {}).only_cross_attention is False
    assert unet_config(outline, json.loads(json.dumps(unet_json(config, 8)))) == config


@pytest.mark.parametrize("name", ["by level", "the same everywhere", "two layers everywhere"])
def test_controlnet(name: str) -> None:
    unet = replace(SIZES, **UNETS[name])
    config = ControlNetConfig(unet, conditioning_embedding_out_channels=(4, 8))
    with torch.device("meta"):
        outline = ControlNetModel(config).state_dict()
        assert controlnet_config(outline, {}) == config
        written = json.loads(json.dumps(controlnet_json(config)))
        theirs = diffusers.ControlNetModel.from_config(written).state_dict()
        assert theirs.keys() == outline.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformer_layers_per_block": (1, 2)}, "2 numbers of transformer layers for 3 levels"),
        ({"transformer_layers_per_block": (1, (2, 1, 1), 1)}, "3 numbers .* for 2 blocks"),
        ({"transformer_layers_per_block": (1, (2, 1), 1)}, "reverse_.* is needed, too"),
        ({"reverse_transformer_layers_per_block": (1, (2, 1), 1)}, "2 numbers .* for 3 blocks"),
        ({"layers_per_block": (1, 2)}, "2 layers_per_block for 3 levels"),
        ({"only_cross_attention": (True,)}, "1 only_cross_attention for 3 levels"),
        ({"mid_block_type": "Strange"}, "mid_block_type Strange: use one of"),
        ({"addition_embed_type": "image"}, "addition_embed_type image: use text_time"),
        ({"cross_attention": (False,) * 3, "mid_block_type": None}, "attends to the prompt"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        UNet2DConditionModel(replace(SIZES, **changes))
