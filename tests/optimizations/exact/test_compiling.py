"""Compiled blocks of networks against the same ones as they are.

What torch makes of the traced operations is torch's: here they are run as they were traced, which
needs no C++ compiler. That nothing escapes the trace, and how often there is one, is to be seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from sdpy.models import (
    AutoencoderKL,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    ControlNetConfig,
    ControlNetModel,
    UNet2DConditionModel,
)
from sdpy.optimizations.approximate import DeepCache, approximate
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import apply_passes, compiling
from sdpy.optimizations.exact.cached_linear import CachedLinear
from sdpy.optimizations.exact.compiling import Compilation, compile_blocks, keep_compiled_code
from sdpy.optimizations.exact.folded_attention import PromptCaching
from sdpy.optimizations.exact.gpu_layers import JoinedProjections
from sdpy.runtime.execution import Execution
from support.compare import normal, randomise, relative_error
from support.tiny import TINY, tiny_model

GPU = torch.device("cuda")
TOLERANCE = 1e-6
TIME = torch.tensor(981)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Whatever is traced; each trace is whole, and is run as it is."""
    made: list[Any] = []
    original = torch.compile

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        made.append(graph)
        return graph.forward

    def trace(function: Any, *, fullgraph: bool, dynamic: bool) -> Any:
        assert fullgraph and dynamic
        return original(function, fullgraph=True, dynamic=True, backend=count)

    monkeypatch.setattr(torch, "compile", trace)
    compiling._compiled.cache_clear()
    torch._dynamo.reset()
    yield made
    compiling._compiled.cache_clear()
    torch._dynamo.reset()


def unet_inputs(
    size: tuple[int, int], samples: int = 2, prompts: int = 2, tokens: int = 77
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(samples, 4, *size),
        TIME,
        normal(samples * prompts, tokens, TINY.unet.cross_attention_dim, seed=1),
    )


