"""Compiled networks against the same ones as they are.

What torch makes of the traced operations is torch's: here they are run one by one, which needs no
C++ compiler. That nothing escapes the trace is what is to be seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from sdpy.models import AutoencoderKL
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact.compiling import Compilation, compile_network, keep_compiled_code
from sdpy.runtime.execution import Execution
from support.compare import normal, relative_error
from support.tiny import TINY, tiny_model

UNET_INPUTS = (normal(2, 4, 12, 10), torch.tensor(981), normal(2, 77, 32, seed=1))
_CHANNELS = TINY.unet.block_out_channels
MIDDLE = (_CHANNELS[-1], *(-(-side // 2 ** (len(_CHANNELS) - 1)) for side in (12, 10)))
"""(C, H, W) in the middle of the UNet."""
GPU = torch.device("cuda")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def traces(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each compilation."""
    asked: list[dict[str, Any]] = []
    original = torch.compile

    def trace(function: Any, **options: Any) -> Any:
        asked.append(options)
        return original(function, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", trace)
    return asked


@torch.inference_mode()
def test_unet_is_traced_as_a_whole(traces: list[dict[str, Any]]) -> None:
    plain, compiled = tiny_model("unet"), tiny_model("unet")
    compile_network(compiled)
    assert traces == [{"mode": "reduce-overhead"}]
    expected = plain(*UNET_INPUTS)
    first = compiled(*UNET_INPUTS)
    kept = first.clone()
    other = compiled(UNET_INPUTS[0] + 1, *UNET_INPUTS[1:])
    assert relative_error(first, expected) <= TOLERANCE
    assert torch.equal(first, kept) and not torch.equal(other, first)
    larger = (normal(1, 4, 16, 16), UNET_INPUTS[1], normal(1, 77, 32))
    assert relative_error(compiled(*larger), plain(*larger)) <= TOLERANCE
    residual = {"mid_block_additional_residual": normal(2, *MIDDLE, seed=3)}
    assert relative_error(compiled(*UNET_INPUTS, **residual), plain(*UNET_INPUTS, **residual)) <= (
        TOLERANCE
    )


@torch.inference_mode()
def test_autoencoder_is_traced_as_a_whole() -> None:
    plain, compiled = tiny_model("vae"), tiny_model("vae")
    assert isinstance(plain, AutoencoderKL) and isinstance(compiled, AutoencoderKL)
    for network in (compiled.encoder, compiled.decoder):
        compile_network(network)
    image, latents = normal(1, 3, 24, 20), normal(1, 4, 12, 10)
    assert relative_error(compiled.encode(image).mean, plain.encode(image).mean) <= TOLERANCE
    assert relative_error(compiled.decode(latents), plain.decode(latents)) <= TOLERANCE


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


@torch.inference_mode()
def test_a_third_size_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is compiled for all sizes."""
    compilations: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        compilations.append(len(inputs))
        return graph.forward

    monkeypatch.undo()
    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: original(function, backend=count)
    )
    torch._dynamo.reset()
    plain, compiled = tiny_model("unet"), tiny_model("unet")
    compile_network(compiled)
    made = []
    for height, width in ((12, 10), (16, 20), (24, 28), (12, 10)):
        inputs = (normal(2, 4, height, width), *UNET_INPUTS[1:])
        assert relative_error(compiled(*inputs), plain(*inputs)) <= TOLERANCE
        made.append(len(compilations))
    assert made[0] == 1  # and no graph breaks
    assert made[1] == made[2] == made[3] == 2


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
from torch._dynamo.utils import counters
from sdpy.models import UNet2DConditionModel
from sdpy.optimizations.exact.compiling import compile_network, keep_compiled_code
from support.tiny import tiny_model
from support.compare import normal
keep_compiled_code()
embedding = tiny_model("unet").time_embedding
compile_network(embedding)
with torch.inference_mode():
    embedding(normal(2, 16))
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
