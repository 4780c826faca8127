"""A1111's text: ours is read by others, and ours reads others'."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sd_parsers import ParserManager

from sdpy.images.files import save_image
from sdpy.images.metadata import ImageTexts
from sdpy.metadata.parameters import Parameters, parameters_text, parse_parameters, quote

FACTS = {
    "Steps": "20",
    "Sampler": "DPM++ 2M",
    "Schedule type": "Karras",
    "CFG scale": "7.5",
    "Seed": "1",
    "Size": "512x768",
    "Model hash": "6ce0161689",
    "Model": "v1-5-pruned",
    "LoRA 0": "my, Seed: 5, lora.safetensors:0.5",
    "Version": "sdpy 0.1.0",
}
CASTLE = Parameters("a castle, 🏰\nSteps: 3, of stone", "people,\ncars", FACTS)

# A1111's web UI 1.10, modules/infotext_utils.py: re_param_code.
THEIR_PATTERN = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def test_what_it_looks_like() -> None:
    assert parameters_text(CASTLE) == (
        "a castle, 🏰\nSteps: 3, of stone\nNegative prompt: people,\ncars\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 1, "
        "Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, "
        'LoRA 0: "my, Seed: 5, lora.safetensors:0.5", Version: sdpy 0.1.0'
    )


def test_a1111_reads_each_fact() -> None:
    last = parameters_text(CASTLE).split("\n")[-1]
    found = dict(THEIR_PATTERN.findall(last))
    assert found == {label: quote(value) for label, value in FACTS.items()}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_sd_parsers_reads_it(name: str, tmp_path: Path) -> None:
    # It takes no notice of quotes.
    facts = {label: value for label, value in FACTS.items() if label != "LoRA 0"}
    text = parameters_text(replace(CASTLE, facts=facts))
    save_image(Image.new("RGB", (8, 8)), tmp_path / name, ImageTexts(text, "{}"))
    info = ParserManager().parse(tmp_path / name)
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ 2M"
    assert sampler.parameters == {
        "cfg_scale": "7.5",
        "seed": "1",
        "steps": "20",
        "scheduler": "Karras",
    }
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("v1-5-pruned", "6ce0161689")
    assert info.full_prompt == CASTLE.prompt
    assert info.full_negative_prompt == CASTLE.negative_prompt
    assert info.metadata["Size"] == "512x768"


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).map(
    str.strip
)


@given(st.dictionaries(st.sampled_from(sorted(FACTS)), WORDS.filter(bool), min_size=3), WORDS)
def test_what_is_written_is_read(facts: dict[str, str], prompt: str) -> None:
    # A value that looks quoted, and one that ends in a backslash, included.
    written = Parameters(prompt, "", facts)
    assert parse_parameters(parameters_text(written)) == written


def test_another_programs_text_is_read() -> None:
    text = (
        "a cat\nNegative prompt: dog\nSteps: 30, Sampler: Euler a, CFG scale: 7, Seed: 5, "
        'Size: 512x512, Lora hashes: "ink: 0a1b, fog: 2c3d", Hires upscale: 2, Version: v1.10.1'
    )
    read = parse_parameters(text)
    assert (read.prompt, read.negative_prompt) == ("a cat", "dog")
    assert read.facts["Lora hashes"] == "ink: 0a1b, fog: 2c3d"
    assert read.facts["Sampler"] == "Euler a"


def test_a_prompt_alone_is_a_prompt() -> None:
    assert parse_parameters("a castle: red, blue") == Parameters("a castle: red, blue")
    assert parse_parameters("") == Parameters("")
