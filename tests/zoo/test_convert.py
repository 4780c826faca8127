"""Round trips through every format and layout, and what diffusers makes of our folders."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from sdpy.checkpoints import FORMATS, load_weights, read_checkpoint, write_checkpoint
from sdpy.checkpoints.dialects import ORIGINAL, in_dialect
from sdpy.errors import OutputError, UsageError, WeightsError
from sdpy.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.variants import VARIANTS
from support.tiny import MERGES, TINY, TINY_INPAINT, tiny_model, tiny_weights

COMPONENTS = ("text_encoder", "unet", "vae")
SUFFIXES = tuple(suffix for form in FORMATS.values() for suffix in form.suffixes)


@pytest.fixture(autouse=True)
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    monkeypatch.setitem(VARIANTS, "sd15-inpaint", TINY_INPAINT)


def convert(source: Path, target: Path, **options: object) -> None:
    for _ in plan_conversion(inspect_weights(source), target, **options).run():  # type: ignore[arg-type]
        pass


def assert_same(path: Path, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """The file holds a model's numbers, to the last bit."""
    component = inspect_weights(path).components[0]
    assert not component.problems
    weights = component.weights
    assert set(weights.part.origins) == set(state)
    for name, tensor in state.items():
        got = weights.tensor(name, weights.checkpoint.tensors)
        expected = tensor if dtype is None else tensor.to(dtype)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_ot_folders_cannot_say_is_told(tmp_path: Path, prediction: str) -> None:
    source, words = whole(tmp_path), vocabulary(tmp_path)
    folder = tmp_path / "folder"
    convert(source, folder, vocabulary=words, prediction=prediction)
    plan = plan_conversion(inspect_weights(folder), tmp_path / "ot", layout="ot", vocabulary=words)
    told = [notice for notice in plan.notices if "--prediction-type v_prediction" in notice]
    assert bool(told) == (prediction == "v_prediction")


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", ["diffusers", "original", None])
def test_component_through_every_format_and_back(
    tmp_path: Path, component: str, suffix: str, layout: str | None
) -> None:
    state = tiny_weights(component)
    write_checkpoint(tmp_path / "in.safetensors", state)
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.safetensors"
    convert(tmp_path / "in.safetensors", there, layout=layout)
    assert_same(there, state)
    convert(there, back)
    assert_same(back, state)
    assert back.read_bytes() == (tmp_path / "in.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".ot", ".safetensors", ".ckpt"])
def test_other_dtypes(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    state = tiny_weights("vae")
    write_checkpoint(tmp_path / "in.ot", state)
    convert(tmp_path / "in.ot", tmp_path / f"half{suffix}", dtype=dtype)
    assert_same(tmp_path / f"half{suffix}", state, dtype)
    convert(tmp_path / f"half{suffix}", tmp_path / "full.ot", dtype=torch.float32)
    assert_same(tmp_path / "full.ot", {n: t.to(dtype).float() for n, t in state.items()})


def test_ot_files_have_the_names_that_the_original_program_asks_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "in.safetensors", tiny_weights("vae"))
    convert(tmp_path / "in.safetensors", tmp_path / "vae.ot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(tmp_path / "vae.ot")
    got = {name.replace("|", "."): tensor for name, tensor in module.named_parameters()}
    state = tiny_weights("vae")
    assert len(got) == len(state)
    attention = "decoder.mid_block.attentions.0"
    for old, new in {
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "proj_attn": "to_out.0",
    }.items():
        tensor = got[f"{attention}.{old}.weight"]
        assert tensor.ndim == 2
        assert torch.equal(tensor, state[f"{attention}.{new}.weight"])


def whole(folder: Path, suffix: str = ".safetensors") -> Path:
    tensors: dict[str, Tensor] = {}
    for component in COMPONENTS:
        state = tiny_weights(component)
        recipes = in_dialect(component, list(state), ORIGINAL)
        tensors |= {name: recipe.make(state) for name, recipe in recipes.items()}
    write_checkpoint(folder / f"whole{suffix}", tensors)
    return folder / f"whole{suffix}"


def vocabulary(folder: Path) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt"
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_single_file_folder_ot_and_back(tmp_path: Path) -> None:
    source, words = whole(tmp_path, ".ckpt"), vocabulary(tmp_path)
    convert(source, tmp_path / "folder", vocabulary=words)
    convert(tmp_path / "folder", tmp_path / "ot", layout="ot", vocabulary=words)
    assert {path.name for path in (tmp_path / "ot").iterdir()} == {
        "pytorch_model.ot",
        "unet.ot",
        "vae.ot",
        "bpe_simple_vocab_16e6.txt",
    }
    convert(tmp_path / "ot", tmp_path / "back.safetensors")
    before, after = (
        read_checkpoint(path).tensors for path in (source, tmp_path / "back.safetensors")
    )
    assert set(before) == set(after)
    assert all(torch.equal(after[name], before[name]) for name in before)
    for name in ("folder", "ot", "back.safetensors", "whole.ckpt"):
        found = find_source(str(tmp_path / name), tmp_path)
        assert found.variant.unet == TINY.unet
        assert found.variant.vae == TINY.vae
        assert found.variant.text_encoder == TINY.text_encoder
        assert found.assumptions == ()


def test_a_folder_of_ours_loads_in_diffusers_and_generates_alike(tmp_path: Path) -> None:
    convert(whole(tmp_path), tmp_path / "folder", vocabulary=vocabulary(tmp_path))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    unet = tiny_model("unet")
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
    t = torch.tensor(321)
    with torch.no_grad():
        ours, theirs = unet(x, t, context), pipeline.unet(x, t, context).sample
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        ours, theirs = tiny_model("vae").decode(x), pipeline.vae.decode(x).sample
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        ids = pipeline.tokenizer(
            "lighthouse at dark", padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        found = find_source(str(tmp_path / "folder"), tmp_path)
        from sdpy.text.tokenizer import CLIPTokenizer

        tokenizer = CLIPTokenizer.from_file(found.files.vocabulary, TINY.text_encoder.vocab_size)
        tokens = tokenizer.encode("lighthouse at dark")
        start, end = tokenizer.start_id, tokenizer.end_id
        assert ids[0].tolist() == [start, *tokens, *[end] * (76 - len(tokens))]
        ours, theirs = tiny_model("text_encoder")(ids), pipeline.text_encoder(ids).last_hidden_state
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    scheduler = pipeline.scheduler.config
    assert scheduler.prediction_type == "epsilon"
    assert scheduler.beta_schedule == "scaled_linear"


def test_a_folder_of_diffusers_in_our_hands(tmp_path: Path) -> None:
    """What its own ``save_pretrained`` writes, converted into one file and loaded."""
    convert(whole(tmp_path), tmp_path / "ours", vocabulary=vocabulary(tmp_path))
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "ours")
    pipeline.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "one.ckpt")
    for component, kind in (
        ("text_encoder", CLIPTextModel),
        ("unet", UNet2DConditionModel),
        ("vae", AutoencoderKL),
    ):
        with torch.device("meta"):
            model = kind(getattr(TINY, component))  # type: ignore[arg-type]
        load_weights(model, tmp_path / "one.ckpt")
        expected = tiny_weights(component)
        assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    source = whole(tmp_path)
    found = inspect_weights(source)
    with pytest.raises(UsageError, match="can hold one component: choose with --part"):
        plan_conversion(found, tmp_path / "x.ot")
    with pytest.raises(UsageError, match="can hold one component"):
        plan_conversion(found, tmp_path / "x.safetensors", layout="diffusers")
    with pytest.raises(UsageError, match="original layout is one file"):
        plan_conversion(found, tmp_path / "x", layout="original")
    with pytest.raises(UsageError, match="use one of diffusers, original, ot"):
        plan_conversion(found, tmp_path / "x", layout="new")
    with pytest.raises(WeightsError, match="holds no ControlNet"):
        plan_conversion(found, tmp_path / "x.ot", part="controlnet")
    with pytest.raises(OutputError, match="is a file"):
        (tmp_path / "here").write_text("")
        plan_conversion(found, tmp_path / "here")
    state = tiny_weights("unet")
    del state["conv_out.bias"]
    write_checkpoint(tmp_path / "part.safetensors", state)
    with pytest.raises(WeightsError, match="1 missing .conv_out.bias"):
        plan_conversion(inspect_weights(tmp_path / "part.safetensors"), tmp_path / "x.ot")
    write_checkpoint(tmp_path / "more.safetensors", {**tiny_weights("unet"), "x.y": torch.ones(1)})
    with pytest.raises(WeightsError, match="1 unexpected .x.y"):
        plan_conversion(inspect_weights(tmp_path / "more.safetensors"), tmp_path / "x.ot")


def test_one_component_out_of_a_whole_file(tmp_path: Path) -> None:
    source = whole(tmp_path)
    convert(source, tmp_path / "unet.ot", part="unet")
    assert_same(tmp_path / "unet.ot", tiny_weights("unet"))
    convert(source, tmp_path / "unet", part="unet")
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["attention_head_dim"] == [
        2,
        3,
    ]
    loaded = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    expected = tiny_weights("unet")
    assert all(torch.equal(t, expected[n]) for n, t in loaded.state_dict().items())


def test_unknown_tensors_keep_their_names(tmp_path: Path) -> None:
    tensors = {
        "lora_unet_mid.alpha": torch.tensor(4.0),
        "lora_unet_mid.up.weight": torch.ones(2, 3),
    }
    write_checkpoint(tmp_path / "lora.safetensors", tensors)
    plan = plan_conversion(inspect_weights(tmp_path / "lora.safetensors"), tmp_path / "lora.ckpt")
    assert "no known kind" in plan.notices[0]
    list(plan.run())
    got = read_checkpoint(tmp_path / "lora.ckpt").tensors
    assert set(got) == set(tensors)
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)


MEASURE = """
import resource, sys
from pathlib import Path
import torch
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.inspect import inspect_weights
source, target, warm = (Path(argument) for argument in sys.argv[1:4])
dtype = torch.float16 if sys.argv[4] == "fp16" else None
warm_target = target.with_name("warm" + target.suffix)
list(plan_conversion(inspect_weights(warm), warm_target, dtype=dtype).run())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(plan_conversion(inspect_weights(source), target, dtype=dtype).run())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".ot", "same"), (".safetensors", "fp16"), (".ckpt", "fp16")]
)
def test_memory_stays_far_below_the_files_size(tmp_path: Path, suffix: str, dtype: str) -> None:
    source = tmp_path / "large.safetensors"
    piece = torch.ones(512, 1024)
    write_checkpoint(source, {f"lora_{i}.weight": piece for i in range(100)})
    write_checkpoint(tmp_path / "small.safetensors", {"lora_0.weight": piece})
    size = source.stat().st_size
    assert size > 200e6
    target = tmp_path / f"out{suffix}"
    arguments = [source, target, tmp_path / "small.safetensors", dtype]
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown = int(done.stdout)
    assert grown < size / 2
    assert target.stat().st_size > size / 3
