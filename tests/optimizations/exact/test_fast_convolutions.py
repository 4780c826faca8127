"""Fast convolutions: the same numbers, the choice between their forms, a plan for each size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdpy.checkpoints import Change, Checkpoint, load_weights, write_checkpoint
from sdpy.models import AutoencoderKL, T2IAdapter, T2IAdapterConfig, UNet2DConditionModel
from sdpy.models.attention import Transformer2DModel
from sdpy.models.meta import init_empty_weights
from sdpy.models.resnet import ResnetBlock2D
from sdpy.optimizations.base import PassContext, Preparations
from sdpy.optimizations.exact import apply_passes, bfloat16_pairs, fast_convolutions
from sdpy.optimizations.exact.adaptive import AdaptiveConv2d, AdaptiveUpsample2D, DirectConv2d
from sdpy.optimizations.exact.bfloat16_pairs import PairedConv2d
from sdpy.optimizations.exact.convolutions import Convolution, ConvolutionTrace
from sdpy.optimizations.exact.fast_convolutions import Option, choose, find_options
from sdpy.optimizations.exact.matmul_conv import MatmulConv2d
from sdpy.optimizations.exact.winograd import WinogradConv2d
from sdpy.optimizations.exact.winograd_transforms import DOUBLING
from sdpy.optimizations.weights import ModelWeights
from sdpy.zoo.variants import SD15
from support.compare import normal, relative_error
from support.costs import favour
from support.tiny import TINY, tiny_model, tiny_weights

TOLERANCE = 1e-5
TOLERANCE_OF_PAIRS = 5e-5
needs_product = pytest.mark.skipif(
    not bfloat16_pairs.is_available(), reason="this torch has no MKL with products of bfloat16"
)
UNET_INPUTS = (normal(2, 4, 12, 10), torch.tensor(981), normal(2, 77, 32, seed=1))
LARGER_INPUTS = (normal(1, 4, 17, 21), torch.tensor(981), normal(1, 90, 32))


@pytest.fixture(autouse=True)
def no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices on every processor: pairs of bfloat16 only in the tests of them."""
    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 0.0)


def make_fast(model: nn.Module, **options: object) -> Preparations:
    context = PassContext(fast_kernels=True, **options)  # type: ignore[arg-type]
    apply_passes(model, context)
    return context.preparations


