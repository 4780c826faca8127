"""The table of components: a row that a test adds is a component like the others."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn

import sdpy
from sdpy.checkpoints import FORMATS, check_weights, load_weights, read_checkpoint, write_checkpoint
from sdpy.cli.options import flatten
from sdpy.components import COMPONENTS, Component, cpu_words
from sdpy.errors import WeightsError
from sdpy.models import CLIPTextModel
from sdpy.runtime.devices import CPU, place
from sdpy.runtime.options import ModelOptions
from sdpy.zoo.classes import MODEL_CLASSES, ModelClass
from sdpy.zoo.convert import plan_conversion
from sdpy.zoo.find import find_source
from sdpy.zoo.inspect import inspect_weights
from sdpy.zoo.source import ModelSource
from support.compare import randomise
from support.tiny import TINY, tiny_files, tiny_weights

SOURCE = Path(sdpy.__file__).parent
USUAL = ("text_encoder", "unet", "vae")


# --- made-up components ------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterConfig:
    width: int = 3


class Adapter(nn.Module):
    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.adapter_in = nn.Linear(config.width, 2 * config.width)


ADAPTER = Component(
    name="adapter",
    label="adapter",
    role="adapter",
    classes=("TinyAdapter",),
    cpu_word="adapter",
    option="--adapter-weights",
    prefixes=("adapter_model.",),
    telltales=("adapter_in.",),
)
ADAPTER_CLASS = ModelClass(
    config=AdapterConfig,
    model=Adapter,
    read=lambda outline, config: AdapterConfig(outline["adapter_in.weight"].shape[1]),
    write=lambda config, variant: {"_class_name": "TinyAdapter", "width": config.width},
)
TEXT_ENCODER_3 = replace(
    COMPONENTS["text_encoder"],
    name="text_encoder_3",
    label="third text encoder",
    option="--clip-3-weights",
    data_stem="",
    prefixes=("conditioner.embedders.2.transformer.",),
    tokenizer=None,
)
WIDER = replace(TINY.text_encoder, hidden_size=48, num_attention_heads=6)


@dataclass(frozen=True)
class MadeUp:
    """A component of the table's, and a network of it with its weights."""

    row: Component
    model: nn.Module
    config: Any
    cpu_words: tuple[str, ...]
    state: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", randomise(self.model, seed=4).state_dict())


@pytest.fixture(params=["adapter", "text_encoder_3"])
def made_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    if request.param == "adapter":
        monkeypatch.setitem(COMPONENTS, "adapter", ADAPTER)
        monkeypatch.setitem(MODEL_CLASSES, "TinyAdapter", ADAPTER_CLASS)
        words = ("all", "clip", "unet", "vae", "adapter")
        return MadeUp(ADAPTER, Adapter(AdapterConfig(5)), AdapterConfig(5), words)
    monkeypatch.setitem(COMPONENTS, "text_encoder_3", TEXT_ENCODER_3)
    # Its class is that of the first text encoder, and so is the word of --cpu.
    words = ("all", "clip", "unet", "vae")
    return MadeUp(TEXT_ENCODER_3, CLIPTextModel(WIDER), WIDER, words)


