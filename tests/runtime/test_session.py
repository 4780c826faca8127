"""The session: what is loaded when, what stays, and that it is released."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdpy.runtime.headers as headers_module
import sdpy.runtime.loading as loading_module
import sdpy.runtime.planner as planner_module
import sdpy.runtime.workload as workload_module
from sdpy.checkpoints import Lora, write_checkpoint
from sdpy.errors import UsageError
from sdpy.pipelines.events import ImageDecoded
from sdpy.pipelines.generate import generate
from sdpy.pipelines.request import Request
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.loaded_models import LoadedModel
from sdpy.runtime.options import ModelOptions
from sdpy.runtime.session import PROMPTS_CACHED, Session
from sdpy.text.tokenizer import CLIPTokenizer
from support.growth import memory_of_session
from support.mapped import resident_kilobytes
from support.tiny import placed, tiny_session, tiny_weights, write_tiny

NAMES = ("text_encoder", "unet", "vae")
REQUEST = Request("lighthouse", steps=2, width=32, height=32)


def images(session: Session, *requests: Request) -> list[Tensor]:
    return [
        event.pixels for event in generate(session, requests) if isinstance(event, ImageDecoded)
    ]


def is_empty(model: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


class Spy:
    """Notes what is loaded, and which models are in memory at that time."""

    def __init__(self, load_weights: Any) -> None:
        self.load_weights = load_weights
        self.models: list[tuple[str, nn.Module]] = []
        self.beside: list[set[str]] = []

    def __call__(self, model: nn.Module, file: Any, **options: Any) -> Any:
        self.beside.append({name for name, earlier in self.models if not is_empty(earlier)})
        result = self.load_weights(model, file, **options)
        self.models.append((Path(file.path).stem, model))
        return result

    @property
    def log(self) -> list[str]:
        return [name for name, _ in self.models]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy(loading_module.load_weights)
    monkeypatch.setattr(loading_module, "load_weights", spy)
    return spy


TEXT, UNET, VAE = "pytorch_model", "unet", "vae"


# --- loaded once -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_models", [True, False])
def test_five_images_load_each_model_once(tiny_data: Path, spy: Spy, keep_models: bool) -> None:
    session = tiny_session(tiny_data, keep_models=keep_models)
    assert len(images(session, replace(REQUEST, num_samples=5, batch_size=2))) == 5
    assert spy.log == [TEXT, UNET, VAE]
    assert session.counters.loads == 3
    if not keep_models:
        assert all(is_empty(model) for _, model in spy.models)


def test_requests_of_two_sizes_in_turn_plan_each_size_once(tiny_data: Path) -> None:
    session = tiny_session(tiny_data)
    other = replace(REQUEST, width=48)
    first = images(session, REQUEST)
    after_first = replace(session.counters.preparations)
    assert after_first.plans > 0
    images(session, other)
    after_second = replace(session.counters.preparations)
    assert after_second.plans == 2 * after_first.plans
    again = images(session, REQUEST)
    assert images(session, other)[0].shape[-1] == 48
    assert session.counters.preparations == after_second
    assert session.counters.loads == 3
    assert torch.equal(first[0], again[0])


def test_a_prompt_that_repeats_is_encoded_once(tiny_data: Path, spy: Spy) -> None:
    session = tiny_session(tiny_data)
    images(session, REQUEST, replace(REQUEST, seed=1), replace(REQUEST, prompt="cat"))
    assert session.counters.encoded_prompts == 2
    images(session, replace(REQUEST, steps=3))
    assert session.counters.encoded_prompts == 2
    images(session, replace(REQUEST, clip_skip=2))
    images(session, replace(REQUEST, negative_prompt="dark"))
    images(session, replace(REQUEST, prompt="(lighthouse:1.3)"))
    assert session.counters.encoded_prompts == 5


def test_a_prompt_is_tokenised_once_a_request(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    tokenize = CLIPTokenizer.tokenize

    def noting(self: CLIPTokenizer, text: str) -> Any:
        texts.append(text)
        return tokenize(self, text)

    monkeypatch.setattr(CLIPTokenizer, "tokenize", noting)
    session = tiny_session(tiny_data)
    images(session, replace(REQUEST, prompt="cat", negative_prompt="dark", num_samples=3))
    assert sorted(text for text in texts if text != ",") == ["cat", "dark"]


def test_the_schedule_is_planned_once_a_request(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdpy.schedulers.ddim import DDIMScheduler

    planned: list[int] = []
    set_timesteps = DDIMScheduler.set_timesteps

    def noting(self: DDIMScheduler, steps: int, skip: int = 0) -> None:
        planned.append(steps)
        set_timesteps(self, steps, skip)

    monkeypatch.setattr(DDIMScheduler, "set_timesteps", noting)
    images(tiny_session(tiny_data), replace(REQUEST, num_samples=4, batch_size=1))
    assert planned == [2]


def test_a_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpy.checkpoints.ot import OtFormat

    opened: list[str] = []
    read = OtFormat.read

    def noting(self: OtFormat, path: Path) -> Any:
        opened.append(path.name)
        return read(self, path)

    monkeypatch.setattr(OtFormat, "read", noting)
    session = tiny_session(write_tiny(tmp_path / "data"))
    images(session, REQUEST)
    images(session, replace(REQUEST, seed=3))
    assert sorted(opened) == ["pytorch_model.ot", "unet.ot", "vae.ot"]


# --- what identifies a model -------------------------------------------------------------------


def lora_file(path: Path, seed: int) -> Path:
    """A LoRA of one of the UNet's layers."""
    numbers = torch.Generator().manual_seed(seed)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    write_checkpoint(
        path,
        {
            f"{name}.lora_A.weight": torch.randn(2, 16, generator=numbers),
            f"{name}.lora_B.weight": torch.randn(16, 2, generator=numbers),
        },
    )
    return path