def forms(model: nn.Module) -> set[type[nn.Module]]:
    """Those that are selected."""
    return {type(m.form) for m in model.modules() if isinstance(m, AdaptiveConv2d)}


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["direct", "matmul", "transformed", "ordered"])
@torch.inference_mode()
def test_unet_gives_the_same(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    favour(monkeypatch, form)
    plain, fast = tiny_model("unet"), tiny_model("unet")
    make_fast(fast, weight_budget=0 if form == "matmul" else 10**9)
    expected = plain(*UNET_INPUTS)
    for _ in range(2):
        assert relative_error(fast(*UNET_INPUTS), expected) <= TOLERANCE
    assert (MatmulConv2d in forms(fast)) == (form != "direct")
    kept = {m.keep.value for m in fast.modules() if isinstance(m, WinogradConv2d)}
    assert kept == ({form} if form in ("transformed", "ordered") else set())
    assert relative_error(fast(*LARGER_INPUTS), plain(*LARGER_INPUTS)) <= TOLERANCE


def test_an_adapter_which_computes_once_is_left_alone() -> None:
    adapter = T2IAdapter(T2IAdapterConfig(channels=(16, 16, 16, 16)))
    before = [type(module) for module in adapter.modules()]
    make_fast(adapter)
    assert [type(module) for module in adapter.modules()] == before


@needs_product
@torch.inference_mode()
def test_unet_of_pairs_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its convolutions too, where that is the cheapest way."""
    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 1e9)
    favour(monkeypatch, "pairs")
    plain, fast = tiny_model("unet"), tiny_model("unet")
    make_fast(fast, weight_budget=0)
    expected = plain(*UNET_INPUTS)
    for _ in range(2):
        assert relative_error(fast(*UNET_INPUTS), expected) <= TOLERANCE_OF_PAIRS
    assert PairedConv2d in forms(fast)
    assert relative_error(fast(*LARGER_INPUTS), plain(*LARGER_INPUTS)) <= TOLERANCE_OF_PAIRS


@torch.inference_mode()
def test_autoencoder_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    favour(monkeypatch, "transformed")
    plain, fast = tiny_model("vae"), tiny_model("vae")
    assert isinstance(plain, AutoencoderKL) and isinstance(fast, AutoencoderKL)
    preparations = make_fast(fast)
    image, latents = normal(1, 3, 24, 20), normal(1, 4, 12, 10)
    assert relative_error(fast.encode(image).mean, plain.encode(image).mean) <= TOLERANCE
    assert relative_error(fast.decode(latents), plain.decode(latents)) <= TOLERANCE
    assert WinogradConv2d in forms(fast.encoder) & forms(fast.decoder)
    assert any(m.conv.doubles for m in fast.modules() if isinstance(m, AdaptiveUpsample2D))
    assert preparations.plans == 2  # the encoder's and the decoder's


@torch.inference_mode()
def test_upsampling_to_another_size_than_the_planned_one() -> None:
    """Parts of a network may be called without it, for maps of which nothing was planned."""
    plain, fast = tiny_model("unet"), tiny_model("unet")
    make_fast(fast)
    ours, theirs = (m.get_submodule("up_blocks.0.upsamplers.0") for m in (fast, plain))
    assert isinstance(ours, AdaptiveUpsample2D)
    ours.conv.add("doubling", WinogradConv2d(ours.conv.original, DOUBLING))
    ours.conv.select("doubling")
    x = normal(2, 24, 6, 5)
    for size in ((11, 10), (12, 10)):
        assert relative_error(ours(x, size=size), theirs(x, size=size)) <= TOLERANCE


@torch.inference_mode()
def test_feature_maps_stay_in_channels_last_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers are faster so, and a single map in the other order spreads to what follows."""
    favour(monkeypatch, "transformed")
    model = tiny_model("unet")
    make_fast(model)
    others: list[str] = []

    def note(name: str, result: Tensor) -> None:
        if result.ndim == 4 and result.stride(1) != 1:
            others.append(name)

    for name, module in model.named_modules():
        if isinstance(module, AdaptiveConv2d | nn.GroupNorm | ResnetBlock2D | Transformer2DModel):
            module.register_forward_hook(lambda _, __, result, name=name: note(name, result))
    model(*UNET_INPUTS)
    assert not others


# --- plans -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_each_size_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And weights are transformed once, forms that two plans have in common included."""
    favour(monkeypatch, "transformed")
    plain, fast = tiny_model("unet"), tiny_model("unet")
    preparations = make_fast(fast)
    counts = []
    for inputs in (UNET_INPUTS, LARGER_INPUTS, UNET_INPUTS, LARGER_INPUTS, UNET_INPUTS):
        for _ in range(2):
            assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
            counts.append((preparations.plans, preparations.forms))
    made = sum(
        not form.needs_original
        for m in fast.modules()
        if isinstance(m, AdaptiveConv2d)
        for form in m.forms.values()
    )
    assert counts[0] == counts[1] == (1, counts[0][1])
    assert set(counts[2:]) == {(2, made)}
    layers = [m for m in fast.modules() if isinstance(m, AdaptiveConv2d)]
    shared = [layer for layer in layers if len(layer.forms) == 1]
    assert shared and counts[0][1] <= made < 2 * counts[0][1]


@torch.inference_mode()
def test_rows_of_the_context_count_as_the_batch() -> None:
    """A UNet may be given several contexts a sample, for which its batch grows within it."""
    shapes = []
    for sample, context in ((1, 2), (2, 2), (4, 4), (2, 4)):
        args = (normal(sample, 4, 8, 8), torch.tensor(1), normal(context, 7, 32))
        shapes.append(fast_convolutions.input_shape_of(args, {}))
        named = {"encoder_hidden_states": args[2]}
        assert fast_convolutions.input_shape_of(args[:2], named) == shapes[-1]
    assert shapes == [(2, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8), (4, 4, 8, 8)]
    assert fast_convolutions.input_shape_of((normal(1, 3, 8, 8),), {}) == (1, 3, 8, 8)


@torch.inference_mode()
def test_a_later_plan_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """With none left it computes in the forms that are there."""
    favour(monkeypatch, "transformed")
    plain, fast = tiny_model("unet"), tiny_model("unet")
    budget = 40_000
    make_fast(fast, weight_budget=budget)
    original = sum(
        m.original.weight.nbytes for m in fast.modules() if isinstance(m, AdaptiveConv2d)
    )
    for side in (12, 8, 6, 20, 3, 16):
        inputs = (normal(2, 4, side, side), *UNET_INPUTS[1:])
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
        taken = 0
        for layer in (m for m in fast.modules() if isinstance(m, AdaptiveConv2d)):
            taken += sum(buffer.nbytes for buffer in layer.buffers())
            if any(form.needs_original for form in layer.forms.values()):
                taken += layer.weight.nbytes
        assert taken <= original + budget


# --- weights that are released -----------------------------------------------------------------


def load(
    folder: Path, stored: torch.dtype, change: Change | None = None, name: str = "unet"
) -> tuple[nn.Module, nn.Module, Checkpoint, ModelWeights]:
    """A plain model, the same loaded from a file, its file and its weights.

    A change is made of every convolution's weights in the middle.
    """
    path = folder / "unet.safetensors"
    write_checkpoint(path, {key: value.to(stored) for key, value in tiny_weights(name).items()})
    with init_empty_weights():
        plain, loaded = (UNet2DConditionModel(TINY.unet).eval() for _ in range(2))
    load_weights(plain, path)
    file = load_weights(loaded, path)
    changes = {
        key: change
        for key in plain.state_dict()
        if change is not None and key.startswith("mid_block") and "conv" in key and "weight" in key
    }
    for key, one in changes.items():
        for model in (plain, loaded):
            owner = model.get_submodule(key.rpartition(".")[0])
            owner.weight = nn.Parameter(one(owner.get_parameter("weight")), requires_grad=False)
    return plain, loaded, file, ModelWeights(loaded, file, changes=changes)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("change", [None, lambda weight: 2 * weight + 0.01])
@torch.inference_mode()
def test_a_size_that_comes_after_the_originals_were_released(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stored: torch.dtype, change: Change | None
) -> None:
    """What is converted or changed is made anew; what is mapped is read again."""
    favour(monkeypatch, "transformed")
    plain, fast, file, weights = load(tmp_path, stored, change)
    preparations = make_fast(fast, weights=weights)
    layers = {n: m for n, m in fast.named_modules() if isinstance(m, AdaptiveConv2d)}
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    assert relative_error(fast(*UNET_INPUTS), plain(*UNET_INPUTS)) <= TOLERANCE
    transformed = [n for n, layer in layers.items() if isinstance(layer.form, WinogradConv2d)]
    released = [n for n, layer in layers.items() if weights.is_released(layer.weight)]
    in_memory = {n for n in transformed if stored != torch.float32 or (change and "mid" in n)}
    assert in_memory <= set(released) and bool(in_memory) == (
        stored != torch.float32 or change is not None
    )
    for name in released:
        assert layers[name].weight.untyped_storage().nbytes() <= 4  # nothing but a NaN
        assert layers[name].weight.shape == before[name].shape
    # Another form for every layer: all of them are made from the originals.
    favour(monkeypatch, "ordered")
    for inputs in (LARGER_INPUTS, UNET_INPUTS, LARGER_INPUTS):
        assert relative_error(fast(*inputs), plain(*inputs)) <= TOLERANCE
    assert preparations.plans == 2
    assert any(len(layer.forms) == 2 for layer in layers.values())
    for name in transformed:
        weights.restore(layers[name].weight)
        assert torch.equal(layers[name].weight, before[name])
    assert file.mappings


@torch.inference_mode()
def test_the_pages_of_mapped_originals_are_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    favour(monkeypatch, "transformed")
    _, fast, file, weights = load(tmp_path, torch.float32)
    names = {id(p): name for name, p in fast.named_parameters()}
    gone: list[str] = []
    monkeypatch.setattr(Checkpoint, "forget", lambda _, tensor: gone.append(names[id(tensor)]))
    make_fast(fast, weights=weights)
    for _ in range(2):
        fast(*UNET_INPUTS)
    transformed = {
        f"{n}.weight".replace(".original", "")
        for n, m in fast.named_modules()
        if isinstance(m, AdaptiveConv2d) and isinstance(m.form, WinogradConv2d)
    }
    assert transformed <= set(gone) and len(gone) == len(set(gone))


# --- the choice --------------------------------------------------------------------------------


def sd15_convolutions(size: int) -> list[Convolution]:
    with init_empty_weights():
        unet = UNet2DConditionModel(SD15.unet)
    return ConvolutionTrace(unet).at(torch.Size((2, 4, size, size)))


def choice(budget: int, size: int = 64, **options: bool) -> dict[str, Option]:
    convolutions = sd15_convolutions(size)
    every = {c.name: find_options(c, **options) for c in convolutions}
    return choose(convolutions, every, budget)


def extra_bytes(convolutions: list[Convolution], chosen: dict[str, Option]) -> int:
    originals = sum(c.weight_bytes for c in convolutions if not chosen[c.name].needs_original)
    return sum(option.kept_bytes for option in chosen.values()) - originals


@pytest.mark.parametrize("budget", [0, 10**8, 6 * 10**8, 10**11])
def test_budget(budget: int) -> None:
    """More memory is never slower, and never overdrawn."""
    chosen, more = choice(budget), choice(2 * budget)
    assert extra_bytes(sd15_convolutions(64), chosen) <= budget
    assert sum(o.cost for o in more.values()) <= sum(o.cost for o in chosen.values())
    assert len(chosen) == 98


def test_for_a_single_evaluation_less_is_made_of_the_weights() -> None:
    """And that takes it less time than what is best for many, the making included."""
    convolutions = sd15_convolutions(64)
    every = {c.name: find_options(c, few=True) for c in convolutions}
    once = {
        name: [replace(o, cost=o.cost + o.preparation) for o in some]
        for name, some in every.items()
    }
    for_many, for_one = choice(10**11), choose(convolutions, once, 10**11)

    def cost(chosen: dict[str, Option]) -> float:
        return sum(by_key(once[name])[option.key].cost for name, option in chosen.items())

    assert cost(for_one) < 0.8 * cost(for_many)
    kept = [sum(o.kept_bytes for o in some.values()) for some in (for_one, for_many)]
    assert kept[0] < kept[1] / 2


@pytest.mark.parametrize(
    ("evaluations", "few"), [(None, False), (1, True), (fast_convolutions.FEW, True), (9, False)]
)
@torch.inference_mode()
def test_unet_for_so_many_evaluations_gives_the_same(evaluations: int | None, few: bool) -> None:
    """With more than a few, it computes in the forms that are best for many."""
    plain, fast, usual = (tiny_model("unet") for _ in range(3))
    make_fast(fast, evaluations=evaluations)
    make_fast(usual)
    expected = plain(*UNET_INPUTS)
    result = fast(*UNET_INPUTS)
    assert relative_error(result, expected) <= TOLERANCE
    assert few or torch.equal(result, usual(*UNET_INPUTS))


def test_forms_that_are_there_cost_nothing_more() -> None:
    """The second size takes what the first has left, and never less than the forms of the first."""
    convolutions, budget = sd15_convolutions(64), 6 * 10**8
    first = choice(budget)
    present = {name: (option,) for name, option in first.items()}
    again = choose(convolutions, {c.name: find_options(c) for c in convolutions}, budget, present)
    assert {n: o.key for n, o in again.items()} == {n: o.key for n, o in first.items()}
    smaller = sd15_convolutions(24)
    options = {c.name: find_options(c) for c in smaller}
    second = choose(smaller, options, budget, present)
    alone = choose(smaller, options, 10**11)
    kept = {name: by_key(options[name])[first[name].key] for name in options}
    costs = [sum(o.cost for o in some.values()) for some in (alone, second, kept)]
    assert costs == sorted(costs)
    taken = 0
    for c in smaller:
        both = {option.key: option for option in (first[c.name], second[c.name])}.values()
        taken += sum(option.kept_bytes for option in both)
        taken -= 0 if any(option.needs_original for option in both) else c.weight_bytes
    assert taken <= budget


def by_key(options: list[Option]) -> dict[str, Option]:
    return {option.key: option for option in options}


def test_choice_at_real_size() -> None:
    """Winograd almost everywhere, with larger tiles in larger maps; torch's own if thin."""
    chosen = {name: option.key for name, option in choice(10**11).items()}
    large, small = "down_blocks.0.resnets.0.conv1", "mid_block.resnets.0.conv1"
    assert chosen[large] == "winograd4-transformed"
    assert chosen[small] == "winograd2-transformed"
    assert chosen["up_blocks.2.upsamplers.0.conv"] == "doubling-transformed"
    assert chosen["down_blocks.2.downsamplers.0.conv"] == "matmul"  # its stride is 2
    assert chosen["mid_block.attentions.0.proj_in"] == "matmul"
    thin = ("conv_in", "conv_out", "down_blocks.0.attentions.0.proj_in")
    assert all(chosen[name] == "direct" for name in thin)
    assert choice(0)[small].key == "winograd2-ordered"
    streamed = choice(0, keep_weights=False)
    assert streamed[small].key == "matmul" and streamed["conv_in"].key == "stored"


def test_leaves_other_convolutions_alone() -> None:
    for conv in (nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 32, 3, dilation=2)):
        options = find_options(Convolution("x", conv, torch.Size((1, 32, 32, 32))))
        assert [option.key for option in options] == ["direct"]


