"""A model on disk into another layout: which files, under which names, with what beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdpy.checkpoints import (
    DIFFUSERS,
    FORMATS,
    OLD_DIFFUSERS,
    ORIGINAL,
    Output,
    plan_output,
    write_output,
)
from sdpy.checkpoints.conversion import Advance
from sdpy.components import COMPONENTS, label_of
from sdpy.errors import OutputError, UsageError, WeightsError
from sdpy.files import atomic_write
from sdpy.text.tokenizer import CLIPTokenizer
from sdpy.text.vocabulary import read_vocabulary
from sdpy.zoo.classes import class_names, config_json
from sdpy.zoo.config_files import model_index_json, scheduler_json
from sdpy.zoo.configs import GUESSED
from sdpy.zoo.inspect import InspectedComponent, Inspection
from sdpy.zoo.variants import SD15, SD21, VARIANTS, ModelVariant

LAYOUTS = ("diffusers", "original", "ot")
"""A diffusers folder or component; the original programs' single file; .ot files in a folder."""


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    Attributes:
        outputs: weights files.
        texts: small files beside them.
        notices: what the user should know, a line each.
    """

    outputs: tuple[Output, ...]
    texts: dict[Path, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(output.size for output in self.outputs)

    def run(self) -> Iterator[Path]:
        """Write everything, each file atomically, and tell its path.

        Raises:
            WeightsError: the source cannot be read, or the format cannot hold it.
            OutputError: a file or folder could not be written.
        """
        for output in self.outputs:
            _make_folder(output.path.parent)
            write_output(output)
            yield output.path
        for path, text in self.texts.items():
            _make_folder(path.parent)
            with atomic_write(path) as file:
                file.write(text.encode())
            yield path


def plan_conversion(
    source: Inspection,
    target: Path,
    *,
    layout: str | None = None,
    part: str | None = None,
    dtype: torch.dtype | None = None,
    vocabulary: Path | None = None,
    prediction: str | None = None,
    advance: Advance = lambda size: None,
) -> Conversion:
    """Decide what to write. Reads no numbers and writes nothing.

    Args:
        source: what is converted.
        target: a file if it ends like one of the formats, otherwise a folder.
        layout: one of `LAYOUTS`; None for what suits source and target.
        part: the only component to convert; None for all.
        dtype: of the floating-point numbers; None for the source's.
        vocabulary: CLIP's merges, for a folder; None for none.
        prediction: what the UNet predicts, for a folder; None for what the source says.
        advance: told of every tensor's bytes.

    Raises:
        UsageError: the source does not go into such a target.
        WeightsError: the source is incomplete or holds what no table knows.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"unknown layout '{layout}': use one of {', '.join(LAYOUTS)}")
    components = _chosen(source, part)
    _check(components)
    single = any(target.suffix.lower() in form.suffixes for form in FORMATS.values())
    if single:
        return _into_file(source, components, target, layout, dtype, advance)
    if layout == ORIGINAL:
        raise UsageError(f"{target}: the original layout is one file; give a name in .safetensors")
    if os.path.exists(target) and not os.path.isdir(target):
        raise OutputError(f"{target} is a file; give the name of a folder")
    if layout == "ot":
        return _into_ot_folder(source, components, target, dtype, vocabulary, advance)
    return _into_diffusers(source, components, target, dtype, vocabulary, prediction, advance)


def _chosen(source: Inspection, part: str | None) -> list[InspectedComponent]:
    if part is None:
        return list(source.components)
    if part not in COMPONENTS:
        raise UsageError(f"unknown part '{part}': use one of {', '.join(COMPONENTS)}")
    chosen = source.component(part)
    if chosen is None:
        raise WeightsError(
            f"{source.path} holds no {label_of(part)}; `sdpy inspect` says what it is"
        )
    return [chosen]


def _check(components: list[InspectedComponent]) -> None:
    """Refuse what would be lost or wrong on the other side."""
    for one in components:
        for problem, cases in one.problems.items():
            where = one.weights.checkpoint.path
            raise WeightsError(
                f"{where} is not a whole {label_of(one.name)}: {len(cases)} {problem} "
                f"({cases[0]}{', ...' if len(cases) > 1 else ''}); `sdpy inspect` lists them"
            )