@pytest.fixture
def data(tmp_path: Path, tiny_data: Path, made_up: MadeUp) -> Path:
    """A data folder with the made-up component beside the others."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("pytorch_model.ot", "unet.ot", "vae.ot", "bpe_simple_vocab_16e6.txt"):
        (folder / name).symlink_to(tiny_data / name)
    write_checkpoint(folder / made_up.row.data_files[0], made_up.state)
    return folder


def converted(source: Path, target: Path, **options: Any) -> Path:
    list(plan_conversion(inspect_weights(source), target, **options).run())
    return target


def check_source(found: ModelSource, made_up: MadeUp) -> None:
    """The made-up component, and the text encoder beside it, are found and load."""
    name = made_up.row.name
    assert found.files.weights.keys() == {*USUAL, name}
    config = found.config(name)
    if isinstance(config, AdapterConfig):
        assert config == made_up.config
    else:  # heads cannot be seen in weights
        assert replace(config, num_attention_heads=6) == made_up.config
    for component, state in (
        (name, made_up.state),
        ("text_encoder", tiny_weights("text_encoder")),
    ):
        model = found.make(component)
        assert all(tensor.is_meta for tensor in model.state_dict().values())
        check_weights(model, found.checkpoint(component), component=component)
        load_weights(model, found.checkpoint(component), component=component)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)


def test_it_is_found_in_a_folder_of_files(data: Path, made_up: MadeUp) -> None:
    check_source(find_source(str(data), data), made_up)


def test_it_is_found_in_a_diffusers_folder(data: Path, tmp_path: Path, made_up: MadeUp) -> None:
    folder = converted(data, tmp_path / "folder", vocabulary=data / "bpe_simple_vocab_16e6.txt")
    index = json.loads((folder / "model_index.json").read_text())
    assert index[made_up.row.name] == [made_up.row.package, made_up.row.classes[0]]
    config = json.loads((folder / made_up.row.name / "config.json").read_text())
    assert config.get("width", config.get("hidden_size")) in (5, 48)
    check_source(find_source(str(folder), tmp_path), made_up)


def test_it_is_found_in_a_single_file(data: Path, tmp_path: Path, made_up: MadeUp) -> None:
    file = converted(data, tmp_path / "model.safetensors")
    written = read_checkpoint(file).outline
    assert sum(name.startswith(made_up.row.prefixes) for name in written) == len(made_up.state)
    check_source(find_source(str(file), data), made_up)
    back = converted(file, tmp_path / "back", layout="ot")
    assert (back / made_up.row.data_files[0]).is_file()
    (back / "bpe_simple_vocab_16e6.txt").symlink_to(data / "bpe_simple_vocab_16e6.txt")
    check_source(find_source(str(back), back), made_up)


def test_its_file_can_be_given(data: Path, tmp_path: Path, made_up: MadeUp) -> None:
    file = tmp_path / "mine.safetensors"
    write_checkpoint(file, made_up.state)
    (data / made_up.row.data_files[0]).unlink()
    assert made_up.row.name not in find_source(str(data), data).files.weights
    check_source(find_source(str(data), data, {made_up.row.name: file}), made_up)
    with pytest.raises(WeightsError, match="holds no .* but one UNet"):
        find_source(str(data), data, {made_up.row.name: data / "unet.ot"})


def test_it_is_inspected(data: Path, made_up: MadeUp) -> None:
    found = inspect_weights(data).component(made_up.row.name)
    assert found is not None
    assert not found.problems
    assert found.parameters == sum(tensor.numel() for tensor in made_up.state.values())
    assert type(found.config) is type(made_up.config)


def test_it_goes_where_its_word_says(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr("sdpy.runtime.devices.best_device", lambda: gpu)
    assert cpu_words() == made_up.cpu_words
    assert place()[made_up.row.name] == gpu
    placement = place([str(made_up.row.cpu_word)])
    assert (placement[made_up.row.name], placement["unet"]) == (CPU, gpu)


def test_it_has_an_option(made_up: MadeUp) -> None:
    got: list[ModelOptions] = []

    def command(options: ModelOptions) -> None:
        got.append(options)

    command.__annotations__["options"] = ModelOptions
    app = typer.Typer()
    app.command()(flatten(command))
    app([str(made_up.row.option), "x.ot", "--vae-weights", "y.ot"], standalone_mode=False)
    app([], standalone_mode=False)
    given, free = got
    assert given.weights == {made_up.row.name: Path("x.ot"), "vae": Path("y.ot")}
    assert free.weights == {}


# --- nobody else spells out the list -----------------------------------------------------------


def lists_of_components(text: str) -> Iterator[int]:
    """Lines of literals, calls and classes that name all components of most models."""
    for node in ast.walk(ast.parse(text)):
        names: list[Any] = []
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            inner = [e.elts if isinstance(e, ast.Tuple) else [e] for e in node.elts]
            names = [e.value for es in inner for e in es if isinstance(e, ast.Constant)]
        elif isinstance(node, ast.Dict):
            names = [e.value for e in (*node.keys, *node.values) if isinstance(e, ast.Constant)]
        elif isinstance(node, ast.Call):
            names = [keyword.arg for keyword in node.keywords]
        elif isinstance(node, ast.ClassDef):
            names = [
                one.target.id
                for one in node.body
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
            ]
        elif isinstance(node, ast.FunctionDef):
            compared = [one for one in ast.walk(node) if isinstance(one, ast.Compare)]
            names = [
                e.value for one in compared for e in one.comparators if isinstance(e, ast.Constant)
            ]
        if set(USUAL) <= set(names):
            yield node.lineno


@pytest.mark.parametrize(
    "text",
    [
        'NAMES = ("text_encoder", "unet", "vae")',
        'STEMS = {"text_encoder": "model", "unet": "x", "vae": "x", "controlnet": "x"}',
        'TABLE = (("a.", "unet"), ("b.", "vae"), ("c.", "text_encoder"))',
        "class Files:\n    text_encoder: Path\n    unet: Path\n    vae: Path",
        "files = Files(text_encoder=a, unet=b, vae=c)",
        'def f(n):\n    return 1 if n == "unet" else 2 if n == "vae" else n == "text_encoder"',
    ],
)
def test_a_list_of_components_is_noticed(text: str) -> None:
    assert list(lists_of_components(text))


def test_only_the_table_lists_the_components() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if list(lists_of_components(path.read_text(encoding="utf-8")))
    }
    # A variant and a bundle say the sizes of what they consist of.
    assert found == {"zoo/bundle.py", "zoo/variants.py"}
    assert {row.name for row in COMPONENTS.values() if row.is_required} == {"unet", "vae"}


def test_every_class_is_known() -> None:
    for row in COMPONENTS.values():
        assert set(row.classes) <= MODEL_CLASSES.keys()
        assert row.placed_with is None or row.placed_with in COMPONENTS


# --- each header is read once ------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose headers were read."""
    names: list[str] = []

    def noting(read: Any) -> Any:
        def noted(self: Any, path: Path) -> Any:
            names.append(path.name)
            return read(self, path)

        return noted

    for form in FORMATS.values():
        monkeypatch.setattr(type(form), "read", noting(type(form).read))
    return names


