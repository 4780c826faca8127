"""How much a image takes is known before anything is loaded, and less is taken where need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sdpy.runtime.planner as planner_module
from sdpy.checkpoints import Lora, write_checkpoint
from sdpy.components import COMPANIONS
from sdpy.errors import ShortageError
from sdpy.models import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPTextModel,
    ControlNetConfig,
    ControlNetModel,
    T2IAdapter,
    T2IAdapterConfig,
    UNet2DConditionModel,
)
from sdpy.runtime.devices import Placement
from sdpy.runtime.execution import Execution
from sdpy.runtime.planner import find_room, plan_memory, plan_two_stages
from sdpy.runtime.session import Session
from sdpy.runtime.workload import Memory, WeightsSize, Workload
from sdpy.zoo.classes import make_model
from sdpy.zoo.files import ModelFiles
from sdpy.zoo.source import ModelSource
from sdpy.zoo.variants import SD15, SDXL
from support.tiny import placed, tiny_session, tiny_source

MIB, GIB = 2**20, 2**30
SHAPE = (1, 4, 64, 64)
CUDA = torch.device("cuda")


# --- the sizes of Stable Diffusion, in files without numbers -------------------------------------


def sparse_weights(path: Path, model: nn.Module, dtype: torch.dtype) -> Path:
    """A .safetensors file of a model's names and shapes, whose numbers are a hole in it."""
    import json
    import struct

    names = {torch.float32: "F32", torch.float16: "F16"}
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("sd15")
    with torch.device("meta"):
        models = {
            "text_encoder": CLIPTextModel(SD15.text_encoder),
            "unet": UNet2DConditionModel(SD15.unet),
            "vae": AutoencoderKL(SD15.vae),
        }
        others = {
            "tiny": AutoencoderTiny(SD15.tiny_vae),
            "control": ControlNetModel(ControlNetConfig(unet=SD15.unet)),
            "control2": ControlNetModel(ControlNetConfig(unet=SD15.unet)),
            "adapter": T2IAdapter(T2IAdapterConfig()),
        }
    for name, model in {**models, **others}.items():
        sparse_weights(folder / f"{name}.safetensors", model, torch.float32)
    sparse_weights(folder / "unet16.safetensors", models["unet"], torch.float16)
    return ModelFiles(
        {name: folder / f"{name}.safetensors" for name in models},
        vocabulary=folder / "none",
    )


def session_of(files: ModelFiles, **options: Any) -> Session:
    return Session(ModelSource(SD15, files), **{"keep_models": False, **options})


def workload_of(
    session: Session,
    shape: tuple[int, int, int, int] = SHAPE,
    *,
    loras: tuple[Lora, ...] = (),
    **options: Any,
) -> Workload:
    return Workload.of(session.models(loras=loras), shape, **options)


def need(
    files: ModelFiles,
    shape: tuple[int, int, int, int] = SHAPE,
    *,
    placement: Placement | None = None,
    loras: tuple[Lora, ...] = (),
    keep: frozenset[str] = frozenset(),
    batch: int = 1,
    work: dict[str, Any] | None = None,
    **execution: Any,
) -> Memory:
    placement = Placement() if placement is None else placement
    workload = workload_of(
        session_of(files, placement=placement), shape, loras=loras, **(work or {})
    )
    return workload.need(Execution(**execution), keep, batch)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """What there is, for the tests to change."""
    sizes = {"main": float("inf"), "gpu": float("inf")}
    monkeypatch.setattr(planner_module, "find_room", lambda *_: Memory(**sizes))
    yield sizes


UNET, VAE, TEXT_ENCODER = 859_520_964 * 4, 83_653_863 * 4, 123_060_480 * 4
EVERYTHING = frozenset({"text_encoder", "unet", "vae", *COMPANIONS})


def test_the_weights_of_the_largest_model_count(sd15: ModelFiles) -> None:
    """Next to what it computes with, half a GB to be generous; models are never there together."""
    assert UNET < need(sd15).main < UNET + 700 * MIB


