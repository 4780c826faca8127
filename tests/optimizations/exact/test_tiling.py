"""The autoencoder in tiles gives what it gives as a whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import AutoencoderKL, AutoencoderKLConfig, AutoencoderTiny
from sdpy.optimizations.base import PassContext
from sdpy.optimizations.exact import apply_passes, tiling
from sdpy.optimizations.exact.winograd import WinogradConv2d
from sdpy.zoo.variants import SD15
from support.compare import normal, randomise, relative_error
from support.costs import favour
from support.tiny import tiny_model

TOLERANCE = 1e-5
CONFIG = AutoencoderKLConfig(block_out_channels=(16, 32, 32), norm_num_groups=8)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TILE_BYTES", 4000)
    monkeypatch.setattr(tiling, "MIN_ROWS", 3)
    monkeypatch.setattr(tiling, "ROW_MULTIPLE", 3)


def both(**options: bool) -> tuple[AutoencoderKL, AutoencoderKL]:
    """The same autoencoder as a whole and in tiles."""
    whole, cut = (randomise(AutoencoderKL(CONFIG)) for _ in range(2))
    apply_passes(cut, PassContext(tiled=True, **options))
    return whole, cut  # type: ignore[return-value]


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7), (1, 20), (33, 5), (2, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_decodes_the_same(batch: int, height: int, width: int) -> None:
    whole, cut = both()
    latents = normal(batch, 4, height, width)
    assert relative_error(cut.decode(latents), whole.decode(latents)) <= TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 30), (4, 50), (67, 21)])
def test_encodes_the_same(height: int, width: int) -> None:
    whole, cut = both()
    image = normal(2, 3, height, width)
    ours, theirs = cut.encode(image), whole.encode(image)
    assert relative_error(ours.mean, theirs.mean) <= TOLERANCE
    assert relative_error(ours.std, theirs.std) <= TOLERANCE


@torch.inference_mode()
def test_there_is_no_seam() -> None:
    """No row of pixels is further off than rounding, those at the borders of tiles included."""
    whole, cut = both()
    latents = normal(1, 4, 16, 12)
    expected = whole.decode(latents)
    error = (cut.decode(latents) - expected).abs().amax(dim=(0, 1, 3))
    assert error.max() <= TOLERANCE * expected.abs().max()


@torch.inference_mode()
def test_the_norms_see_the_whole_map() -> None:
    """A map that is bright on top and dark below, of which a tile alone would tell nothing."""
    whole, cut = both()
    latents = normal(1, 4, 16, 12)
    latents[:, :, :8] += 5
    assert relative_error(cut.decode(latents), whole.decode(latents)) <= TOLERANCE


def sizes_of_inputs(model: nn.Module) -> dict[str, list[int]]:
    """Fills up with the bytes of whatever each 3x3 convolution between maps is given."""
    sizes: dict[str, list[int]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.setdefault(name, []).append(inputs[0].nbytes)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and min(module.weight.shape) == 3 < module.in_channels:
            module.register_forward_pre_hook(partial(note, name))
    return sizes


@torch.inference_mode()
def test_no_large_map_is_convolved_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TILE_BYTES", 64_000)
    whole, cut = both()
    sizes, cut_sizes = sizes_of_inputs(whole), sizes_of_inputs(cut)
    for model in (whole, cut):
        model.decode(normal(1, 4, 32, 32))
        model.encode(normal(1, 3, 128, 128))
    assert len(sizes) == len(cut_sizes) > 25
    assert max(max(one) for one in sizes.values()) > 30 * tiling.TILE_BYTES
    # The rows of the border come on top; of three that are doubled they make ten.
    assert max(max(one) for one in cut_sizes.values()) <= 3 * tiling.TILE_BYTES


@torch.inference_mode()
def test_with_faster_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    favour(monkeypatch, "transformed")
    whole, cut = both(fast_kernels=True)
    latents, image = normal(1, 4, 16, 12), normal(1, 3, 40, 36)
    assert relative_error(cut.decode(latents), whole.decode(latents)) <= TOLERANCE
    assert relative_error(cut.encode(image).mean, whole.encode(image).mean) <= TOLERANCE
    for network in (cut.encoder, cut.decoder):
        assert any(isinstance(module, WinogradConv2d) for module in network.modules())


@torch.inference_mode()
def test_other_models_stay_as_they_are() -> None:
    tiny_vae = randomise(AutoencoderTiny(SD15.tiny_vae))
    for model in (tiny_vae, tiny_model("unet"), tiny_model("text_encoder")):
        modules, classes = list(model.modules()), [type(module) for module in model.modules()]
        apply_passes(model, PassContext(tiled=True))
        assert list(model.modules()) == modules
        assert [type(module) for module in model.modules()] == classes
