"""Good input for each target, from which fuzzing starts: small, and of every kind."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from sdpy.checkpoints import write_checkpoint
from sdpy.zoo.classes import config_json
from sdpy.zoo.config_files import scheduler_json
from sdpy.zoo.variants import DEMO

_NAMES = (
    ("conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
    ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
    ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "alpha"),
    ("emb_params",),
)


def seeds(target: str) -> Iterator[bytes]:
    """Good input for a target."""
    yield from {
        "weights": _weights,
        "configurations": _configurations,
        "vocabularies": _vocabularies,
        "images": _images,
        "jobs": _jobs,
        "hubs": _hubs,
        "prompts": _prompts,
    }[target]()


def _weights() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        for names in _NAMES:
            tensors = {name: torch.ones(2, 3) for name in names}
            for suffix in (".safetensors", ".ot", ".npz", ".pt", ".ckpt"):
                path = Path(folder) / f"x{suffix}"
                write_checkpoint(path, tensors)
                yield path.read_bytes()
            torch.save(tensors, path, _use_new_zipfile_serialization=False)
            yield path.read_bytes()
    yield json.dumps({"weight_map": {"a": "x-00001-of-00002.safetensors"}}).encode()


def _configurations() -> Iterator[bytes]:
    yield b"\0" + json.dumps(scheduler_json(DEMO.noise, "trailing")).encode()
    for index, name in enumerate(DEMO.configs, start=1):
        for kind in range(8):
            text = json.dumps(config_json(name, DEMO.configs[name], DEMO)).encode()
            yield bytes([index + 8 * kind]) + text


def _vocabularies() -> Iterator[bytes]:
    assert DEMO.bundled is not None
    text = (DEMO.bundled / "merges.txt").read_bytes()
    yield text
    yield gzip.compress(text)


def _images() -> Iterator[bytes]:
    for mode in ("RGB", "RGBA", "L", "P", "1", "I;16"):
        image = Image.new(mode, (5, 3))
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000"):
            file = io.BytesIO()
            try:
                image.save(file, kind)
            except (OSError, ValueError, KeyError):
                continue  # there is no such thing
            yield file.getvalue()


def _jobs() -> Iterator[bytes]:
    texts = (
        b'{"prompt": "a cat", "seed": 3, "steps": [10, 20]}\n"a dog"\n[1]\n',
        b'prompt,seed,steps\na cat,3,20\n"a, dog",,[1]\n',
        b'steps = 3\n[[jobs]]\nprompt = "a cat"\nseed = [1, 2]\n',
        b"- prompt: a cat\n  seed: 3\n- a dog\n",
        b"a cat --steps 20 --seed 3\na dog --n low quality --w 512 --d 7\n# note\n",
        b'--prompt "a cat" --negative_prompt "bad" --sampler_name "Euler a"\n',
    )
    for kind in range(5):
        for text in texts:
            yield bytes([kind]) + text


def _hubs() -> Iterator[bytes]:
    files = [
        "model_index.json",
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
        *("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/merges.txt"),
    ]
    lfs = {"sha256": "0" * 64, "size": 5}
    siblings = [{"rfilename": name, "size": 5, "blobId": "0" * 40, "lfs": lfs} for name in files]
    answer = {"sha": "0" * 40, "siblings": siblings, "_class_name": "StableDiffusionPipeline"}
    parts = {name: ["diffusers", "X"] for name in ("unet", "vae", "text_encoder", "tokenizer")}
    yield json.dumps({**answer, **parts}).encode()
    yield json.dumps({"sha": None, "siblings": [{"rfilename": "x.safetensors"}]}).encode()
    yield json.dumps({**answer, "siblings": siblings[1:]}).encode()


def _prompts() -> Iterator[bytes]:
    yield b"a (red:1.2) lighthouse, [at] ((dusk)) BREAK a castle \\(old\\)"
    yield "a cat ☃ 猫 é &amp; <|endoftext|>".encode()
    yield b"[a:b:0.5] [c|d] AND x :1.2"