def test_streamed_weights_count_little(sd15: ModelFiles) -> None:
    assert need(sd15, streamed=True, tiled=True).main < 1.5 * GIB
    whole = need(sd15, streamed=True, fast_kernels=False).main
    assert whole > need(sd15, streamed=True, fast_kernels=False, tiled=True).main


def test_the_fast_autoencoder_runs_in_tiles_anyway(sd15: ModelFiles) -> None:
    assert need(sd15, streamed=True).main == need(sd15, streamed=True, tiled=True).main


@pytest.mark.parametrize("streamed", [False, True])
def test_a_larger_image_takes_more(sd15: ModelFiles, streamed: bool) -> None:
    needs = [
        need(sd15, shape=(1, 4, side, side), streamed=streamed, tiled=True).main
        for side in (32, 64, 96, 128, 256)
    ]
    assert needs == sorted(needs)
    assert needs[-1] > needs[0] + 5 * GIB


def test_guidance_takes_twice_the_maps(sd15: ModelFiles) -> None:
    place = placed(unet=CUDA)
    guided, alone = (
        need(sd15, (1, 4, 128, 128), placement=place, work={"contexts": contexts}).gpu
        for contexts in (2, 1)
    )
    assert guided - alone > 0.4 * (guided - UNET) > 500 * MIB


def test_beginning_with_an_image_takes_no_less(sd15: ModelFiles) -> None:
    for tiles in (False, True):
        options = {"tiled": tiles, "streamed": True}
        assert need(sd15, work={"encodes": True}, **options).main >= need(sd15, **options).main


def test_shorter_numbers_take_half(sd15: ModelFiles) -> None:
    on_gpu = placed(CUDA, CUDA, CUDA)
    long = need(sd15, placement=on_gpu)
    short = need(sd15, placement=on_gpu, dtype=torch.float16)
    assert UNET < long.gpu < UNET + GIB
    assert UNET / 2 < short.gpu < 0.55 * long.gpu
    assert long.main < GIB and short.main < GIB
    streamed = need(sd15, placement=on_gpu, dtype=torch.float16, streamed=True, tiled=True)
    assert streamed.gpu < GIB


def test_offloaded_models_stay_in_main_memory(sd15: ModelFiles) -> None:
    """All of them, as they are not released after their use; on the GPU only one at a time."""
    on_gpu = placed(CUDA, CUDA, CUDA)
    offloaded = need(sd15, placement=on_gpu, offload=True)
    assert offloaded.main == UNET + VAE + TEXT_ENCODER
    assert offloaded.gpu == need(sd15, placement=on_gpu).gpu
    assert need(sd15, placement=on_gpu, offload=True, keep=EVERYTHING) == offloaded
    assert need(sd15, placement=placed(unet=CUDA), offload=True).main > UNET + VAE


def test_an_offloaded_model_that_is_loaded_takes_the_gpu_again(tiny_data: Path) -> None:
    session = tiny_session(tiny_data, placement=placed(unet=CUDA))
    execution = Execution(offload=True)
    first = Workload.of(session.models(execution), (1, 4, 16, 16))
    later = replace(first, unet=replace(first.unet, is_loaded=True))
    assert later.need(execution).gpu == first.need(execution).gpu > 0
    assert later.need(execution).main < first.need(execution).main


def test_each_device_has_its_own_models(sd15: ModelFiles) -> None:
    both = need(sd15, placement=placed(unet=CUDA))
    assert both.gpu > UNET
    assert VAE < both.main < VAE + 2 * GIB


def test_controlnets_are_there_beside_the_unet(sd15: ModelFiles) -> None:
    names = ("control.safetensors", "control2.safetensors")
    controls = [sd15.weights["unet"].with_name(name) for name in names]
    counts = [
        need(sd15, work={"controls": controls[:n]}, streamed=streamed).main
        for streamed in (False, True)
        for n in (0, 1, 2)
    ]
    network = 361_279_120 * 4
    assert counts[1] - counts[0] > network and counts[2] - counts[1] > network
    assert counts[5] < counts[3] + GIB
    twice = need(sd15, work={"controls": controls[:1] * 2}).main
    assert twice < counts[2]  # its weights are there once


