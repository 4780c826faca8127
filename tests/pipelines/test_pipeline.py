"""The Python API: a model that is loaded once and asked many times."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdpy
from sdpy.errors import SdpyError, UsageError
from sdpy.images.files import read_texts
from sdpy.images.metadata import GeneratedImage
from sdpy.metadata.record import ImageRecord
from sdpy.options import options_of
from sdpy.pipelines.inputs import ImageRequest
from sdpy.runtime.options import ModelOptions
from sdpy.zoo.variants import VARIANTS
from support.tiny import TINY, TINY_INPAINT, tiny_session

FAST: dict[str, Any] = {"steps": 2}


@pytest.fixture
def model(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> sdpy.Pipeline:
    monkeypatch.setitem(VARIANTS, "sd15", TINY)
    monkeypatch.setitem(VARIANTS, "sd15-inpaint", TINY_INPAINT)
    return sdpy.load("sd15", data=tiny_data)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


def test_an_image_carries_its_metadata(model: sdpy.Pipeline, tmp_path: Path) -> None:
    image = model.generate("lighthouse at dark", seed=7, **FAST)
    assert isinstance(image, GeneratedImage)
    assert (image.size, image.mode, image.seed) == ((32, 32), "RGB", 7)
    assert image.parameters == image.info["parameters"]
    assert image.parameters.startswith(
        "lighthouse at dark\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 32x32, "
    )
    assert ImageRecord.from_json(image.record).seed == 7
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        saved.load()
        assert saved.text["parameters"] == image.parameters  # type: ignore[attr-defined]
        assert np.array_equal(pixels(saved), pixels(image))
    for name in ("a.jpg", "a.webp", "a.bmp"):
        image.save(tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == image.size
        if name != "a.bmp":
            texts = read_texts(tmp_path / name)
            assert (texts["parameters"], texts["sdpy"]) == (image.parameters, image.record)


def test_an_image_is_an_ordinary_one_otherwise(model: sdpy.Pipeline) -> None:
    image = model.generate("x", **FAST)
    assert image.resize((16, 8)).size == (16, 8)
    assert image.convert("L").mode == "L"
    assert image.copy().tobytes() == image.tobytes()


def test_several_images_are_a_list(model: sdpy.Pipeline) -> None:
    several = model.generate("x", num_samples=3, seed=4, **FAST)
    assert [image.seed for image in several] == [4, 5, 6]
    assert "Seed: 6" in several[2].parameters
    one = model.generate("x", seed=5, **FAST)
    assert abs(pixels(one) - pixels(several[1])).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(32, 32), (37, 29)])
def test_img2img_of_any_image(
    model: sdpy.Pipeline, tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    image = noise(*size, mode=mode)
    image.save(tmp_path / "a.png")
    made = model.img2img(image, "cat", strength=0.5, **FAST)
    from_file = model.img2img(tmp_path / "a.png", "cat", strength=0.5, **FAST)
    assert made.size == size
    assert np.array_equal(pixels(made), pixels(from_file))
    assert "Denoising strength: 0.5" in made.parameters
    assert "Denoising strength: 0.8" in model.img2img(image, "cat", **FAST).parameters


def test_a_generated_image_can_be_changed(model: sdpy.Pipeline) -> None:
    image = model.generate("cat", **FAST)
    assert model.img2img(image, "dark", **FAST).size == image.size


def test_inpainting_keeps_what_is_outside_the_mask(model: sdpy.Pipeline) -> None:
    image, mask = noise(40, 32), Image.new("L", (40, 32), 0)
    mask.paste(255, (10, 5, 30, 25))
    made = model.inpaint(image, mask, "cat", **FAST)
    inside = np.asarray(mask) > 0
    assert np.array_equal(pixels(made)[~inside], pixels(image)[~inside])
    assert not np.array_equal(pixels(made)[inside], pixels(image)[inside])


def test_progress(model: sdpy.Pipeline) -> None:
    events: list[Any] = []
    model.generate("x", num_samples=2, batch_size=2, on_progress=events.append, **FAST)
    steps = [event.step for event in events if isinstance(event, sdpy.Progress)]
    assert steps == [0, 1, 2]
    ready = [event for event in events if isinstance(event, sdpy.ImageReady)]
    assert [event.number for event in ready] == [1, 2]
    streamed = list(model.stream("x", num_samples=2, batch_size=2, **FAST))
    assert [type(event) for event in streamed if not isinstance(event, sdpy.Detail)] == [
        type(event) for event in events if not isinstance(event, sdpy.Detail)
    ]


def test_options_have_the_names_of_the_command_line(model: sdpy.Pipeline) -> None:
    for group in (ImageRequest, ModelOptions):
        for field, option in options_of(group):
            if option.flags:
                names = {flag.lstrip("-").replace("-", "_") for flag in option.flags[0].split("/")}
                assert field.name in names
    image = model.generate("cat", guidance_interval="0.2,0.8", batch_size="auto", **FAST)
    assert "Guidance interval: 0.2-0.8" in image.parameters


def test_editors_and_help_see_the_options() -> None:
    assert "Generate an image" in (inspect.getdoc(sdpy.Pipeline.generate) or "")
    parameters = inspect.signature(sdpy.Pipeline.generate).parameters
    assert {"prompt", "seed", "scheduler", "strength"} <= set(parameters)
    assert parameters["seed"].default == 32
    assert {"image", "prompt", "strength"} <= set(
        inspect.signature(sdpy.Pipeline.img2img).parameters
    )
    assert {"dtype", "data", "memory"} <= set(inspect.signature(sdpy.load).parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepps": 3}, "unknown option 'stepps'"),
        ({"steps": 0}, "--steps 0: use 1 or more"),
        ({"eta": 2.0}, "--eta 2.0: use 0 to 1"),
        ({"guidance_scale": float("nan")}, "--guidance-scale nan: use -10000 to 10000"),
        ({"seed": -2}, "--seed -2"),
        ({"num_samples": 0}, "--num-samples 0"),
        ({"token_merging": 0.9}, "--token-merging 0.9: use 0 to 0.75"),
        ({"deepcache_branch": 1}, "says nothing without"),
        ({"lora": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"mask": Image.new("L", (32, 32), 255)}, "a mask needs the image"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_options(model: sdpy.Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SdpyError) as caught:
        model.generate("x", **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.session.counters.loads == 0


def test_a_model_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown model"):
        sdpy.load("nope")
    with pytest.raises(UsageError, match="unknown option 'dat'"):
        sdpy.load("demo", dat=tmp_path)  # type: ignore[call-arg]


def test_a_closed_model(tiny_data: Path) -> None:
    with sdpy.Pipeline(tiny_session(tiny_data)) as model:
        model.generate("x", **FAST)
        assert model.session.loaded.components()
    assert not model.session.loaded.components()
    with pytest.raises(UsageError, match="closed"):
        model.generate("x", **FAST)


def test_what_is_not_imported_is_not_there() -> None:
    for name in sdpy.__all__:
        assert getattr(sdpy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        _ = sdpy.draw  # type: ignore[attr-defined]
