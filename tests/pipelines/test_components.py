"""Which files are found, what is loaded when, and that it is let go of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpy.pipelines.components as components_module
import sdpy.zoo.source
from sdpy.checkpoints import Checkpoint, read_checkpoint
from sdpy.errors import WeightsError
from sdpy.pipelines import Components, Painted, Settings, generate, img2img, inpaint
from sdpy.zoo.files import find_files
from sdpy.zoo.variants import DEMO
from support.mapped import resident_kilobytes
from support.tiny import TINY, TINY_INPAINT, placed, random_picture, tiny_components, tiny_files

NAMES = ("text_encoder", "unet", "vae")


# --- finding -----------------------------------------------------------------------------------


def test_files_are_found_under_their_names(tiny_data: Path) -> None:
    assert find_files(TINY, tiny_data) == tiny_files(tiny_data)
    assert find_files(TINY_INPAINT, tiny_data) == tiny_files(tiny_data, "unet-inpaint.ot")


def test_the_first_name_that_exists_is_taken(tmp_path: Path) -> None:
    for name in ("pytorch_model.ot", "vae.safetensors", "bpe_simple_vocab_16e6.txt.gz"):
        (tmp_path / name).touch()
    (tmp_path / "unet.safetensors").touch()
    assert find_files(TINY_INPAINT, tmp_path).weights["unet"] == tmp_path / "unet.safetensors"
    (tmp_path / "unet.ot").touch()
    found = find_files(TINY_INPAINT, tmp_path)
    assert found.weights["unet"] == tmp_path / "unet.ot"
    assert found.weights["vae"] == tmp_path / "vae.safetensors"
    assert found.vocabulary == tmp_path / "bpe_simple_vocab_16e6.txt.gz"


def test_a_given_file_comes_before_the_folder(tiny_data: Path, tmp_path: Path) -> None:
    given = tmp_path / "my.ot"
    given.touch()
    found = find_files(TINY, tiny_data, {"unet": given, "vae": None})
    assert found == tiny_files(tiny_data).with_weights(unet=given)


def test_missing_files_are_named_with_what_to_do(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        find_files(TINY, tmp_path, {"vae": tmp_path / "other.ot"})
    message = str(caught.value)
    for name in ("pytorch_model.ot", "unet.ot", "other.ot", "bpe_simple_vocab_16e6.txt"):
        assert str(tmp_path / name) in message
    assert "data/README.md" in message
    assert "--model demo" in message
    assert "\n" not in message
    with pytest.raises(WeightsError) as caught:
        find_files(TINY, tiny_data, {"vae": tmp_path / "other.ot"})
    assert "other.ot" in str(caught.value)
    assert "unet.ot" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_folder_name_that_cannot_be_is_a_missing_one(name: str) -> None:
    with pytest.raises(WeightsError, match="looked for"):
        find_files(TINY, Path(name))


def test_a_bundled_variant_has_its_own_folder(tiny_data: Path, tmp_path: Path) -> None:
    bundled = replace(TINY, bundled=tiny_data)
    assert find_files(bundled, tmp_path) == tiny_files(tiny_data)
    assert DEMO.bundled is not None and DEMO.bundled.name == "demo"


# --- loading and letting go --------------------------------------------------------------------


class Spy:
    """Notes what is loaded, and that nothing else is in memory at that time."""

    def __init__(self, load_weights: Callable[..., Any]) -> None:
        self.load_weights = load_weights
        self.models: list[nn.Module] = []
        self.log: list[str] = []
        self.keep: set[str] = set()

    def __call__(self, model: nn.Module, source: Checkpoint, **options: Any) -> Any:
        for log, earlier in zip(self.log, self.models, strict=True):
            assert log in self.keep or is_empty(earlier), (
                f"{log} is there while {source.path} is loaded"
            )
        file = self.load_weights(model, source, **options)
        assert not any(tensor.is_meta for tensor in model.state_dict().values())
        self.models.append(model)
        self.log.append(source.path.stem)
        return file


def is_empty(model: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(components_module.load_weights)
    monkeypatch.setattr(components_module, "load_weights", spy)
    return spy


def white_half() -> Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    return mask


def run_generate(components: Components, settings: Settings) -> Iterator[Any]:
    return generate(components, settings, width=32, height=32)


def run_img2img(components: Components, settings: Settings) -> Iterator[Any]:
    return img2img(components, settings, random_picture(32, 32), strength=0.5)


def run_inpaint(components: Components, settings: Settings) -> Iterator[Any]:
    return inpaint(components, settings, random_picture(32, 32), white_half(), strength=0.5)


TEXT, UNET, VAE = "pytorch_model", "unet", "vae"


@pytest.mark.parametrize(
    ("run", "unet", "expected"),
    [
        (run_generate, "unet", [TEXT, UNET, VAE, UNET, VAE]),
        (run_img2img, "unet", [VAE, TEXT, UNET, VAE, UNET, VAE]),
        (run_inpaint, "unet", [VAE, TEXT, UNET, VAE, UNET, VAE]),
        (
            run_inpaint,
            "unet-inpaint",
            [VAE, VAE, TEXT, "unet-inpaint", VAE, "unet-inpaint", VAE],
        ),
    ],
)
def test_no_two_models_are_in_memory_together(
    tiny_data: Path, spy: Spy, run: Any, unet: str, expected: list[str]
) -> None:
    components = tiny_components(tiny_data, unet=f"{unet}.ot")
    list(run(components, Settings("x", steps=2, num_samples=2)))
    assert spy.log == expected
    assert all(is_empty(model) for model in spy.models)


def test_kept_models_are_loaded_once(tiny_data: Path, spy: Spy) -> None:
    components = tiny_components(tiny_data, keep=frozenset(NAMES))
    spy.keep = {TEXT, UNET, VAE}
    pictures = []
    for _ in range(2):
        events = run_generate(components, Settings("x", steps=2))
        pictures += [event.picture for event in events if isinstance(event, Painted)]
    assert spy.log == [TEXT, UNET, VAE]
    assert not any(is_empty(model) for model in spy.models)
    assert torch.equal(*pictures)
    (fresh,) = (
        event.picture
        for event in run_generate(tiny_components(tiny_data), Settings("x", steps=2))
        if isinstance(event, Painted)
    )
    assert torch.equal(fresh, pictures[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_gone_after_its_block_and_after_an_exception(
    tiny_data: Path, spy: Spy, name: str
) -> None:
    components = tiny_components(tiny_data)
    with getattr(components, name)() as model:
        assert not is_empty(model)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert is_empty(model)
    with pytest.raises(RuntimeError, match="stop"), getattr(components, name)() as model:
        raise RuntimeError("stop")
    assert is_empty(model)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_gone_after_the_block_though_somebody_holds_a_weight(
    tiny_data: Path, name: str
) -> None:
    components = tiny_components(tiny_data)
    path = components.files.weights[name]
    with getattr(components, name)() as model:
        held = next(iter(model.parameters()))
        held.sum()
        assert resident_kilobytes(path) > 0
    assert resident_kilobytes(path) == 0
    assert held.isfinite().all()  # its pages are read again


def test_a_run_that_is_given_up_lets_go(tiny_data: Path, spy: Spy) -> None:
    events = run_generate(tiny_components(tiny_data), Settings("x", steps=5))
    for _ in range(3):
        next(events)
    assert not is_empty(spy.models[-1])
    events.close()
    assert is_empty(spy.models[-1])


def test_the_models_go_where_they_are_placed(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []

    def note(model: nn.Module, source: Any, *, device: torch.device, **_: Any) -> Any:
        devices.append(device)
        return load_weights(model, source)

    load_weights = components_module.load_weights
    monkeypatch.setattr(components_module, "load_weights", note)
    places = [torch.device("cuda", i) for i in range(3)]
    components = tiny_components(tiny_data, placement=placed(*places))
    for name in NAMES:
        with getattr(components, name)():
            pass
    assert devices == places


# --- checking ----------------------------------------------------------------------------------


class Unreadable(Mapping[str, Tensor]):
    """Knows the names of tensors and gives none."""

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        self.names = list(names)

    def __getitem__(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_check_reads_no_numbers(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outline_only(path: Path) -> Any:
        checkpoint = read_checkpoint(path)
        return replace(checkpoint, tensors=Unreadable(checkpoint.tensors))

    monkeypatch.setattr(sdpy.zoo.source, "read_checkpoint", outline_only)
    components = tiny_components(tiny_data)
    components.check()
    assert components.unet_in_channels == 4
    with pytest.raises(AssertionError, match="is read"), components.unet():
        pass  # the spy works


@pytest.mark.parametrize(
    ("changed", "instead"),
    [
        ("text_encoder", "vae.ot"),
        ("unet", "vae.ot"),
        ("unet", "pytorch_model.ot"),
        ("vae", "unet.ot"),
        ("vae", "bpe_simple_vocab_16e6.txt"),
        ("vocabulary", "vae.ot"),
    ],
)
def test_check_finds_a_file_of_the_wrong_kind(tiny_data: Path, changed: str, instead: str) -> None:
    files = tiny_files(tiny_data)
    if changed == "vocabulary":
        files = replace(files, vocabulary=tiny_data / instead)
    else:
        files = files.with_weights(**{changed: tiny_data / instead})
    with pytest.raises(WeightsError) as caught:
        Components(TINY, files).check()
    assert instead in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file", "channels"), [("unet.ot", 4), ("unet-inpaint.ot", 9)])
def test_input_channels_are_the_file_s(tiny_data: Path, file: str, channels: int) -> None:
    components = tiny_components(tiny_data, unet=file)
    components.check()
    assert components.unet_in_channels == channels
    with components.unet() as unet:
        assert unet.conv_in.weight.shape[1] == channels