def _into_file(
    source: Inspection,
    components: list[InspectedComponent],
    target: Path,
    layout: str | None,
    dtype: torch.dtype | None,
    advance: Advance,
) -> Conversion:
    is_ot = target.suffix.lower() == ".ot"
    if len(components) > 1 and (is_ot or layout not in (None, ORIGINAL)):
        held = ", ".join(str(one.name) for one in components)
        raise UsageError(
            f"{target} can hold one component: choose with --part ({held}), or give a folder"
        )
    if layout == "ot" and not is_ot:
        raise UsageError(f"{target}: the ot layout is for .ot files and folders")
    if layout == ORIGINAL or len(components) > 1:
        dialect = ORIGINAL
    else:
        dialect = OLD_DIFFUSERS if is_ot and layout != DIFFUSERS else DIFFUSERS
    weights = [one.weights for one in components]
    output = plan_output(
        target,
        weights,
        dialect,
        dtype=dtype,
        family=_single_file_family(source),
        marks=_marks(source) if len(components) > 1 else (),
        advance=advance,
    )
    unknown = [one for one in components if one.name is None]
    notices = tuple(
        f"{one.weights.checkpoint.path} is of no known kind: copying it under the same names"
        for one in unknown
    )
    return Conversion((output,), notices=notices)


def _marks(source: Inspection) -> tuple[str, ...]:
    """Names of empty tensors that say in a single file what its UNet predicts, if not epsilon.

    None where that was assumed only.
    """
    if source.variant is None or source.assumptions:
        return ()
    noise = source.variant.noise
    if noise.prediction_type != "v_prediction":
        return ()
    return ("v_pred", "ztsnr") if noise.rescale_betas_zero_snr else ("v_pred",)


def _single_file_family(source: Inspection) -> str:
    """Whose single files have these components, a key of `SINGLE_FILES`."""
    held = {one.name for one in source.components}
    if "text_encoder_2" in held:
        return "sdxl" if "text_encoder" in held else "sdxl-refiner"
    return "sd2" if _is_open_clip(list(source.components)) else "sd1"


def _is_open_clip(components: list[InspectedComponent]) -> bool:
    """Stable Diffusion 2.x has OpenCLIP's text encoder, and linear projections in the UNet."""
    for one in components:
        if one.name == "unet" and one.config is not None:
            return bool(one.config.use_linear_projection)
    return any(
        _is_text_encoder(one) and one.config is not None and one.config.hidden_act == "gelu"
        for one in components
    )


def _is_text_encoder(component: InspectedComponent) -> bool:
    return component.name is not None and COMPONENTS[component.name].role == "text_encoder"


def _into_ot_folder(
    source: Inspection,
    components: list[InspectedComponent],
    target: Path,
    dtype: torch.dtype | None,
    vocabulary: Path | None,
    advance: Advance,
) -> Conversion:
    names = _variant(source, components).files
    outputs = []
    for one in components:
        if one.name is None or COMPONENTS[one.name].is_companion:
            raise UsageError(f"a folder of .ot files has no place for {one.summary}; use --part")
        path = target / names.of(one.name)[0]
        outputs.append(
            plan_output(path, [one.weights], OLD_DIFFUSERS, dtype=dtype, advance=advance)
        )
    vocabulary_files, notices = _vocabulary_files(components, vocabulary)
    texts = {}
    for files in list(vocabulary_files.values())[:1]:  # all have the same merges
        texts[target / names.vocabulary[0]] = files[_MERGES]
    return Conversion(tuple(outputs), texts, (*notices, *_unsaid_prediction(source, components)))


def _unsaid_prediction(source: Inspection, components: list[InspectedComponent]) -> tuple[str, ...]:
    """A notice where the UNet predicts something else than ``.ot`` files are taken to."""
    if source.variant is None or not any(one.name == "unet" for one in components):
        return ()
    predicted = source.variant.noise.prediction_type
    usual = VARIANTS.get(source.variant.name)
    if usual is None or usual.noise.prediction_type == predicted:
        return ()
    return (
        f"a folder of .ot files does not say what its UNet predicts: give --prediction-type "
        f"{predicted} wherever it is used",
    )


