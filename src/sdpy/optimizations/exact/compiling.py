"""Networks that torch compiles for the GPU on which they run."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from sdpy.checkpoints.hashes import cache_folder
from sdpy.models import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from sdpy.optimizations.base import PassContext, networks_of


class Compilation:
    """The pass that has torch compile the networks that do the same many times.

    A network's ``forward`` is replaced, and not the network: torch is to see it as a whole, and a
    UNet has no parent in which a wrapper could take its place.
    """

    name = "compilation"

    def applies(self, model: nn.Module, context: PassContext) -> bool:
        """To models whose networks return a single tensor."""
        return context.compiled and isinstance(
            model, UNet2DConditionModel | AutoencoderKL | AutoencoderTiny
        )

    def apply(self, model: nn.Module, context: PassContext) -> None:
        """See `compile_network`."""
        keep_compiled_code()
        for network in networks_of(model):
            compile_network(network)


def keep_compiled_code() -> None:
    """Have torch keep what it compiles in sdpy's cache folder, for the next process.

    It is left where the user says in ``TORCHINDUCTOR_CACHE_DIR``. This holds for the whole process.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # Torch itself sets the variable to its default when its compiler is imported.
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / "compiled")


def compile_network(network: nn.Module) -> None:
    """Have a network compiled when it is first called, for the sizes that it then sees.

    On CUDA its kernels are recorded as a graph and launched together, which takes some calls to
    warm up. The network is to stay where it is in memory. A second size is compiled for all sizes
    that differ from the first in the same dimensions, so that a third one compiles nothing.

    Args:
        network: a UNet, an encoder or a decoder: whatever returns a single tensor.
    """
    compiled = torch.compile(network.forward, mode="reduce-overhead")

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        # A graph writes its result to the same place each time, hence the copy.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return compiled(*args, **kwargs).clone()

    network.forward = forward
