"""Train the demo model from nothing: data, autoencoder, text encoder and UNet.

    python -m scripts.demo.train runs/demo all

The stages follow one another. Each logs to ``RUN/log.txt``, keeps its state in ``RUN/<stage>.pt``
and resumes from there when it is started again:

    render        draws the training images (`scripts.demo.scenes`) into a memory map
    vocabulary    learns the byte-pair merges from captions, in CLIP's file format
    autoencoder   trains the autoencoder: image <-> latents
    latents       encodes all images and normalises the latents, channel by channel
    denoiser      trains UNet and text encoder together: v-prediction with zero terminal SNR
    decoder       polishes the decoder on the frozen latents
    export        writes the bundled ``.ot`` files
    sample        draws a sheet of samples with the current averages of the weights

On a GPU everything runs there in bf16. On a CPU that does other work too, one process per core
loses less time than one process with all threads; this shares each batch of the denoiser between
two processes:

    torchrun --nproc-per-node 2 -m scripts.demo.train runs/demo denoiser
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields

from scripts.demo.training import autoencoder, data, denoiser, models
from scripts.demo.training.options import TrainingOptions, join_workers, parse_arguments

STAGES: dict[str, Callable[[TrainingOptions], None]] = {
    "render": data.render,
    "vocabulary": data.vocabulary,
    "autoencoder": autoencoder.train_autoencoder,
    "latents": autoencoder.encode_images,
    "denoiser": denoiser.train_denoiser,
    "decoder": autoencoder.train_decoder,
    "export": models.export,
    "sample": denoiser.sample,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages named on the command line."""
    names = [field.name for field in fields(TrainingOptions) if field.name != "run"]
    description = (__doc__ or "").split("\n")[0]
    options, stages = parse_arguments(
        description, TrainingOptions, names, ["all", *STAGES], arguments
    )
    if "all" in stages:
        stages = [stage for stage in STAGES if stage != "sample"]
    join_workers(options)
    options.run.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(asdict(options), default=str, indent=1)
    (options.run / "options.json").write_text(settings + "\n", encoding="utf-8")
    for stage in stages:
        STAGES[stage](options)


if __name__ == "__main__":
    main()
