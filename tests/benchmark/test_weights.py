"""Random models: other programs read them, and no layer is left out."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer as ReferenceTokenizer

from sdpy.benchmark.weights import made_up_merges, model_files, write_random_model
from sdpy.checkpoints import read_checkpoint, write_checkpoint
from sdpy.errors import OutputError, WeightsError
from sdpy.runtime.headers import Headers
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.zoo.find import find_source
from sdpy.zoo.variants import SD15
from support.tiny import TINY

VARIANT = TINY.with_configs(text_encoder=replace(TINY.text_encoder, vocab_size=600))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "model"
    write_random_model(path, VARIANT)
    return path


def test_the_folder_is_recognised_as_what_it_was_made_of(folder: Path) -> None:
    found = find_source(str(folder), Path("nowhere"))
    sizes = VARIANT.configs
    assert found.variant == replace(SD15, sample_size=VARIANT.sample_size).with_configs(**sizes)
    assert found.files == model_files(folder, VARIANT)
    assert found.assumptions == ()
    Headers(found).check()


def test_weights_are_random_and_of_a_sane_scale(folder: Path) -> None:
    seen: set[float] = set()
    for path in model_files(folder, VARIANT).weights.values():
        for name, tensor in read_checkpoint(path).tensors.items():
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()
            assert tensor.std() > 0, name
            if tensor.ndim > 1:
                assert 0.6 < tensor.std() * tensor[0].numel() ** 0.5 < 1.4, name
            seen.add(tensor.flatten()[0].item())
    assert len(seen) > 100


def test_the_same_variant_gets_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    write_random_model(tmp_path / "again", VARIANT)
    again, before = model_files(tmp_path / "again", VARIANT), model_files(folder, VARIANT)
    assert again.vocabulary.read_bytes() == before.vocabulary.read_bytes()
    assert again.weights.keys() == VARIANT.configs.keys()
    for name, path in again.weights.items():
        assert path.read_bytes() == before.weights[name].read_bytes()


def test_a_whole_folder_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    unet = model_files(copy, VARIANT).weights["unet"]
    mine = {name: tensor + 1 for name, tensor in read_checkpoint(unet).tensors.items()}
    write_checkpoint(unet, mine)
    write_random_model(copy, VARIANT)
    assert torch.equal(read_checkpoint(unet).tensors["conv_in.bias"], mine["conv_in.bias"])
    (copy / "model_index.json").unlink()  # as after an interruption
    write_random_model(copy, VARIANT)
    assert unet.read_bytes() == model_files(folder, VARIANT).weights["unet"].read_bytes()


def test_a_folder_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        write_random_model(folder, SD15)


def test_both_tokenizers_read_the_made_up_vocabulary_alike(folder: Path) -> None:
    reference = ReferenceTokenizer.from_pretrained(folder / "tokenizer")
    ours = CLIPTokenizer.from_file(model_files(folder, VARIANT).vocabulary, vocab_size=600)
    for text in ("a lighthouse at dark, waves", "!! !\"# 'tis 42"):
        assert reference(text).input_ids == [ours.start_id, *ours.encode(text), ours.end_id]


def test_merges_enough_for_clip() -> None:
    tokenizer = CLIPTokenizer(made_up_merges(49408 - 514))
    assert tokenizer.vocab_size == len(set(tokenizer.tokens)) == 49408
    assert tokenizer.decode(tokenizer.encode("a lighthouse")) == "a lighthouse"
    with pytest.raises(ValueError, match="131072"):
        made_up_merges(131073)


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 990, 10))
    with pytest.raises(OutputError, match=r"has room for 0\.0 GB; use a folder on another"):
        write_random_model(tmp_path / "model", VARIANT)
    assert not list(tmp_path.rglob("*.safetensors"))
