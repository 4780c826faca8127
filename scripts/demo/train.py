"""Train the demo model from nothing: data, autoencoder, text encoder and UNet.

    python -m scripts.demo.train runs/demo all
    python -m scripts.demo.train runs/demo all --recipe demo-256 --device cuda --minutes 9 \\
        --batch 512 --autoencoder-batch 32 --bundle runs/demo/files --pieces runs/demo/pieces

The stages follow one another. Each logs to ``RUN/log.txt``, keeps its state in ``RUN/<stage>.pt``
and goes on from there when it is started again:

    vocabulary    learns the byte-pair merges from captions, in CLIP's file format
    render        draws the training images, and tokenises many captions of each
    autoencoder   trains the autoencoder: image <-> latents
    latents       encodes all images and normalises the latents, channel by channel
    denoiser      trains UNet and text encoder together: v-prediction with zero terminal SNR
    decoder       polishes the decoder on the frozen latents
    consistency   distils the UNet into one for few steps, ``RUN/unet_lcm.safetensors``
    export        writes the bundled files: those of all stages so far
    tiny-vae      distils a tiny autoencoder, ``RUN/tiny_vae.safetensors``; not part of ``all``
    sample        draws a sheet of samples with the averaged weights so far; not part of ``all``

``all`` exports after each of the last three, so that whatever ends it leaves something to ship.

``--minutes`` is the time of all stages together: each gets the share of it that the recipe says
(`scripts.demo.recipes`), and plans its learning rate to end in time, at the speed that it measures.
On a GPU, images are then drawn until the autoencoder is trained. ``--dry-run`` only says what each
stage would compute, and how long it would take.

A loss or gradient that is not finite ends a stage with the name of the module that it came from.

On a CPU that does other work too, one process per core loses less time than one process with all
threads; this shares each batch of the denoiser between two processes:

    torchrun --nproc-per-node 2 -m scripts.demo.train runs/demo denoiser
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.demo.training import (
    autoencoder,
    consistency,
    data,
    denoiser,
    models,
    pieces,
    tiny_autoencoder,
)
from scripts.demo.training.clock import Clock
from scripts.demo.training.finite import NotFiniteError
from scripts.demo.training.flops import describe_run
from scripts.demo.training.options import (
    TrainingOptions,
    add_flags,
    join_workers,
    options_of,
)
from scripts.demo.training.renderer import RenderError
from scripts.demo.training.trainer import DeviceError, free_memory, prepare_device

STAGES: dict[str, Callable[[TrainingOptions], None]] = {
    "vocabulary": data.vocabulary,
    "render": data.render,
    "autoencoder": autoencoder.train_autoencoder,
    "latents": autoencoder.encode_images,
    "denoiser": denoiser.train_denoiser,
    "decoder": autoencoder.train_decoder,
    "consistency": consistency.distil_consistency,
    "export": models.export,
    "tiny-vae": tiny_autoencoder.distil_autoencoder,
    "sample": denoiser.sample,
}

ALL = (
    *("vocabulary", "render", "autoencoder", "latents", "denoiser", "export"),
    *("decoder", "export", "consistency", "export"),
)
"""The stages that ``all`` stands for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of states and logs")
    parser.add_argument("stage", choices=["all", *STAGES], nargs="+")
    add_flags(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed")
    parser.add_argument(
        "--teraflops", type=float, default=100.0, help="speed that --dry-run reckons with"
    )
    parser.add_argument("--cores", type=int, help="cores that --dry-run reckons with")
    parser.add_argument("--pieces", type=Path, help="folder for the results, in small pieces")
    values = vars(parser.parse_args(arguments))
    options = options_of(values)
    if values["dry_run"]:
        print(describe_run(options, values["teraflops"], values["cores"]))
        return
    try:
        prepare_device(options)
        join_workers(options)
        options.run.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(
            {**vars(options), "recipe": options.recipe.name}, default=str, indent=1
        )
        (options.run / "options.json").write_text(settings + "\n", encoding="utf-8")
        for stage in ALL if "all" in values["stage"] else values["stage"]:
            run_stage(options, stage, values["pieces"])
    except (NotFiniteError, RenderError, DeviceError) as error:
        raise SystemExit(f"error: {error}") from None


def run_stage(options: TrainingOptions, stage: str, folder: Path | None = None) -> None:
    """Run a stage, and note the time of all of it; export also packs pieces into a folder."""
    clock = Clock(options, stage)
    STAGES[stage](options)
    if stage == "export" and folder is not None:
        pieces.split(models.results(options), folder)
    clock.save()
    free_memory(options)


if __name__ == "__main__":
    main()
