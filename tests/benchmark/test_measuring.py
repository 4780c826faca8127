"""Memory, time and arithmetic, of things whose cost is known."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.benchmark import memory
from sdpy.benchmark.arithmetic import count_flops, matrix_product_rate
from sdpy.benchmark.memory import HIGH_WATER, SAMPLED, Peak, measure_peak, resident
from sdpy.benchmark.timing import measure
from sdpy.models import UNet2DConditionModel
from sdpy.runtime.allocator import give_back_freed_memory
from support.tiny import TINY
from support.tiny_xl import TINY_XL

MEBIBYTE = 2**20


# -- memory --------------------------------------------------------------------------------------


def no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set_back", lambda: False)


def wait_for_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the sampling thread has looked twice: its first look may have begun before."""
    looks, look = threading.Semaphore(0), memory.resident

    def counted() -> int | None:
        looks.release()
        return look()

    monkeypatch.setattr(memory, "resident", counted)
    for _ in range(2):
        looks.acquire()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@pytest.mark.parametrize("method", [HIGH_WATER, SAMPLED])
def test_a_peak_in_the_block_is_seen(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if method == SAMPLED:
        no_marks(monkeypatch)
    elif not memory._set_back():
        pytest.skip("this system does not set its mark back")
    give_back_freed_memory()
    before = resident()
    assert before is not None
    with measure_peak() as peak:
        held = torch.ones(64 * MEBIBYTE)  # of 4 bytes
        if method == SAMPLED:
            wait_for_two_looks(monkeypatch)
        del held
    assert peak.method == method
    assert peak.bytes is not None
    assert 250 * MEBIBYTE < peak.bytes - before < 300 * MEBIBYTE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_a_peak_before_the_block_is_forgotten() -> None:
    if not memory._set_back():
        pytest.skip("this system does not set its mark back")
    held = torch.ones(64 * MEBIBYTE)
    del held
    give_back_freed_memory()
    now = resident()
    assert now is not None
    with measure_peak() as peak:
        pass
    assert peak.bytes is not None
    assert peak.bytes - now < 40 * MEBIBYTE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_memory_that_is_kept_for_later_is_given_back_before_the_block() -> None:
    code = (
        "from sdpy.runtime.allocator import keep_freed_memory; import torch; "
        "from sdpy.benchmark.memory import measure_peak; "
        "kept = keep_freed_memory(); x = torch.ones(64 * 2**20); del x\n"
        "with measure_peak() as peak: pass\n"
        "print(int(kept), peak.bytes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    kept, peak = map(int, done.stdout.split())
    if not kept:
        pytest.skip("the C library is not glibc")
    assert peak < 500 * MEBIBYTE  # torch alone; 256 more would be too many


def test_where_nothing_tells_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    with measure_peak() as peak:
        pass
    assert peak == Peak(None, None)


# -- time ----------------------------------------------------------------------------------------


class Clock:
    """A clock that only moves when work is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    @contextmanager
    def phase(self, load: float, *evaluations: float) -> Iterator[Callable[[], Tensor]]:
        left = list(evaluations)
        self.now += load

        def evaluate() -> Tensor:
            self.now += left.pop(0)
            return torch.tensor(self.now)

        yield evaluate
        assert not left, "evaluations that were expected have not been made"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_loading_and_the_first_evaluation_are_told_apart(clock: Clock) -> None:
    found = measure(clock.phase(5.0, 3.0, 1.0, 2.0), 2)
    assert (found.load, found.first, found.times) == (5.0, 3.0, (1.0, 2.0))
    assert found.output.item() == 8.0


def test_no_more_evaluations_are_begun_after_the_time(clock: Clock) -> None:
    assert measure(clock.phase(0.0, 3.0, 2.0, 2.0), 9, seconds=3.5).times == (2.0, 2.0)


def test_one_evaluation_is_always_timed(clock: Clock) -> None:
    assert measure(clock.phase(0.0, 3.0, 7.0), 9, seconds=3.5).times == (7.0,)


def test_a_first_evaluation_that_takes_too_long_is_the_only_one(clock: Clock) -> None:
    assert measure(clock.phase(0.0, 4.0), 9, seconds=3.5).times == (4.0,)


# -- arithmetic ----------------------------------------------------------------------------------


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def test_flops_of_the_text_encoder_are_those_of_its_matrix_products() -> None:
    config = TINY.text_encoder
    tokens, width = 2 * config.max_position_embeddings, config.hidden_size
    layer = 4 * linear(tokens, width, width) + 2 * linear(tokens, width, config.intermediate_size)
    # Scores and their sums, in each of two prompts; all heads together are as wide as a token.
    attention = 2 * 2 * linear(tokens // 2, width, tokens // 2)
    flops = count_flops(TINY, (8, 8))
    assert flops["text"] == config.num_hidden_layers * (layer + attention)


def test_flops_grow_with_the_batch_and_the_area() -> None:
    def flops(height: int, batch: int = 2) -> dict[str, int]:
        return count_flops(TINY, (height, 16), unet_batch=batch)

    small, single, large = flops(16), flops(16, batch=1), flops(32)
    # The time is the same for the whole batch and embedded once, in two rows.
    once = sum(
        linear(2, module.in_features, module.out_features)
        for name, module in UNet2DConditionModel(TINY.unet).named_modules()
        if isinstance(module, nn.Linear) and "time_embedding" in name
    )
    assert small["unet"] == 2 * single["unet"] - once
    assert small["text"] == large["text"]
    for phase in ("unet", "decode", "encode"):  # attention grows with the square
        assert 2 * small[phase] < large[phase] < 4 * small[phase]


def test_a_convolution_more_adds_its_flops() -> None:
    """A UNet for inpainting has five more input channels in its first convolution."""
    inpaint = TINY.with_configs(unet=replace(TINY.unet, in_channels=9))
    plain, more = (count_flops(one, (8, 8))["unet"] for one in (TINY, inpaint))
    assert more - plain == linear(2 * 8 * 8, 9 * 5, TINY.unet.block_out_channels[0])


def test_sd15_has_the_arithmetic_that_is_known_of_it() -> None:
    """About 0.4 T multiplications and additions for a sample of 64x64 latents."""
    from sdpy.zoo.variants import SD15

    flops = count_flops(SD15, (64, 64))
    assert flops["unet"] / 2 / 2 == pytest.approx(0.4e12, rel=0.01)


def test_what_a_unet_is_told_beside_the_time_adds_its_flops() -> None:
    """The pooled embedding and six sizes go through two linear layers."""
    unet = TINY_XL.unet
    plain = replace(
        unet,
        addition_embed_type=None,
        addition_time_embed_dim=None,
        projection_class_embeddings_input_dim=None,
    )
    without = count_flops(TINY_XL.with_configs(unet=plain), (8, 8))
    told = count_flops(TINY_XL, (8, 8))
    time = unet.time_embed_dim
    assert told["unet"] - without["unet"] == linear(2, 48 + 6 * 8, time) + linear(2, time, time)
    (first, second) = TINY_XL.text_encoders.values()
    alone = [
        count_flops(TINY.with_configs(text_encoder=one), (8, 8))["text"]
        for one in (first, replace(second, projection_dim=None))
    ]
    assert told["text"] == sum(alone) + linear(2, second.hidden_size, 48)


def test_the_rate_of_a_matrix_product_is_a_rate() -> None:
    rate = matrix_product_rate(size=64, repeats=2)
    assert math.isfinite(rate)
    assert rate > 0
