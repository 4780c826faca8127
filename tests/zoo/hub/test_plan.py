"""Which files of a repository are fetched, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdpy.errors import HubError, UsageError
from sdpy.zoo.hub.catalog import find_hub_model
from sdpy.zoo.hub.client import Hub
from sdpy.zoo.hub.plan import DownloadPlan, plan_download
from support.hub_contents import (
    INPAINTING,
    LIGHTNING,
    SD15,
    SD21,
    SDXL,
    SDXL_REFINER,
    pipeline,
    weights,
    xl_pipeline,
)
from support.loopback import LoopbackHub, checksum_of, commit_of

DATA = Path("data")


def plan(hub: LoopbackHub, name: str, **options: str) -> DownloadPlan:
    return plan_download(Hub(hub.address), find_hub_model(name), DATA, **options)


def targets(planned: DownloadPlan) -> dict[str, str]:
    """Names in the data folder to paths on the hub."""
    return {
        file.target.relative_to(DATA).as_posix(): f"{file.remote.repository}/{file.remote.path}"
        for file in planned.files
    }


def test_sd15_gets_the_names_that_generate_looks_for(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    assert targets(plan(hub, "sd15")) == {
        "bpe_simple_vocab_16e6.txt": f"{SD15}/tokenizer/merges.txt",
        "pytorch_model.safetensors": f"{SD15}/text_encoder/model.safetensors",
        "unet.safetensors": f"{SD15}/unet/diffusion_pytorch_model.safetensors",
        "vae.safetensors": f"{SD15}/vae/diffusion_pytorch_model.safetensors",
    }


def test_sd15_lands_where_its_variant_looks(hub: LoopbackHub) -> None:
    from sdpy.zoo.variants import VARIANTS

    hub.repositories[SD15] = pipeline("sd15")
    hub.repositories[INPAINTING] = pipeline("inpaint")

    for name in ("sd15", "sd15-inpaint"):
        found = set(targets(plan(hub, name)))
        files = VARIANTS[name].files
        for candidates in (*map(files.of, VARIANTS[name].configs), files.vocabulary):
            assert found & set(candidates), (name, candidates)


def test_weights_that_would_be_loaded_instead_is_said(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    (tmp_path / "unet.ot").touch()

    planned = plan_download(Hub(hub.address), find_hub_model("sd15"), tmp_path)

    (note,) = planned.notes
    assert note == f"{tmp_path}/unet.ot exists too, and sdpy loads it instead of unet.safetensors"


def test_inpainting_shares_all_but_the_unet(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")
    hub.repositories[INPAINTING] = pipeline("inpaint")

    sd15, inpaint = targets(plan(hub, "sd15")), targets(plan(hub, "sd15-inpaint"))

    assert dict(inpaint.items() - sd15.items()) == {
        "unet-inpaint.safetensors": f"{INPAINTING}/unet/diffusion_pytorch_model.safetensors"
    }
    assert dict(sd15.items() - inpaint.items()).keys() == {"unet.safetensors"}


def test_sizes_and_checksums_are_the_hubs(hub: LoopbackHub) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")

    for file in plan(hub, "sd15").files:
        content = files[file.remote.path]
        assert file.size == len(content)
        assert file.remote.checksum == checksum_of(file.remote.path, content)
        assert file.remote.commit == commit_of(files)


@pytest.mark.parametrize("redirected", [False, True])
def test_a_mirror_without_sizes_in_its_listing_is_asked_for_each(
    hub: LoopbackHub, redirected: bool
) -> None:
    files = hub.repositories[SD15] = pipeline("sd15")
    hub.bare = True
    hub.cdn = "http://cdn.invalid" if redirected else None

    for file in plan(hub, "sd15").files:
        content = files[file.remote.path]
        assert (file.size, file.remote.checksum) == (
            len(content),
            checksum_of(file.remote.path, content),
        )


def test_half_precision_gets_the_same_names(hub: LoopbackHub) -> None:
    hub.repositories[SD15] = pipeline("sd15")

    planned = plan(hub, "sd15", dtype="fp16")

    assert (
        targets(planned)["unet.safetensors"]
        == f"{SD15}/unet/diffusion_pytorch_model.fp16.safetensors"
    )
    assert planned.notes == ()


def test_a_folder_holds_what_is_needed_and_nothing_else(hub: LoopbackHub) -> None:
    hub.repositories[SD21] = pipeline("sd21")

    planned = plan(hub, "sd21")

    assert targets(planned) == {
        f"sd21/{path}": f"{SD21}/{path}"
        for path in (
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        )
    }
    assert planned.path == DATA / "sd21"


def test_any_repository_is_fetched_as_a_folder(hub: LoopbackHub) -> None:
    hub.repositories["owner/Some_Model-2"] = pipeline("other")

    planned = plan(hub, "owner/Some_Model-2", dtype="fp16")

    assert planned.path == DATA / "Some_Model-2"
    assert planned.usage.endswith("--model {path}")
    assert (
        targets(planned)["Some_Model-2/text_encoder/model.safetensors"]
        == "owner/Some_Model-2/text_encoder/model.fp16.safetensors"
    )


def test_where_one_dtype_is_missing_the_other_is_taken_and_said(hub: LoopbackHub) -> None:
    files = hub.repositories["owner/name"] = pipeline("other")
    del files["unet/diffusion_pytorch_model.safetensors"]
    del files["vae/diffusion_pytorch_model.fp16.safetensors"]

    single, half = plan(hub, "owner/name"), plan(hub, "owner/name", dtype="fp16")

    unet = "owner/name/unet/diffusion_pytorch_model.fp16.safetensors"
    assert targets(single)["name/unet/diffusion_pytorch_model.safetensors"] == unet
    assert single.notes == ("owner/name has no fp32 unet/diffusion_pytorch_model: taking fp16",)
    vae = "owner/name/vae/diffusion_pytorch_model.safetensors"
    assert targets(half)["name/vae/diffusion_pytorch_model.safetensors"] == vae
    assert half.notes == ("owner/name has no fp16 vae/diffusion_pytorch_model: taking fp32",)


def test_pickles_are_the_fallback_and_said(hub: LoopbackHub) -> None:
    files = hub.repositories["owner/name"] = pipeline("other")
    for path in [path for path in files if path.startswith("text_encoder/model")]:
        del files[path]

    planned = plan(hub, "owner/name")

    assert "name/text_encoder/pytorch_model.bin" in targets(planned)
    assert planned.notes == (
        "owner/name has no .safetensors here: taking text_encoder/pytorch_model.bin",
    )


def test_weights_in_several_files(hub: LoopbackHub) -> None:
    files = hub.repositories["owner/name"] = pipeline("other")
    stem = "unet/diffusion_pytorch_model"
    del files[f"{stem}.safetensors"]
    shards = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    weight_map = {"conv_in.weight": shards[0], "conv_in.bias": shards[0], "out": shards[1]}
    files[f"{stem}.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for shard in shards:
        files[f"unet/{shard}"] = weights(shard)

    unet = {name for name in targets(plan(hub, "owner/name")) if name.startswith("name/unet/")}

    assert unet == {
        "name/unet/config.json",
        f"name/{stem}.safetensors.index.json",
        *(f"name/unet/{shard}" for shard in shards),
    }


def test_an_index_cannot_name_files_outside_its_folder(hub: LoopbackHub) -> None:
    files = hub.repositories["owner/name"] = pipeline("other")
    stem = "unet/diffusion_pytorch_model"
    del files[f"{stem}.safetensors"]
    weight_map = {"conv_in.weight": "../../../outside.safetensors"}
    files[f"{stem}.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    # A listing may hold any name: the names that a file's index may give are checked all the same.
    files["unet/../../../outside.safetensors"] = b"evil"

    with pytest.raises(HubError, match="outside"):
        plan(hub, "owner/name")


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("ControlNetModel", "--controlnet {path}"),
        ("AutoencoderKL", "--vae-weights {path}"),
        ("UNet2DConditionModel", "--unet-weights {path}"),
        ("SomethingElse", "sdpy inspect {path}"),
    ],
)
def test_a_single_component(hub: LoopbackHub, kind: str, usage: str) -> None:
    hub.repositories["owner/name"] = {
        "config.json": json.dumps({"_class_name": kind}).encode(),
        "diffusion_pytorch_model.safetensors": weights(kind),
        "diffusion_pytorch_model.bin": weights(kind + "bin"),
        "control.pth": b"",
    }

    planned = plan(hub, "owner/name")

    names = ["name/config.json", "name/diffusion_pytorch_model.safetensors"]
    assert list(targets(planned)) == names
    assert usage in planned.usage
    assert planned.path == DATA / names[1]


def test_a_lora(hub: LoopbackHub) -> None:
    hub.repositories["owner/lora"] = {"pytorch_lora_weights.safetensors": weights("lora")}

    planned = plan(hub, "owner/lora")

    assert planned.path == DATA / "lora" / "pytorch_lora_weights.safetensors"
    assert [file.target for file in planned.files] == [planned.path]
    assert "--lora {path}" in planned.usage


def test_a_single_file_goes_into_the_data_folder(hub: LoopbackHub) -> None:
    hub.repositories["owner/name"] = {"sub/lora.safetensors": weights("lora")}

    planned = plan(hub, "owner/name/sub/lora.safetensors")

    assert targets(planned) == {"lora.safetensors": "owner/name/sub/lora.safetensors"}
    with pytest.raises(HubError, match=r"owner/name has no file sub/other.safetensors"):
        plan(hub, "owner/name/sub/other.safetensors")


def test_models_of_another_kind_are_refused(hub: LoopbackHub) -> None:
    files = hub.repositories["owner/sd3"] = pipeline("sd3", "StableDiffusion3Pipeline")
    index = json.loads(files["model_index.json"])
    index["text_encoder_3"] = ["transformers", "T5EncoderModel"]
    files["model_index.json"] = json.dumps(index).encode()

    with pytest.raises(UsageError, match=r"StableDiffusion3Pipeline.*has a text_encoder_3"):
        plan(hub, "owner/sd3")


def test_names_of_kinds_are_printable(hub: LoopbackHub) -> None:
    hub.repositories["owner/odd"] = pipeline("odd", "\x1b]0;Evil\x07")
    index = json.loads(hub.repositories["owner/odd"]["model_index.json"])
    del index["vae"]
    hub.repositories["owner/odd"]["model_index.json"] = json.dumps(index).encode()

    with pytest.raises(UsageError, match=r"holds a \?\]0;Evil\?, .*has no vae") as caught:
        plan(hub, "owner/odd")
    assert str(caught.value).isprintable()


def test_a_repository_of_single_files_says_how_to_name_one(hub: LoopbackHub) -> None:
    hub.repositories["owner/files"] = {"a.safetensors": b"a", "b.ckpt": b"b", "README.md": b""}
    hub.repositories["owner/text"] = {"README.md": b""}

    with pytest.raises(UsageError, match=r"name the file.*owner/files/a.safetensors.*b.ckpt"):
        plan(hub, "owner/files")
    with pytest.raises(UsageError, match="no weights"):
        plan(hub, "owner/text")


@pytest.mark.parametrize("lost", ["tokenizer/merges.txt", "vae"])
def test_what_is_missing_is_named(hub: LoopbackHub, lost: str) -> None:
    files = hub.repositories["owner/name"] = pipeline("other")
    for path in [path for path in files if path.startswith(lost)]:
        del files[path]

    with pytest.raises(HubError, match=f"owner/name has no .*{lost}"):
        plan(hub, "owner/name")


def test_a_broken_index_is_refused(hub: LoopbackHub) -> None:
    hub.repositories["owner/name"] = {**pipeline("other"), "model_index.json": b"<html>"}

    with pytest.raises(HubError, match=r"model_index.json of owner/name .*is not a JSON object"):
        plan(hub, "owner/name")


def test_an_older_revision(hub: LoopbackHub) -> None:
    files = hub.repositories[SD21] = pipeline("sd21")

    assert plan(hub, "sd21", revision=commit_of(files)).files
    with pytest.raises(HubError, match=rf"no revision 'v9' of {SD21}; .*--revision"):
        plan(hub, "sd21", revision="v9")


def test_dtypes_are_listed(hub: LoopbackHub) -> None:
    with pytest.raises(UsageError, match="unknown dtype 'fp8': use one of fp32, fp16"):
        plan(hub, "sd15", dtype="fp8")


def test_both_text_encoders_and_tokenizers_of_xl(hub: LoopbackHub) -> None:
    hub.repositories[SDXL] = xl_pipeline("sd_xl_base")
    found = targets(plan(hub, "sdxl", dtype="fp16"))
    assert found["sdxl/text_encoder_2/model.safetensors"] == (
        f"{SDXL}/text_encoder_2/model.fp16.safetensors"
    )
    for name in (
        *("model_index.json", "scheduler/scheduler_config.json"),
        *("tokenizer/merges.txt", "tokenizer_2/merges.txt", "tokenizer_2/vocab.json"),
        *("text_encoder/model.safetensors", "text_encoder_2/config.json"),
        *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    ):
        assert f"sdxl/{name}" in found
    assert not any("0.9vae" in path or "safety" in path for path in found)


def test_the_refiner_has_the_second_text_encoder_only(hub: LoopbackHub) -> None:
    hub.repositories[SDXL_REFINER] = xl_pipeline("sd_xl_refiner", refiner=True)
    planned = plan(hub, "sdxl-refiner")
    found = targets(planned)
    assert "sdxl-refiner/tokenizer_2/merges.txt" in found
    assert "sdxl-refiner/text_encoder_2/model.safetensors" in found
    assert not any("/text_encoder/" in path or "/tokenizer/" in path for path in found)
    assert "--refiner {path}" in planned.usage


def lightning() -> dict[str, bytes]:
    name = "sdxl_lightning_4step_unet.safetensors"
    return {
        name: weights("unet"),
        name.replace("4", "8"): weights("8"),
        name.replace("unet", "lora"): weights("lora"),
    }


LIGHTNING_UNET = "sdxl_lightning_4step_unet.safetensors"


def test_a_unet_for_xl_comes_with_the_rest_of_its_base(hub: LoopbackHub) -> None:
    hub.repositories[LIGHTNING] = lightning()
    hub.repositories[SDXL] = xl_pipeline("sd_xl_base")
    planned = plan(hub, "sdxl-lightning")
    found, base = targets(planned), targets(plan(hub, "sdxl"))
    assert found.pop(LIGHTNING_UNET) == f"{LIGHTNING}/{LIGHTNING_UNET}"
    assert found == {name: path for name, path in base.items() if "/unet/" not in name}
    assert planned.notes == ("its other components are those of sdxl: fetching them, too",)
    assert planned.usage.endswith("--model sdxl-lightning{data}")


def test_what_is_there_of_the_base_is_not_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    """Whatever its precision; also where the whole base is in one file."""
    hub.repositories[LIGHTNING] = lightning()
    hub.repositories[SDXL] = xl_pipeline("sd_xl_base")
    model = find_hub_model("sdxl-lightning")
    for file in plan_download(Hub(hub.address), model, tmp_path).files:
        file.target.parent.mkdir(parents=True, exist_ok=True)
        file.target.write_bytes(b"mine")
    (tmp_path / "sdxl/vae/config.json").unlink()
    planned = plan_download(Hub(hub.address), model, tmp_path)
    names = [file.target.relative_to(tmp_path).as_posix() for file in planned.files]
    assert names == [LIGHTNING_UNET, "sdxl/vae/config.json"]
    (tmp_path / "sdxl.safetensors").write_bytes(b"mine")
    planned = plan_download(Hub(hub.address), model, tmp_path)
    assert [file.target.name for file in planned.files] == [LIGHTNING_UNET]
    assert planned.notes == ()


@pytest.mark.parametrize("name", ["sdxl-lightning", "sdxl-lcm"])
def test_a_unet_for_xl_lands_where_its_variant_looks(hub: LoopbackHub, name: str) -> None:
    from sdpy.zoo.variants import VARIANTS

    hub.repositories[LIGHTNING] = lightning()
    hub.repositories[SDXL] = xl_pipeline("sd_xl_base")
    hub.repositories["latent-consistency/lcm-sdxl"] = {
        "config.json": b'{"_class_name": "UNet2DConditionModel"}',
        "diffusion_pytorch_model.safetensors": weights("lcm"),
    }
    assert set(targets(plan(hub, name))) & set(VARIANTS[name].files.of("unet"))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("UNet2DConditionModel", {"cross_attention_dim": 2048}),
        ("ControlNetModel", {"cross_attention_dim": 2048}),
        ("AutoencoderKL", {"scaling_factor": 0.13025}),
    ],
)
def test_a_single_component_of_xl_is_used_with_xl(
    hub: LoopbackHub, kind: str, told: dict[str, object]
) -> None:
    hub.repositories["owner/name"] = {
        "config.json": json.dumps({"_class_name": kind, **told}).encode(),
        "diffusion_pytorch_model.safetensors": weights(kind),
    }
    usage = plan(hub, "owner/name").usage
    assert usage.startswith('sdpy generate "lighthouse at dark" --model sdxl --')
    assert "{path}" in usage and usage.endswith("{data}")


def test_an_adapter_whose_repository_has_a_pickle(hub: LoopbackHub) -> None:
    hub.repositories["TencentARC/t2iadapter_canny_sd15v2"] = {
        "README.md": b"# An adapter\n",
        "config.json": b'{"_class_name": "T2IAdapter", "adapter_type": "full_adapter"}',
        "diffusion_pytorch_model.bin": weights("canny"),
    }
    planned = plan(hub, "t2i-adapter-canny")
    name = "t2i-adapter-canny/diffusion_pytorch_model.bin"
    assert set(targets(planned)) == {"t2i-adapter-canny/config.json", name}
    assert planned.path == DATA / name
    assert "--controlnet {path}" in planned.usage
    assert "has no .safetensors here" in planned.notes[0]


def test_sdxs_is_fetched_with_its_tiny_autoencoder(hub: LoopbackHub) -> None:
    files = pipeline("sdxs")
    files["vae/config.json"] = b'{"_class_name": "AutoencoderTiny"}'
    files["vae_large/config.json"] = b'{"_class_name": "AutoencoderKL"}'
    files["vae_large/diffusion_pytorch_model.safetensors"] = weights("large")
    index = json.loads(files["model_index.json"])
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    files["model_index.json"] = json.dumps(index).encode()
    hub.repositories["IDKiro/sdxs-512-0.9"] = files
    planned = plan(hub, "sdxs-512-0.9")
    found = set(targets(planned))
    assert "sdxs-512-0.9/vae/diffusion_pytorch_model.safetensors" in found
    assert not any("vae_large" in name for name in found)
    assert planned.usage.endswith("--steps 1 --guidance-scale 1")
