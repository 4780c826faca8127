"""Names that users of other programs type, and what they are called here.

The names are those of options, without dashes in front and with dashes inside: of A1111's web UI
and its API, of diffusers, of stable-diffusion.cpp, and of the scripts of CompVis.
"""

from __future__ import annotations

_FOREIGN: dict[str, tuple[str, ...]] = {
    "--guidance-scale": ("cfg-scale", "cfg", "scale", "guidance", "cfgscale"),
    "--num-samples": (
        *("n-iter", "n-samples", "batch-count", "num-images-per-prompt", "num-images"),
    ),
    "--scheduler": ("sampler", "sampler-name", "sampling-method", "method"),
    "--sigmas": ("schedule-type", "sigma-schedule", "schedule"),
    "--steps": ("num-inference-steps", "sampling-steps", "ddim-steps", "num-steps"),
    "--width": ("W",),
    "--height": ("H",),
    "--strength": ("denoising-strength", "denoise", "denoising"),
    "--negative-prompt": ("negative", "neg-prompt", "uc"),
    "--model": ("ckpt", "checkpoint", "sd-model-checkpoint", "diffusion-model"),
    "--vae-weights": ("vae", "vae-path", "sd-vae"),
    "--eta": ("ddim-eta",),
    "--output": ("outdir", "out", "outfile", "save-path"),
    "the command sdpy img2img": ("init-image", "init-img", "init"),
    "the command sdpy inpaint": ("mask-image",),
    "the command sdpy batch": ("from-file", "prompt-file", "prompts-file", "prompts-from-file"),
    "--only-masked": ("inpaint-full-res", "inpaint-only-masked"),
    "--mask-padding": ("inpaint-full-res-padding", "padding-mask-crop", "masked-padding"),
    "--invert-mask": ("inpainting-mask-invert", "mask-invert"),
    "--clip-skip": ("clip-stop-at-last-layers", "clip-skip-layers"),
    "--embedding": ("textual-inversion", "embeddings", "embd-dir", "embeddings-dir"),
    "--lora-dir": ("lora-model-dir", "lora-path"),
    "--controlnet": ("control-net", "controlnet-model", "t2i-adapter", "adapter"),
    "--control-scale": (
        *("control-net-strength", "control-strength"),
        *("controlnet-conditioning-scale", "adapter-conditioning-scale"),
    ),
    "--control-start": ("control-guidance-start",),
    "--control-end": ("control-guidance-end", "adapter-conditioning-factor"),
    "--control-type": ("control-mode", "union-control-type"),
    "--dtype": ("precision", "fp16", "half", "no-half", "torch-dtype", "type"),
    "--memory": ("lowvram", "medvram", "low-vram"),
    "--sliced-attention-size": ("enable-attention-slicing", "attention-slicing"),
    "--offload": ("enable-model-cpu-offload", "cpu-offload", "offload-to-cpu"),
    "--cpu": ("use-cpu",),
    "--guidance-rescale": ("cfg-rescale",),
}

HINTS = {name: ours for ours, names in _FOREIGN.items() for name in names}
"""Foreign name -> what to use here."""


def foreign_hint(name: str) -> str | None:
    """What to use in the place of an option of another program; None for a name not known."""
    return HINTS.get(name.lstrip("-").replace("_", "-"))