def test_each_header_is_read_once(tiny_data: Path, tmp_path: Path, reads: list[str]) -> None:
    # A copy, which nobody has open.
    data = Path(shutil.copytree(tiny_data, tmp_path / "copy"))
    found = find_source(str(data), data)
    for name in found.files.weights:
        model = found.make(name)
        check_weights(model, found.files.weights[name])
        load_weights(model, found.checkpoint(name), component=name)
    found.config("unet")
    assert sorted(reads) == ["pytorch_model.ot", "unet.ot", "vae.ot"]


def test_the_header_of_a_single_file_is_read_once(
    tiny_data: Path, tmp_path: Path, reads: list[str]
) -> None:
    file = converted(tiny_data, tmp_path / "model.safetensors")
    reads.clear()
    found = find_source(str(file), tiny_data)
    for name in found.files.weights:
        load_weights(found.make(name), file)
    assert reads == ["model.safetensors"]


def test_a_replaced_file_is_read_again(tmp_path: Path, tiny_data: Path, reads: list[str]) -> None:
    unet = tmp_path / "unet.safetensors"
    write_checkpoint(unet, tiny_weights("unet"))
    found = ModelSource(TINY, tiny_files(tiny_data).with_weights(unet=unet))
    known, before = found.fingerprint("unet"), found.checkpoint("unet")
    assert found.checkpoint("unet") is before
    assert found.config("unet").in_channels == 4
    write_checkpoint(unet, tiny_weights("unet", in_channels=9))
    assert found.fingerprint("unet") != known
    assert found.checkpoint("unet") is not before
    assert found.config("unet").in_channels == 9
    assert reads == [unet.name, unet.name]
