"""Blocks of networks that torch compiles for the GPU on which they run.

A network is compiled block by block, and blocks of one class and of the same weights' sizes share
their code. Height, width and the number of rows are left open, so that the code serves all sizes of
images. What lies between the blocks, and their many launches, is left to CUDA graphs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sdpy.checkpoints.hashes import cache_folder
from sdpy.models import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from sdpy.models.attention import BasicTransformerBlock, Transformer2DModel
from sdpy.models.resnet import ResnetBlock2D
from sdpy.models.rows import repeat_rows
from sdpy.models.taesd import AutoencoderTinyBlock
from sdpy.models.vae import AutoencoderAttention
from sdpy.optimizations.base import PassContext, replace_module

MOST_SIZES = 64
"""Sizes of weights for which a block may be compiled; torch's own limit is 8."""

WHOLE = (ResnetBlock2D, AutoencoderAttention, AutoencoderTinyBlock, nn.GroupNorm)
"""Classes whose ``forward`` is compiled as it is, unless they are parts of such."""


class Compilation:
    """The pass that has torch compile the blocks of networks that run many times."""

    name = "compilation"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To UNets, ControlNets and autoencoders."""
        networks = UNet2DConditionModel | ControlNetModel | AutoencoderKL | AutoencoderTiny
        return context.compiled and isinstance(model, networks)

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """See `compile_blocks`."""
        keep_compiled_code()
        compile_blocks(model)


def keep_compiled_code() -> None:
    """Have torch keep what it compiles in sdpy's cache folder, for the next process.

    It is left where the user says in ``TORCHINDUCTOR_CACHE_DIR``. This holds for the whole process.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Torch itself sets the variable to its default when its compiler is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled")


def compile_blocks(model: nn.Module) -> None:
    """Have the blocks of a network compiled when they are first called.

    Args:
        model: whose weights stay; its blocks are those that `sdpy.models` makes, or the fast ones
            for GPUs.
    """
    done: list[str] = []
    for name, module in list(model.named_modules()):
        if any(name.startswith(f"{block}.") for block in done):
            continue
        if type(module) is Transformer2DModel:
            replace_module(model, name, CompiledTransformer(module))
        elif type(module) in WHOLE:
            module.forward = partial(_compiled(type(module).forward), module)
        else:
            continue
        done.append(name)


class CompiledTransformer(nn.Module):
    """A transformer whose parts are compiled: what comes before its blocks, these, what follows.

    Keys and values of the prompt are made outside of them, so that they can be kept from step to
    step.

    Args:
        original: the transformer.
    """

    def __init__(self, original: Transformer2DModel) -> None:
        super().__init__()
        self.original = original

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """See `Transformer2DModel.forward`."""
        original = self.original
        tokens = _compiled(Transformer2DModel.enter)(original, x)
        for block in original.transformer_blocks:
            block = cast(BasicTransformerBlock, block)
            if block.only_cross_attention:
                tokens = block(tokens, context)
            else:
                keys, values = block.attn2.to_k(context), block.attn2.to_v(context)
                tokens = _compiled(_transform)(block, tokens, keys, values)
        return _compiled(Transformer2DModel.leave)(original, tokens, x)


def _transform(block: BasicTransformerBlock, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`BasicTransformerBlock.forward` where the prompt's keys and values are there."""
    x = x + block.attn1(block.norm1(x))
    x = repeat_rows(x, len(keys))
    x = x + block.attn2.look_up(block.norm2(x), keys, values)
    return x + block.ff(block.norm3(x))


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of a module and tensors, compiled once for each size of the module's weights.

    The number of rows, heights and widths are left open, except that one row is another case.
    """
    import torch._dynamo.config as dynamo
    import torch.fx.experimental._config as shapes

    changes: dict[str, Any] = {"recompile_limit": MOST_SIZES}
    compiled = torch.compile(function, dynamic=True, fullgraph=True)

    def call(*args: Any) -> Tensor:
        # Two sizes that happen to be equal need not be so the next time.
        with dynamo.patch(changes), shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return compiled(*args)

    return call