def test_t2i_adapters_are_gone_when_the_unet_comes(sd15: ModelFiles) -> None:
    work = {"controls": [sd15.weights["unet"].with_name("adapter.safetensors")]}
    adapter = 77_369_280 * 4
    plain, steered = need(sd15), need(sd15, work=work)
    assert plain.main < steered.main < plain.main + 0.1 * adapter
    kept = frozenset({"unet", "t2i_adapter"})
    assert need(sd15, work=work, keep=kept).main > plain.main + adapter


def test_a_tiny_autoencoder_takes_less(sd15: ModelFiles) -> None:
    tiny = sd15.with_weights(vae=sd15.weights["vae"].with_name("tiny.safetensors"))
    large = (1, 4, 256, 256)
    assert need(tiny, shape=large, streamed=True).main < need(sd15, shape=large, streamed=True).main


def test_what_cannot_be_mapped_stays(tmp_path: Path, sd15: ModelFiles, tiny_data: Path) -> None:
    """Though it comes and goes: an archive that is compressed is unpacked as a whole."""
    import numpy as np

    from support.tiny import tiny_weights

    values = {name: tensor.numpy() for name, tensor in tiny_weights("unet").items()}
    np.savez_compressed(tmp_path / "unet.npz", **values)
    write_checkpoint(tmp_path / "plain.npz", tiny_weights("unet"))
    size = sum(value.nbytes for value in values.values())
    found = {}
    for name in ("unet", "plain"):
        source = tiny_source(tiny_data)
        files = source.files.with_weights(unet=tmp_path / f"{name}.npz")
        session = Session(replace(source, files=files))
        found[name] = workload_of(session, (1, 4, 16, 16)).unet.unmapped
    assert found == {"unet": size, "plain": 0}


# --- the sizes of Stable Diffusion XL -------------------------------------------------------------


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """In half precision, as they are downloaded for GPUs."""
    folder, files = tmp_path_factory.mktemp("sdxl"), {}
    for name, config in SDXL.configs.items():
        path = folder / f"{name}.safetensors"
        files[name] = sparse_weights(path, make_model(name, config), torch.float16)
    return ModelSource(SDXL, ModelFiles(files, vocabulary=folder / "none"))