@pytest.mark.parametrize("streamed", [True, False])
@torch.inference_mode()
def test_no_pairs_of_streamed_weights_and_in_autoencoders(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """Streamed weights would be split at every step; decoding would add up more rounding."""
    monkeypatch.setattr(bfloat16_pairs, "gain", lambda: 1e9)
    favour(monkeypatch, "pairs")
    model = tiny_model("unet" if streamed else "vae")
    plain = tiny_model("unet" if streamed else "vae")
    make_fast(model, streamed=streamed)
    if isinstance(model, AutoencoderKL) and isinstance(plain, AutoencoderKL):
        latents = normal(1, 4, 12, 10)
        assert relative_error(model.decode(latents), plain.decode(latents)) <= TOLERANCE
    else:
        assert relative_error(model(*UNET_INPUTS), plain(*UNET_INPUTS)) <= TOLERANCE
    assert PairedConv2d not in forms(model) and MatmulConv2d in forms(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@torch.inference_mode()
def test_direct_convolution(kernel: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 20, kernel, padding=kernel // 2, bias=bias)
    form, x = DirectConv2d(conv), normal(2, 24, 9, 8)
    wanted = conv(x)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = form(x.contiguous(memory_format=memory_format))
        assert relative_error(result, wanted) <= 1e-6
    assert form.needs_original == (kernel == 1) == (form.kept is None)


def test_options_have_different_keys() -> None:
    for convolution in sd15_convolutions(64):
        keys = [option.key for option in find_options(convolution, pairs=2.0)]
        assert len(keys) == len(set(keys))
