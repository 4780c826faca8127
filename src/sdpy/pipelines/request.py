"""A request: which images to generate, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdpy.errors import UsageError
from sdpy.options import number_text, option
from sdpy.pipelines.values import (
    AUTO,
    LARGEST_SEED,
    read_batch_size,
    read_crop,
    read_embeddings,
    read_interval,
    read_loras,
    read_seed,
    read_sigmas,
    read_size,
    sampler_label,
    show_embeddings,
    show_image_size,
    show_loras,
    show_sigmas,
    shown_path,
)

if TYPE_CHECKING:  # at run time these would import torch before the command line needs it
    from torch import Tensor

    from sdpy.checkpoints import Lora, TextualInversion
    from sdpy.optimizations.approximate import Approximation
    from sdpy.pipelines.controlnet import Control

_GENERATION = "Generation"
_PROMPT = "Prompts"
_SIZES = "Sizes that Stable Diffusion XL is told"
_FASTER = "Faster, approximately"
_ADDED = "LoRA and textual inversion"
_MASK = "Mask"


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of a request that every task has.

    An image is exact unless one of the panel "Faster, approximately" is used.
    """

    negative_prompt: str | None = option(
        None,
        "--negative-prompt",
        "-n",
        help="What to avoid.",
        panel=_GENERATION,
        shown_default="none",
    )
    steps: int | None = option(
        None,
        "--steps",
        "--n-steps",
        help="Denoising steps.",
        panel=_GENERATION,
        shown_default="30; 4 for models of few steps",
        minimum=1,
        label="Steps",
        always=True,
    )
    scheduler: str | None = option(
        None,
        "--scheduler",
        help="Sampler; 'sdpy schedulers' lists them.",
        panel=_GENERATION,
        shown_default="the model's own: ddim; euler for Stable Diffusion XL",
        label="Sampler",
        show=sampler_label,
        always=True,
    )
    refiner_start: float | None = option(
        None,
        "--refiner-start",
        help="Share of the noise schedule after which --refiner takes over.",
        panel=_GENERATION,
        shown_default="0.8",
        minimum=0.0,
        maximum=1.0,
        label="Refiner switch at",
        show=number_text,
    )
    sigmas: str | tuple[float, ...] | None = option(
        None,
        "--sigmas",
        help="Noise schedule: karras, exponential, beta, sgm-uniform, simple or ays; or the "
        "sigmas of the steps themselves, such as 14.6,6.5,2.7,1,0.3.",
        panel=_GENERATION,
        metavar="NAME|NUMBERS",
        shown_default="that of the timesteps",
        cli_type=str,
        parse=read_sigmas,
        unparse=lambda sigmas: sigmas if isinstance(sigmas, str) else show_sigmas(sigmas),
        label="Schedule type",
        show=show_sigmas,
    )
    timestep_spacing: str | None = option(
        None,
        "--timestep-spacing",
        help="Timesteps to visit: leading, linspace or trailing; original for ddim.",
        panel=_GENERATION,
        shown_default="the model's own",
        label="Timestep spacing",
    )
    eta: float | None = option(
        None,
        "--eta",
        help="Noise that ddim and tcd add at each step: 0 for none; with 1, ddim adds as much as "
        "ddpm.",
        panel=_GENERATION,
        shown_default="ddim 0, tcd 0.3",
        minimum=0.0,
        maximum=1.0,
        label="Eta",
        show=number_text,
    )
    guidance_rescale: float = option(
        0.0,
        "--guidance-rescale",
        help="How much of the contrast that guidance adds is taken back.",
        panel=_GENERATION,
        minimum=0.0,
        maximum=1.0,
        label="CFG Rescale",
        show=number_text,
    )
    guidance_scale: float | None = option(
        None,
        "--guidance-scale",
        help="How strongly to follow the prompt; 1 is without guidance and twice as fast.",
        panel=_GENERATION,
        shown_default="the model's own: 7.5; 5 for Stable Diffusion XL, 1 for Turbo and Lightning",
        minimum=-10_000.0,
        maximum=10_000.0,
        label="CFG scale",
        show=number_text,
        always=True,
    )
    seed: int = option(
        32,
        "--seed",
        help="Seed of the noise. Image k, counted from 0, uses SEED + k. random, or -1: one is "
        "drawn and told.",
        panel=_GENERATION,
        metavar="INTEGER|random",
        minimum=0,
        maximum=LARGEST_SEED,
        cli_type=str,
        parse=read_seed,
        label="Seed",
        always=True,
    )
    num_samples: int = option(
        1,
        "--num-samples",
        help="Images to generate.",
        panel=_GENERATION,
        minimum=1,
        maximum=100_000,
    )
    batch_size: int | str = option(
        AUTO,
        "--batch-size",
        help="Images to compute together. auto: as many as is fastest and as memory allows.",
        panel=_GENERATION,
        metavar="N|auto",
        cli_type=str,
        parse=read_batch_size,
    )
    width: int | None = option(
        None,
        "--width",
        help="Width in pixels.",
        panel=_GENERATION,
        shown_default="the model's, or the image's",
        minimum=1,
        maximum=8192,
    )
    height: int | None = option(
        None,
        "--height",
        help="Height in pixels.",
        panel=_GENERATION,
        shown_default="the model's, or the image's",
        minimum=1,
        maximum=8192,
    )
    clip_skip: int = option(
        1,
        "--clip-skip",
        help="Layer of the text encoder to use: 1 is the last, 2 the last but one (as in "
        "A1111's web UI; diffusers calls these 0 and 1).",
        panel=_PROMPT,
        minimum=1,
        label="Clip skip",
    )
    prompt_2: str | None = option(
        None,
        "--prompt-2",
        help="Prompt for the second text encoder, of Stable Diffusion XL.",
        panel=_PROMPT,
        shown_default="the prompt",
        label="Prompt 2",
    )
    negative_prompt_2: str | None = option(
        None,
        "--negative-prompt-2",
        help="What to avoid, for the second text encoder.",
        panel=_PROMPT,
        shown_default="the negative prompt",
        label="Negative prompt 2",
    )
    original_size: tuple[int, int] | None = option(
        None,
        "--original-size",
        help="Size that the model is told the image had before it was resized; small sizes give "
        "blurred images.",
        panel=_SIZES,
        metavar="WIDTHxHEIGHT",
        shown_default="the image's",
        cli_type=str,
        parse=read_size,
        unparse=show_image_size,
        label="Original size",
        show=show_image_size,
    )
    crop: tuple[int, int] | None = option(
        None,
        "--crop",
        help="Pixels that the model is told were cut off; other than 0,0 moves the subject out of "
        "the middle.",
        panel=_SIZES,
        metavar="LEFT,TOP",
        shown_default="0,0",
        cli_type=str,
        parse=read_crop,
        unparse=lambda crop: "{},{}".format(*crop),
        label="Crop",
        show=lambda crop: "{},{}".format(*crop),
    )
    target_size: tuple[int, int] | None = option(
        None,
        "--target-size",
        help="Size that the model is told the image has.",
        panel=_SIZES,
        metavar="WIDTHxHEIGHT",
        shown_default="the image's",
        cli_type=str,
        parse=read_size,
        unparse=show_image_size,
        label="Target size",
        show=show_image_size,
    )
    aesthetic_score: float | None = option(
        None,
        "--aesthetic-score",
        help="How pleasing SDXL's refiner is told the image is.",
        panel=_SIZES,
        shown_default="6",
        minimum=0.0,
        maximum=10.0,
        label="Aesthetic score",
        show=number_text,
    )
    negative_aesthetic_score: float | None = option(
        None,
        "--negative-aesthetic-score",
        help="The same of what is to be avoided.",
        panel=_SIZES,
        shown_default="2.5",
        minimum=0.0,
        maximum=10.0,
        label="Negative aesthetic score",
        show=number_text,
    )
    prompt_syntax: str = option(
        "weighted",
        "--prompt-syntax",
        help="weighted: as in A1111's web UI, (word), (word:1.3) and \\[word] weigh a word by "
        "1.1, 1.3 and 1/1.1, \\( is a bracket, BREAK starts a new chunk, \\[from:to:when] and "
        "\\[a|b] change from step to step, AND joins prompts. plain: all is text.",
        panel=_PROMPT,
        label="Emphasis",
        show=lambda syntax: "None" if syntax == "plain" else syntax,  # as A1111's web UI has it
    )
    long_prompt: str = option(
        "chunk",
        "--long-prompt",
        help="What to do with more than 75 tokens: chunk reads 75 at a time, truncate leaves "
        "out the rest and says what that is, error refuses.",
        panel=_PROMPT,
        label="Long prompt",
    )
    embedding: tuple[TextualInversion, ...] = option(
        (),
        "--embedding",
        help="Textual inversion, for use in prompts by its file's name or by NAME. Repeat for "
        "more.",
        panel=_ADDED,
        metavar="[NAME=]PATH",
        shown_default="none",
        cli_type=list[str],
        parse=read_embeddings,
        unparse=show_embeddings,
    )
    lora_dir: Path | None = option(
        None,
        "--lora-dir",
        help="Folder of the LoRAs that prompts name, as in <lora:name:0.8>.",
        panel=_ADDED,
        shown_default="none",
        unparse=shown_path,
    )
    lora: tuple[Lora, ...] = option(
        (),
        "--lora",
        help="LoRA to merge, and its weight, 1 unless given. Repeat for several.",
        panel=_ADDED,
        metavar="PATH[:WEIGHT]",
        shown_default="none",
        cli_type=list[str],
        parse=read_loras,
        unparse=show_loras,
    )
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "--guidance-interval",
        help="Shares of the steps between which there is guidance; the other steps take half "
        "the work. 0.2,0.8 leaves out the first and the last fifth.",
        panel=_FASTER,
        metavar="LO,HI",
        shown_default="0,1",
        cli_type=str,
        parse=read_interval,
        unparse=lambda interval: ",".join(map(number_text, interval)),
        label="Guidance interval",
        show=lambda interval: "-".join(map(number_text, interval)),
    )
    deepcache: int | None = option(
        None,
        "--deepcache",
        help="DeepCache: evaluate the whole UNet every N-th time, and only its outermost "
        "layers in between; 2 to 5.",
        panel=_FASTER,
        metavar="N",
        shown_default="off",
        minimum=1,
    )
    deepcache_branch: int | None = option(
        None,
        "--deepcache-branch",
        help="How many layers of the way down count as outermost; more are slower and nearer "
        "to exact.",
        panel=_FASTER,
        shown_default="0",
        minimum=0,
    )
    token_merging: float | None = option(
        None,
        "--token-merging",
        help="Share of the tokens that self-attention merges, at the highest resolution.",
        panel=_FASTER,
        metavar="RATIO",
        shown_default="off",
        minimum=0.0,
        maximum=0.75,
    )

    @property
    def approximations(self) -> tuple[Approximation, ...]:
        """What the options of the panel "Faster, approximately" ask of the UNet.

        Raises:
            UsageError: an option that says nothing without another.
        """
        from sdpy.optimizations.approximate import DeepCache, TokenMerging

        chosen: list[Approximation] = []
        if self.deepcache is not None:
            branch = 0 if self.deepcache_branch is None else self.deepcache_branch
            chosen.append(DeepCache(self.deepcache, branch))
        elif self.deepcache_branch is not None:
            raise UsageError("--deepcache-branch says nothing without --deepcache")
        if self.token_merging is not None:
            chosen.append(TokenMerging(self.token_merging))
        return tuple(chosen)


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How a mask is read, and what is painted of an image that has one."""

    invert_mask: bool = option(
        False,
        "--invert-mask",
        help="Repaint what is black in the mask, and keep what is white.",
        panel=_MASK,
        label="Mask mode",
        show=lambda invert: "Inpaint not masked" if invert else "Inpaint masked",
    )
    mask_blur: float = option(
        0.0,
        "--mask-blur",
        help="Soften the mask by a Gaussian blur with so many pixels of standard deviation.",
        panel=_MASK,
        metavar="PIXELS",
        minimum=0.0,
        maximum=1024.0,
        label="Mask blur",
        show=number_text,
    )
    only_masked: bool = option(
        False,
        "--only-masked",
        help="Paint the masked part by itself, at the size that the model works with (or --width "
        "and --height), and put it back. The image keeps its size.",
        panel=_MASK,
        label="Inpaint area",
        show=lambda only: "Only masked" if only else "Whole picture",
    )
    mask_padding: int = option(
        32,
        "--mask-padding",
        "--only-masked-padding",
        help="Pixels of the image around the masked part that --only-masked lets the model see.",
        panel=_MASK,
        metavar="PIXELS",
        minimum=0,
        maximum=8192,
        label="Masked area padding",
    )


STRENGTH = option(
    None,
    "--strength",
    help="How much to change the image: the share of the steps that is done.",
    panel=_GENERATION,
    minimum=0.0,
    maximum=1.0,
    label="Denoising strength",
    show=number_text,
)


@dataclass(frozen=True)
class Request(GenerationOptions):
    """One or more images of one prompt.

    What the request gives decides its task: a mask is inpainting, an image alone image-to-image,
    neither text-to-image.

    Attributes:
        prompt: what to generate.
        image: (1, 3, H, W) in [-1, 1], H and W multiples of what one latent covers; None for none.
        mask: (1, 1, H, W) in [0, 1], 1 where the image is repainted and 0 where it is kept; in
            between, a share of either is for whoever puts the result together. None for none.
        strength: share of the steps that is done, in [0, 1]; None for the task's own, 0.8 for
            image-to-image and 1 for inpainting.
        controls: ControlNets and T2I-Adapters, and what they are shown.
    """

    prompt: str
    image: Tensor | None = None
    mask: Tensor | None = None
    strength: float | None = STRENGTH
    controls: tuple[Control, ...] = ()