def planned_on_gpu(
    sdxl: ModelSource, size: int = 1024, **execution: Any
) -> tuple[Execution, list[str], Memory]:
    """What is chosen for an image in fp16 with everything on the GPU, and what it needs."""
    chosen = Execution(dtype=torch.float16, **execution)
    session = Session(sdxl, placed(CUDA, CUDA, CUDA), chosen, keep_models=False)
    workload = workload_of(session, (1, 4, size // 8, size // 8))
    plan = plan_memory(session.models(), workload, None)
    told = [notice.text for notice in plan.notices]
    return plan.execution, told, workload.need(plan.execution, plan.keep, plan.batch)


@pytest.mark.parametrize(
    ("dtype", "size", "measured"),
    [
        (torch.float32, 256, 0.46),
        (torch.float32, 512, 0.91),
        (torch.bfloat16, 512, 0.68),
        (torch.bfloat16, 768, 1.13),
    ],
)
def test_what_decoding_was_measured_to_take(
    monkeypatch: pytest.MonkeyPatch,
    sdxl: ModelSource,
    dtype: torch.dtype,
    size: int,
    measured: float,
) -> None:
    """In GB, without larger forms of weights; on an AMD EPYC with AVX-512 BF16."""
    monkeypatch.setattr("sdpy.runtime.execution.cpu_has_bfloat16", lambda: True)
    # So that decoding takes the most.
    workload = workload_of(Session(sdxl), (1, 4, size // 8, size // 8), contexts=0)
    streamed = Execution(dtype=dtype, streamed=True)
    weights = workload.vae.numbers * dtype.itemsize - workload.vae.while_running(streamed).main
    planned = workload.need(streamed).main + weights
    assert measured <= planned / 1e9 <= measured * 1.15 + 0.15


def test_xl_on_a_gpu_of_8_gb_with_offload(sdxl: ModelSource, room: dict[str, float]) -> None:
    """Of whose memory half a GB is taken by others, beside 8 GB of main memory."""
    room["gpu"], room["main"] = 7.5 * GIB, 8 * GIB
    execution, told, needed = planned_on_gpu(sdxl, offload=True)
    assert (execution.tiled, execution.streamed, told) == (False, False, [])
    assert needed.gpu < 6.2e9 and 6.9e9 < needed.main < 7.3e9


def test_xl_on_a_gpu_of_4_gb_is_streamed(sdxl: ModelSource, room: dict[str, float]) -> None:
    room["gpu"], room["main"] = 3.5 * GIB, 8 * GIB
    for options in ({}, {"offload": True}, {"memory": "low"}):
        execution, told, needed = planned_on_gpu(sdxl, **options)
        assert execution.streamed and execution.tiled
        assert needed.gpu < 2.7e9 and needed.main < 1e9
        assert len(told) == (options != {"memory": "low"})


def test_xl_on_a_gpu_of_6_gb(sdxl: ModelSource, room: dict[str, float]) -> None:
    """The weights fit, and what 512x512 pixels take, but not what 1024x1024 pixels do."""
    room["gpu"], room["main"] = 5.5 * GIB, 8 * GIB
    assert not planned_on_gpu(sdxl, size=512)[0].streamed
    assert planned_on_gpu(sdxl)[0].streamed


# --- choosing ----------------------------------------------------------------------------------


def fitted(
    session: Session, shape: tuple[int, int, int, int] = SHAPE, **options: Any
) -> tuple[Execution, list[str]]:
    """What is chosen, and the notices."""
    plan = plan_memory(session.models(), workload_of(session, shape, **options), None)
    return plan.execution, [notice.text for notice in plan.notices]


def test_where_there_is_enough_nothing_changes(sd15: ModelFiles, room: dict[str, float]) -> None:
    assert fitted(session_of(sd15)) == (Execution(), [])
    room["main"] = 100 * GIB
    execution, told = fitted(session_of(sd15))
    assert replace(execution, weight_budget=None) == Execution()
    assert execution.weight_budget == pytest.approx(100 * GIB - need(sd15).main)
    assert told == []


def test_networks_in_memory_together_share_what_is_left_for_faster_forms(
    sd15: ModelFiles, room: dict[str, float]
) -> None:
    room["main"] = 100 * GIB
    folder = sd15.weights["unet"].parent
    for names, keep, networks in (
        (("control", "control2"), frozenset(), 3),
        (("control", "adapter"), frozenset(), 2),
        ((), frozenset({"unet"}), 2),
        ((), frozenset({"text_encoder"}), 1),
    ):
        controls = [folder / f"{name}.safetensors" for name in names]
        session = session_of(sd15, keep_models=True)
        models = session.models(keep=keep)
        workload = workload_of(session, controls=controls)
        plan = plan_memory(models, workload, None)
        left = 100 * GIB - workload.need(Execution(), keep).main
        assert plan.execution.weight_budget == pytest.approx(left / networks)


def test_a_model_and_its_refiner_share_the_memory(sd15: ModelFiles, room: dict[str, float]) -> None:
    """Nothing stays of either where both do not fit together; as many images for both."""
    session, refiner = (session_of(sd15, keep_models=True) for _ in range(2))
    stages = [(one.models(), workload_of(one, images=4)) for one in (session, refiner)]
    alone = stages[0][1].need(Execution(), stages[0][0].keep).main
    room["main"] = 2.5 * alone
    plans = plan_two_stages(*stages, batch_size=1)
    assert [plan.keep for plan in plans] == [models.keep for models, _ in stages]
    for plan in plans:
        assert plan.execution.weight_budget == pytest.approx(0.5 * alone / 4, abs=1)
    room["main"] = 1.5 * alone
    plans = plan_two_stages(*stages, batch_size=1)
    assert [plan.keep for plan in plans] == [frozenset(), frozenset()]
    assert not any(plan.execution.streamed or plan.notices for plan in plans)
    fewer = stages[1][1].need(Execution(), batch=2).main
    room["main"] = fewer
    plans = plan_two_stages(*stages, batch_size=4)
    assert [plan.batch for plan in plans] == [2, 2]


def test_the_cheapest_that_suffices_is_chosen(sd15: ModelFiles, room: dict[str, float]) -> None:
    """At this size, the decoder takes more than the UNet, until it works in tiles."""
    large = (1, 4, 192, 192)
    usual = {"shape": large, "fast_kernels": False}
    plain = need(sd15, **usual).main
    in_tiles = need(sd15, **usual, tiled=True).main
    streamed = need(sd15, **usual, tiled=True, streamed=True).main
    assert streamed < in_tiles < plain
    chosen = []
    session = session_of(sd15, execution=Execution(fast_kernels=False))
    for room["main"] in (plain, plain - 1, in_tiles, in_tiles - 1, streamed):
        execution, told = fitted(session, shape=large)
        chosen.append((execution.tiled, execution.streamed, len(told)))
    assert chosen == [
        (False, False, 0),
        (True, False, 1),
        (True, False, 1),
        (True, True, 1),
        (True, True, 1),
    ]


def test_what_is_chosen_is_said(
    sd15: ModelFiles, room: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner_module, "resident_memory", lambda: GIB // 4)
    room["main"] = 2 * GIB
    _, (told,) = fitted(session_of(sd15))
    assert told.startswith("512x512 pixels would take about ")
    assert "G of memory, of 2.25G that are to be had" in told
    assert told.endswith(": reading the weights anew at each step")


def test_what_does_not_help_is_not_done(sd15: ModelFiles, room: dict[str, float]) -> None:
    """Decoding in tiles helps neither a UNet nor a tiny autoencoder."""
    room["main"] = 2 * GIB
    execution, _ = fitted(session_of(sd15))
    assert (execution.tiled, execution.streamed) == (False, True)
    assert execution.weight_budget == 0
    tiny = sd15.with_weights(vae=sd15.weights["vae"].with_name("tiny.safetensors"))
    room["main"] = 1.2 * GIB
    execution, _ = fitted(session_of(tiny))
    assert (execution.tiled, execution.streamed) == (False, True)


def test_what_does_not_fit_is_refused_in_one_line(sd15: ModelFiles, room: dict[str, float]) -> None:
    room["main"] = 100 * MIB
    for memory in ("auto", "low"):
        with pytest.raises(ShortageError) as caught:
            fitted(session_of(sd15, execution=Execution(memory=memory)))
        line = str(caught.value)
        assert line.startswith("512x512 pixels would take about ")
        for words in ("even with every saving", "--width", "--height", "--memory"):
            assert words in line
        assert "\n" not in line
    assert caught.value.exit_code == 7


def test_low_takes_as_little_as_it_can(sd15: ModelFiles, room: dict[str, float]) -> None:
    execution, told = fitted(session_of(sd15, execution=Execution(memory="low")))
    assert (execution.tiled, execution.streamed, execution.weight_budget) == (True, True, 0)
    assert execution.sliced_attention_size is None  # which saves nothing on the CPU
    assert told == []


def test_a_gpu_has_its_own_memory(sd15: ModelFiles, room: dict[str, float]) -> None:
    session = session_of(sd15, placement=placed(CUDA, CUDA, CUDA))
    room["gpu"] = 2 * GIB
    execution, (told,) = fitted(session)
    assert execution.streamed
    assert "of the GPU's memory, of 2G that are free" in told
    session = session_of(
        sd15, placement=placed(CUDA, CUDA, CUDA), execution=Execution(memory="low")
    )
    execution, _ = fitted(session)
    assert (execution.tiled, execution.streamed) == (True, True)
    assert execution.sliced_attention_size == 0
    room["gpu"] = 10 * MIB
    with pytest.raises(ShortageError, match="of the GPU's memory"):
        fitted(session)


def test_slices_of_one_s_own_stay(sd15: ModelFiles, room: dict[str, float]) -> None:
    session = session_of(
        sd15,
        placement=placed(CUDA, CUDA, CUDA),
        execution=Execution(memory="low", sliced_attention_size=3),
    )
    assert fitted(session)[0].sliced_attention_size == 3


def test_the_rest_of_the_execution_stays(sd15: ModelFiles, room: dict[str, float]) -> None:
    room["main"] = 2 * GIB
    given = Execution(fast_kernels=False, sliced_attention_size=2, offload=True)
    execution, _ = fitted(session_of(sd15, execution=given))
    assert execution == replace(given, streamed=True, weight_budget=0)


def test_kept_models_count_until_they_are_there(tiny_data: Path) -> None:
    models = tiny_session(tiny_data).models()
    sizes = []
    for _ in range(2):
        workload = Workload.of(models, (1, 4, 16, 16))
        sizes.append([one.while_running(models.execution).main > 0 for one in workload.models])
        with models.unet():
            pass
    assert sizes == [[True, True, True], [True, False, True]]


# --- batches and what stays --------------------------------------------------------------------


def plan(
    session: Session, batch_size: int | None, images: int, shape: Any = SHAPE
) -> tuple[int, frozenset[str], list[str]]:
    made = plan_memory(session.models(), workload_of(session, shape, images=images), batch_size)
    return made.batch, made.keep, [notice.text for notice in made.notices]


def test_a_batch_takes_more(sd15: ModelFiles) -> None:
    place = placed(unet=CUDA, vae=CUDA)
    needs = [need(sd15, placement=place, batch=batch).gpu for batch in (1, 2, 4, 8)]
    assert needs == sorted(needs) and needs[-1] > needs[0] + 2 * GIB


def test_on_a_cpu_a_large_unet_computes_one_image_at_a_time(
    sd15: ModelFiles, room: dict[str, float]
) -> None:
    assert plan(session_of(sd15), None, images=8)[0] == 1
    assert plan(session_of(sd15), 4, images=8)[0] == 4
    assert plan(session_of(sd15), 4, images=3)[0] == 3


def test_a_gpu_computes_many_images_at_a_time(sd15: ModelFiles, room: dict[str, float]) -> None:
    session = session_of(sd15, placement=placed(CUDA, CUDA, CUDA), keep_models=True)
    assert plan(session, None, images=20)[:2] == (8, EVERYTHING)
    assert plan(session, None, images=20, shape=(1, 4, 128, 128))[0] == 2
    assert plan(session, None, images=20, shape=(1, 4, 256, 256))[0] == 1
    assert plan(session, None, images=1)[0] == 1


def test_less_memory_is_a_smaller_batch_before_models_go(
    sd15: ModelFiles, room: dict[str, float]
) -> None:
    session = session_of(sd15, placement=placed(CUDA, CUDA, CUDA), keep_models=True)
    workload = workload_of(session, images=20)
    found = []
    for keep, batch in ((EVERYTHING, 4), (EVERYTHING, 1), (frozenset({"unet", *COMPANIONS}), 1)):
        room["gpu"] = workload.need(Execution(), keep, batch).gpu
        found.append(plan(session, None, images=20)[:2])
    assert found[:2] == [(4, EVERYTHING), (1, EVERYTHING)]
    assert found[2][1] == {"unet", *COMPANIONS}


def test_a_batch_that_the_user_wants_goes_before_models_that_stay(
    sd15: ModelFiles, room: dict[str, float]
) -> None:
    session = session_of(sd15, placement=placed(CUDA, CUDA, CUDA), keep_models=True)
    workload = workload_of(session, images=20)
    room["gpu"] = workload.need(Execution(), frozenset(), 8).gpu
    batch, keep, told = plan(session, 8, images=20)
    assert batch == 8 and keep != EVERYTHING and told == []
    room["gpu"] = workload.need(Execution(), frozenset(), 4).gpu
    batch, _, told = plan(session, 8, images=20)
    assert batch == 4
    assert told == ["not enough memory for 8 images at a time: computing 4 at a time"]


def test_a_command_for_one_image_keeps_nothing(sd15: ModelFiles, room: dict[str, float]) -> None:
    assert plan(session_of(sd15), None, images=1)[1] == frozenset()
    assert plan(session_of(sd15), None, images=3)[1] == {"unet", "vae", *COMPANIONS}


# --- what there is -----------------------------------------------------------------------------


def test_the_room_is_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner_module, "free_memory", lambda: 5 * GIB)
    assert find_room(Execution(), ()) == Memory(5 * GIB, float("inf"))
    assert find_room(Execution(memory="low"), ()) == Memory(5 * GIB, float("inf"))
    monkeypatch.setattr(planner_module, "free_memory", lambda: None)
    assert find_room(Execution(), ()).main == float("inf")


def test_a_size_is_for_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is believed, whatever is free."""
    monkeypatch.setattr(planner_module, "free_memory", lambda: 1)
    monkeypatch.setattr(planner_module, "resident_memory", lambda: GIB)
    assert find_room(Execution(memory=4 * GIB), ()).main == 3 * GIB


def test_the_fullest_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free = {"cuda:0": 8 * GIB, "cuda:1": 6 * GIB}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (free[str(d)], 16 * GIB))
    devices = [torch.device(name) for name in free]
    assert find_room(Execution(), devices).gpu == 6 * GIB
    assert find_room(Execution(), [torch.device("mps")]).gpu == float("inf")


def test_long_prompts_take_memory(sd15: ModelFiles) -> None:
    """A prompt of 100,000 tokens takes gigabytes, which are known before it is encoded."""
    session = session_of(sd15)
    short, long = (workload_of(session, chunks=chunks) for chunks in (1, 1300))
    difference = long.need(Execution()).main - short.need(Execution()).main
    assert 3 * GIB < difference < 30 * GIB


def test_keys_and_values_of_the_prompt_count_in_every_layer(tmp_path: Path) -> None:
    """Stable Diffusion XL has 70 layers that keep them, with ControlNet 104."""
    with torch.device("meta"):
        models = {
            **{name: make_model(name, config) for name, config in SDXL.configs.items()},
            "control": ControlNetModel(ControlNetConfig(unet=SDXL.unet)),
        }
    files = {
        name: sparse_weights(tmp_path / f"{name}.safetensors", model, torch.float32)
        for name, model in models.items()
    }
    control = files.pop("control")
    session = Session(ModelSource(SDXL, ModelFiles(files, vocabulary=tmp_path / "none")))
    layers = {640: 4 + 6, 1280: 20 + 10 + 30}
    of_unet = WeightsSize.of(session.models(), "unet").token_width
    assert of_unet == sum(2 * width * count for width, count in layers.items())
    added = {}
    for controls in ((), (control,)):
        short, long = (
            Workload.of(session.models(), SHAPE, chunks=chunks, controls=controls).need(Execution())
            for chunks in (1, 101)
        )
        added[len(controls)] = (long.main - short.main) / (2 * 7700 * 4)
    of_control = 2 * (4 * 640 + 30 * 1280)
    assert added[0] == pytest.approx(4 * (2048 + 1280) + of_unet)
    assert added[1] == pytest.approx(added[0] + of_control)