@torch.inference_mode()
def test_code_is_shared_by_blocks_networks_and_sizes(traces: list[Any]) -> None:
    plain, compiled, other = (tiny_model("unet") for _ in range(3))
    assert isinstance(plain, UNet2DConditionModel) and isinstance(compiled, UNet2DConditionModel)
    randomise(other, seed=5)
    for model in (compiled, other):
        for one in (PromptCaching(), JoinedProjections(), Compilation()):
            one.apply(model, PassContext(device=GPU))
    inputs = unet_inputs((12, 10))
    assert relative_error(compiled(*inputs), plain(*inputs)) <= TOLERANCE
    made = len(traces)
    # Eight ResNets, three parts of each of four transformers, and the last norm.
    assert 0 < made < 8 + 4 * 3 + 1
    kept = [module for module in compiled.modules() if isinstance(module, CachedLinear)]
    assert len(kept) == 8 and all(layer.keeps(inputs[2]) for layer in kept)
    for changed in (
        unet_inputs((16, 16)),
        unet_inputs((8, 14), samples=3),
        unet_inputs((12, 10), tokens=154),
    ):
        assert relative_error(compiled(*changed), plain(*changed)) <= TOLERANCE
    other(*inputs)
    assert len(traces) == made

    # DeepCache calls the parts of a UNet by themselves.
    results = []
    for unet in (plain, compiled):
        with approximate(unet, [DeepCache(2)], [0, 1]) as approximated:
            samples = [normal(2, 4, 12, 10, seed=seed) for seed in range(3)]
            results.append([approximated(sample, TIME, inputs[2]) for sample in samples])
    for ours, theirs in zip(*results, strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE
    assert len(traces) == made

    # A ControlNet begins with the same blocks.
    config = ControlNetConfig(unet=TINY.unet, conditioning_embedding_out_channels=(4, 8))
    networks = [randomise(ControlNetModel(config), seed=4) for _ in range(2)]
    for one in (PromptCaching(), JoinedProjections(), Compilation()):
        one.apply(networks[1], PassContext(device=GPU))
    shown = normal(1, 3, 24, 20, seed=2)
    (plain_down, plain_mid), (down, mid) = (
        network(*inputs, controlnet_cond=shown) for network in networks
    )
    for ours, theirs in zip((*down, mid), (*plain_down, plain_mid), strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE


@torch.inference_mode()
def test_autoencoder(traces: list[Any]) -> None:
    plain, compiled = tiny_model("vae"), tiny_model("vae")
    assert isinstance(plain, AutoencoderKL) and isinstance(compiled, AutoencoderKL)
    compile_blocks(compiled)
    made = []
    for size in ((12, 10), (8, 16)):
        image, latents = normal(2, 3, 2 * size[0], 2 * size[1]), normal(2, 4, *size)
        assert relative_error(compiled.encode(image).mean, plain.encode(image).mean) <= TOLERANCE
        assert relative_error(compiled.decode(latents), plain.decode(latents)) <= TOLERANCE
        made.append(len(traces))
    assert made[0] == made[1]


@torch.inference_mode()
def test_tiny_autoencoder_is_a_single_block(traces: list[Any]) -> None:
    config = AutoencoderTinyConfig(channels=8)
    plain, compiled = (randomise(AutoencoderTiny(config), seed=6) for _ in range(2))
    assert isinstance(plain, AutoencoderTiny) and isinstance(compiled, AutoencoderTiny)
    compile_blocks(compiled)
    latents = normal(2, 4, 4, 6)
    assert relative_error(compiled.decode(latents), plain.decode(latents)) <= TOLERANCE
    assert len(traces) == 1


@torch.inference_mode()
def test_tiles_are_left_as_they_are(traces: list[Any]) -> None:
    plain, tiled = tiny_model("vae"), tiny_model("vae")
    assert isinstance(plain, AutoencoderKL) and isinstance(tiled, AutoencoderKL)
    apply_passes(tiled, PassContext(tiled=True))
    compile_blocks(tiled)
    latents = normal(1, 4, 12, 10)
    assert relative_error(tiled.decode(latents), plain.decode(latents)) <= 1e-5


@pytest.mark.parametrize(
    ("name", "device", "execution", "compiled"),
    [
        ("unet", GPU, Execution(compile=True), True),
        ("unet", GPU, Execution(), False),
        ("unet", torch.device("cpu"), Execution(compile=True), False),
        ("unet", GPU, Execution(compile=True, streamed=True), False),
        ("unet", GPU, Execution(compile=True, offload=True), False),
        ("text_encoder", GPU, Execution(compile=True), False),
    ],
)
def test_what_is_compiled(
    name: str, device: torch.device, execution: Execution, compiled: bool
) -> None:
    context = PassContext(device=device, compiled=execution.compiles_on(device))
    assert Compilation().applies(tiny_model(name), context) == compiled


def test_compiled_code_is_kept_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SDPY_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


COMPILE_TWICE = """
import torch
from torch import nn
from torch._dynamo.utils import counters
from sdpy.models.taesd import AutoencoderTinyBlock
from sdpy.optimizations.exact.compiling import compile_blocks, keep_compiled_code
from support.compare import normal
keep_compiled_code()
blocks = nn.Sequential(*(AutoencoderTinyBlock(4) for _ in range(3)))
compile_blocks(blocks)
with torch.inference_mode():
    for height in (8, 9):
        blocks(normal(2, 4, height, 6))
found = counters["inductor"]
print(found["fxgraph_cache_hit"], found["fxgraph_cache_miss"])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs by g++")
def test_the_next_process_finds_what_was_compiled(tmp_path: Path) -> None:
    environment = {**os.environ, "SDPY_CACHE": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", COMPILE_TWICE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found == [["0", "1"], ["1", "0"]]
    assert any(path.is_file() for path in (tmp_path / "compiled").rglob("*"))