def test_changing_loras_gives_the_right_weights(tiny_data: Path, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors", seed=0)
    settings = [(), (Lora(path),), (Lora(path, 0.5),)]
    requests = [replace(REQUEST, lora=loras) for loras in settings]
    expected = [images(tiny_session(tiny_data), request)[0] for request in requests]
    assert not torch.equal(expected[0], expected[1])
    assert not torch.equal(expected[1], expected[2])
    session = tiny_session(tiny_data)
    for i in (0, 1, 2, 0, 2, 1):
        assert torch.equal(images(session, requests[i])[0], expected[i])
    # Each setting once, of encoder and UNet; the autoencoder takes none.
    assert session.counters.loads == 2 * 3 + 1


def test_a_lora_that_changes_on_disk_is_noticed(tiny_data: Path, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors", seed=0)
    request = replace(REQUEST, lora=(Lora(path),))
    session = tiny_session(tiny_data)
    before = images(session, request)[0]
    lora_file(path, seed=1)
    after = images(session, request)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, images(tiny_session(tiny_data), request)[0])


def test_weights_replaced_on_disk_are_noticed(tmp_path: Path, spy: Spy) -> None:
    folder = write_tiny(tmp_path / "data")
    session = tiny_session(folder)
    before = images(session, REQUEST)[0]
    weights = {name: tensor.clone() for name, tensor in tiny_weights("unet").items()}
    weights["conv_out.weight"] += 0.5
    write_checkpoint(folder / "unet.ot", weights)
    after = images(session, REQUEST)[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, images(tiny_session(folder), REQUEST)[0])
    assert spy.log[:4] == [TEXT, UNET, VAE, UNET]
    assert is_empty(spy.models[1][1])  # the old one is gone


def test_another_way_of_computing_is_another_model(tiny_data: Path) -> None:
    session = tiny_session(tiny_data)
    usual, sliced = session.models(), session.models(Execution(sliced_attention_size=1))
    with usual.unet() as one, sliced.unet() as other:
        assert one is not other
    with session.models(Execution(memory=2**40, weight_budget=5)).unet() as same:
        assert same is one


# --- what stays --------------------------------------------------------------------------------


class Room:
    """How much memory there is, as the planner sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 1e12
        monkeypatch.setattr(planner_module, "free_memory", lambda: self.free)
        for name in ("STEADY", "UNET_MAPS", "TOKEN_MAPS", "TILED_DECODER_MAPS", "DECODER_MAPS"):
            monkeypatch.setattr(workload_module, name, 0)
        monkeypatch.setattr(headers_module, "KEPT_OF_PROMPT", ())


def sizes(tiny_data: Path) -> dict[str, int]:
    session = tiny_session(tiny_data)
    return {
        name: sum(tensor.nbytes for tensor in session.source.make(name).state_dict().values())
        for name in NAMES
    }


@pytest.mark.parametrize(
    ("fits", "stays"),
    [
        (("text_encoder", "unet", "vae"), {"text_encoder", "unet", "vae"}),
        (("unet", "vae"), {"unet"}),
        (("unet",), set()),
    ],
)
def test_what_stays_is_what_fits(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, fits: tuple[str, ...], stays: set[str]
) -> None:
    room, bytes_of = Room(monkeypatch), sizes(tiny_data)
    room.free = sum(bytes_of[name] for name in fits)
    session = tiny_session(tiny_data)
    images(session, REQUEST)
    assert set(session.loaded.components()) == stays


def test_the_least_recently_used_goes_first(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, bytes_of = Room(monkeypatch), sizes(tiny_data)
    session = tiny_session(tiny_data)
    path = lora_file(tmp_path / "a.safetensors", seed=0)
    images(session, REQUEST)
    images(session, replace(REQUEST, lora=(Lora(path),)))
    assert session.loaded.components() == (*("text_encoder", "unet", "text_encoder"), "unet", "vae")
    room.free = 0.5 * bytes_of["unet"]  # of which a third UNet does not find enough
    order: list[str] = []
    release = LoadedModel.release

    def noting(self: Any, **options: Any) -> None:
        order.append(self.key.component)
        release(self, **options)

    monkeypatch.setattr(LoadedModel, "release", noting)
    with pytest.raises(Exception, match="would take"):
        room.free = 0
        images(session, replace(REQUEST, lora=(Lora(path, 0.5),)))
    assert order[:2] == ["text_encoder", "unet"]


def test_a_block_of_its_own_leaves_nothing(tiny_data: Path, spy: Spy) -> None:
    """As a command for a single image does: never two models in memory together."""
    images(tiny_session(tiny_data, keep_models=False), REQUEST)
    assert spy.log == [TEXT, UNET, VAE]
    assert spy.beside == [set(), set(), set()]
    assert all(is_empty(model) for _, model in spy.models)


def test_nothing_stays_in_low_memory(tiny_data: Path, spy: Spy) -> None:
    session = tiny_session(tiny_data, execution=Execution(memory="low"))
    images(session, replace(REQUEST, num_samples=2))
    assert session.loaded.components() == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_gone_after_its_block_and_after_an_exception(
    tiny_data: Path, spy: Spy, name: str
) -> None:
    models = tiny_session(tiny_data, keep_models=False).models()
    with getattr(models, name)() as model:
        assert not is_empty(model)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert is_empty(model)
    with pytest.raises(RuntimeError, match="stop"), getattr(models, name)() as model:
        raise RuntimeError("stop")
    assert is_empty(model)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", NAMES)
def test_the_file_s_pages_are_given_back_though_somebody_holds_a_weight(
    tiny_data: Path, name: str
) -> None:
    session = tiny_session(tiny_data, keep_models=False)
    path = session.source.files.weights[name]
    with getattr(session.models(), name)() as model:
        held = next(iter(model.parameters()))
        held.sum()
        assert resident_kilobytes(path) > 0
    assert resident_kilobytes(path) == 0
    assert held.isfinite().all()  # its pages are read again


def test_a_run_that_is_given_up_releases(tiny_data: Path, spy: Spy) -> None:
    session = tiny_session(tiny_data, keep_models=False)
    events = generate(session, [replace(REQUEST, steps=5)])
    while UNET not in spy.log:
        next(events)
    assert not is_empty(spy.models[-1][1])
    events.close()
    assert is_empty(spy.models[-1][1])


def test_close_releases_everything(tiny_data: Path, spy: Spy) -> None:
    with tiny_session(tiny_data) as session:
        images(session, REQUEST)
        assert session.loaded.components() == NAMES
    assert session.loaded.components() == ()
    assert all(is_empty(model) for _, model in spy.models)
    with pytest.raises(UsageError, match="closed"):
        images(session, REQUEST)


def test_the_models_go_where_they_are_placed(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []

    def note(model: nn.Module, file: Any, *, device: torch.device, **_: Any) -> Any:
        devices.append(device)
        return load_weights(model, file)

    load_weights = loading_module.load_weights
    monkeypatch.setattr(loading_module, "load_weights", note)
    places = {name: torch.device("cuda", i) for i, name in enumerate(NAMES)}
    models = tiny_session(tiny_data, placement=Placement(places)).models()
    for name in NAMES:
        with getattr(models, name)():
            pass
    assert devices == list(places.values())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat(tiny_data: Path) -> None:
    full_cache = PROMPTS_CACHED + 14
    (before, tensors_before), (after, tensors_after) = memory_of_session(
        tiny_data, [full_cache, full_cache + 60]
    )
    assert tensors_after <= tensors_before
    assert after - before < 4 * 2**20


def test_several_threads(tiny_data: Path) -> None:
    """One request at a time, whoever asks."""
    session = tiny_session(tiny_data)
    requests = [replace(REQUEST, seed=seed) for seed in range(4)]
    expected = [images(tiny_session(tiny_data), request)[0] for request in requests]
    found: dict[int, Tensor] = {}

    def ask(i: int) -> None:
        found[i] = images(session, requests[i])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.counters.loads == 3
    assert all(torch.equal(found[i], expected[i]) for i in range(4))


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [(None, "cuda", True), ("fp32", "cuda", False), ("fp16", "cuda", False), (None, "cpu", False)],
)
def test_a_line_says_that_fp16_is_faster_on_a_gpu(
    tiny_data: Path, dtype: str | None, device: str, told: bool
) -> None:
    """Unless the user has chosen."""
    place = torch.device(device)
    session = tiny_session(tiny_data)
    options = ModelOptions(dtype=dtype)
    session = Session(session.source, placed(place, place, place), options=options)
    notices = [notice.text for notice in session.take_notices()]
    assert any("--dtype fp16 is faster" in text for text in notices) == told
    assert list(session.take_notices()) == []