def _into_diffusers(
    source: Inspection,
    components: list[InspectedComponent],
    target: Path,
    dtype: torch.dtype | None,
    vocabulary: Path | None,
    prediction: str | None,
    advance: Advance,
) -> Conversion:
    held = {one.name: one for one in components}
    variant = _variant(source, components)
    missing = [label_of(name) for name in variant.configs if name not in held]
    if missing and len(components) > 1:
        raise WeightsError(f"{source.path} holds no {' and no '.join(missing)}; use --part")
    outputs: list[Output] = []
    texts: dict[Path, str] = {}
    guesses = tuple(
        f"{one.weights.checkpoint.path}: {GUESSED}" for one in components if one.guessed
    )
    for one in components:
        if one.name is None or one.config is None:
            raise WeightsError(
                f"{source.path}: a diffusers folder needs the sizes of what it holds, which "
                "cannot be told here; give the name of a file"
            )
        # One component alone is the folder itself.
        folder = target if len(components) == 1 else target / one.name
        path = folder / f"{COMPONENTS[one.name].folder_stems[0]}.safetensors"
        outputs.append(plan_output(path, [one.weights], DIFFUSERS, dtype=dtype, advance=advance))
        texts[folder / "config.json"] = _json(config_json(one.name, one.config, variant))
    if len(components) == 1:
        return Conversion(tuple(outputs), texts, guesses)

    vocabulary_files, notices = _vocabulary_files(components, vocabulary, variant.pad_ids)
    for tokenizer, files in vocabulary_files.items():
        texts |= {target / tokenizer / name: text for name, text in files.items()}
    noise = variant.noise
    if prediction is not None:
        rescale = noise.rescale_betas_zero_snr and prediction != "epsilon"
        noise = type(noise)(
            **{**vars(noise), "prediction_type": prediction, "rescale_betas_zero_snr": rescale}
        )
    else:
        notices = (*source.assumptions, *notices)
    scheduler = scheduler_json(noise, variant.timestep_spacing, variant.scheduler)
    texts[target / "scheduler" / "scheduler_config.json"] = _json(scheduler)
    # Last, so that a folder that was not finished is none.
    configs = {
        one.name: one.config
        for one in components
        if one.name is not None and not COMPONENTS[one.name].is_companion
    }
    index = model_index_json(variant, class_names(configs), has_tokenizer=bool(vocabulary_files))
    texts[target / "model_index.json"] = _json(index)
    return Conversion(tuple(outputs), texts, (*guesses, *notices))


def _variant(source: Inspection, components: list[InspectedComponent]) -> ModelVariant:
    """The source's, or where it has no UNet the one that its other parts are of."""
    if source.variant is not None:
        return source.variant
    return SD21 if _is_open_clip(components) else SD15


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


# ------------------------------------------------------------------------------- the vocabulary

_MERGES = "merges.txt"


def tokenizer_files(
    tokenizer: CLIPTokenizer,
    merges: Iterable[tuple[str, str]],
    *,
    length: int,
    pad_id: int | None = None,
) -> dict[str, str]:
    """The files of a diffusers folder's ``tokenizer``, by their names.

    Args:
        tokenizer: as it is to be written.
        merges: that it was made of.
        length: tokens that the text encoder reads, start and end included.
        pad_id: token that fills up a prompt; None for the end token.
    """
    start, end = tokenizer.tokens[tokenizer.start_id], tokenizer.tokens[tokenizer.end_id]
    pad = end if pad_id is None else tokenizer.tokens[pad_id]
    specials = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    ids = {token: i for i, token in enumerate(tokenizer.tokens)}
    options = {"do_lower_case": True, "model_max_length": length}
    added = {} if not tokenizer.added else {"added_tokens.json": _json(dict(tokenizer.added))}
    return {
        **added,
        _MERGES: "\n".join(lines) + "\n",
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "special_tokens_map.json": _json(specials),
        "tokenizer_config.json": _json({**specials, **options, "tokenizer_class": "CLIPTokenizer"}),
    }


def _vocabulary_files(
    components: list[InspectedComponent],
    vocabulary: Path | None,
    pad_ids: Mapping[str, int | None] | None = None,
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """The `tokenizer_files` of each text encoder's tokenizer, by their folders; what is to be said.

    ``pad_ids``: by text encoder, see `ModelVariant`.
    """
    texts = [one for one in components if _is_text_encoder(one) and one.config is not None]
    if not texts:
        return {}, ()
    if vocabulary is None:
        return {}, ("no vocabulary was found to go with it; name one with --vocab-file",)
    folders: dict[str, dict[str, str]] = {}
    for one in texts:
        size, length = one.config.vocab_size, one.config.max_position_embeddings
        tokenizer = CLIPTokenizer.from_file(vocabulary, vocab_size=size)
        merges = read_vocabulary(vocabulary, size).merges
        pad_id = None if pad_ids is None else pad_ids.get(str(one.name))
        folder = str(COMPONENTS[str(one.name)].tokenizer)
        folders[folder] = tokenizer_files(tokenizer, merges, length=length, pad_id=pad_id)
    return folders, ()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}") from error
