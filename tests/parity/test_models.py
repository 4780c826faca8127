"""Text encoder, UNet and autoencoder beside transformers' and diffusers', on random weights.

The tests of sensitivity show that the comparison can fail: they change one setting or one weight
of the reference at a time and want the error to leave the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from support.compare import MODEL_TOLERANCE, normal, randomise, relative_error
from support.references import (
    load_text_encoder,
    reference_text_encoder,
    reference_unet,
    reference_vae,
    text_encoder_state,
)

SD1_CLIP = CLIPTextConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
)
SD2_CLIP = replace(SD1_CLIP, hidden_size=48, num_attention_heads=3, hidden_act="gelu")
TEXT_ENCODERS = {
    "sd1": SD1_CLIP,
    "sd2": SD2_CLIP,
    "one head": replace(SD1_CLIP, num_attention_heads=1, num_hidden_layers=1),
    "short": replace(SD1_CLIP, max_position_embeddings=16, vocab_size=60),
}

SD1_UNET = UNet2DConditionConfig(
    block_out_channels=(16, 32, 48, 48),
    attention_heads=(4, 4, 4, 4),
    cross_attention_dim=20,
    norm_num_groups=8,
)
SD2_UNET = replace(
    SD1_UNET, attention_heads=(1, 2, 3, 3), use_linear_projection=True, cross_attention_dim=24
)
UNETS = {
    "sd1": SD1_UNET,
    "sd2": SD2_UNET,
    "inpainting": replace(SD1_UNET, in_channels=9),
    "other outputs": replace(SD1_UNET, in_channels=3, out_channels=6),
    "one layer": replace(SD1_UNET, layers_per_block=1),
    "three layers": replace(SD2_UNET, layers_per_block=3),
    "two transformers": replace(SD2_UNET, transformer_layers_per_block=2),
    "three levels": UNet2DConditionConfig(
        block_out_channels=(24, 32, 64),
        cross_attention=(False, True, True),
        attention_heads=(2, 4, 8),
        layers_per_block=1,
        cross_attention_dim=16,
        norm_num_groups=8,
    ),
    "two levels": UNet2DConditionConfig(
        block_out_channels=(16, 32),
        cross_attention=(True, False),
        attention_heads=(1, 2),
        cross_attention_dim=16,
        norm_num_groups=4,
    ),
    # as Stable Diffusion XL, but for what it is told beside the time
    "other layers at each level": UNet2DConditionConfig(
        block_out_channels=(16, 32, 48),
        cross_attention=(False, True, True),
        attention_heads=(1, 2, 3),
        transformer_layers_per_block=(1, 2, 3),
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=8,
    ),
    # as SSD-1B
    "other layers at each block": UNet2DConditionConfig(
        block_out_channels=(16, 32, 48),
        cross_attention=(False, True, True),
        attention_heads=(1, 2, 3),
        transformer_layers_per_block=(1, (2, 1), (4, 3)),
        reverse_transformer_layers_per_block=((3, 2, 4), (2, 1, 1), 1),
        mid_block_type="UNetMidBlock2D",
        cross_attention_dim=16,
        use_linear_projection=True,
        norm_num_groups=8,
    ),
    # as BK-SDM small
    "no middle": replace(SD1_UNET, layers_per_block=1, mid_block_type=None),
    "other ResNets at each level": replace(SD2_UNET, layers_per_block=(2, 1, 3, 1)),
    # as SDXS
    "a level that attends to the prompt only": UNet2DConditionConfig(
        block_out_channels=(16, 32, 48),
        cross_attention=(True, True, True),
        attention_heads=(1, 2, 3),
        layers_per_block=1,
        only_cross_attention=(True, False, False),
        mid_block_type=None,
        cross_attention_dim=24,
        use_linear_projection=True,
        norm_num_groups=8,
    ),
    "one level": UNet2DConditionConfig(
        block_out_channels=(16,),
        cross_attention=(True,),
        attention_heads=(2,),
        cross_attention_dim=16,
        norm_num_groups=4,
    ),
}

SD_VAE = AutoencoderKLConfig(block_out_channels=(8, 16, 24, 24), norm_num_groups=4)
VAES = {
    "sd": SD_VAE,
    "one layer": replace(SD_VAE, layers_per_block=1),
    "three levels": replace(SD_VAE, block_out_channels=(8, 16, 24)),
    "two levels": replace(SD_VAE, block_out_channels=(8, 24), norm_num_groups=8),
    "one level": replace(SD_VAE, block_out_channels=(8,)),
    "other channels": replace(SD_VAE, in_channels=1, out_channels=2, latent_channels=3),
}


def text_encoder_pair(config: CLIPTextConfig) -> tuple[nn.Module, nn.Module]:
    ours = randomise(CLIPTextModel(config))
    theirs = reference_text_encoder(config)
    load_text_encoder(theirs, ours.state_dict())
    return ours, theirs


def unet_pair(config: UNet2DConditionConfig) -> tuple[nn.Module, nn.Module]:
    ours, theirs = randomise(UNet2DConditionModel(config)), reference_unet(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def vae_pair(config: AutoencoderKLConfig) -> tuple[nn.Module, nn.Module]:
    ours, theirs = randomise(AutoencoderKL(config)), reference_vae(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tokens(config: CLIPTextConfig, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab_size, (batch, length), generator=generator)


def moments(posterior: object) -> Tensor:
    """Mean and deviation of either library's posterior, in one tensor."""
    return torch.cat([posterior.mean, posterior.std], dim=1)


@pytest.mark.parametrize("name", TEXT_ENCODERS)
@torch.no_grad()
def test_text_encoder(name: str) -> None:
    config = TEXT_ENCODERS[name]
    ours, theirs = text_encoder_pair(config)
    for batch, length in [(1, config.max_position_embeddings), (3, 9), (1, 1)]:
        ids = tokens(config, batch, length)
        error = relative_error(ours(ids), theirs(ids).last_hidden_state)
        assert error <= MODEL_TOLERANCE


@torch.no_grad()
def test_text_encoder_of_a_padded_prompt() -> None:
    """The reference is given no mask, as Stable Diffusion gives none: padding is seen."""
    ours, theirs = text_encoder_pair(SD1_CLIP)
    ids = torch.full((2, 77), SD1_CLIP.vocab_size - 1)
    ids[:, :6] = tokens(SD1_CLIP, 2, 6)
    ids[1, 6:] = 0
    assert relative_error(ours(ids), theirs(ids).last_hidden_state) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_unet(name: str) -> None:
    config = UNETS[name]
    ours, theirs = unet_pair(config)
    sample = normal(2, config.in_channels, 16, 24, seed=1)
    context = normal(2, 7, config.cross_attention_dim, seed=2)
    for timestep in (torch.tensor(981), torch.tensor([3, 757])):
        error = relative_error(
            ours(sample, timestep, context), theirs(sample, timestep, context).sample
        )
        assert error <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["sd1", "sd2", "three levels", "two levels"])
@pytest.mark.parametrize("size", [(9, 13), (10, 7), (1, 5), (12, 20)])
@torch.no_grad()
def test_unet_of_sizes_that_do_not_halve(name: str, size: tuple[int, int]) -> None:
    config = UNETS[name]
    ours, theirs = unet_pair(config)
    sample = normal(1, config.in_channels, *size, seed=1)
    context = normal(1, 5, config.cross_attention_dim, seed=2)
    timestep = torch.tensor(500)
    error = relative_error(
        ours(sample, timestep, context), theirs(sample, timestep, context).sample
    )
    assert error <= MODEL_TOLERANCE


@torch.no_grad()
def test_unet_at_whole_and_fractional_timesteps() -> None:
    ours, theirs = unet_pair(SMALL_UNET)
    sample, context = normal(2, 4, 8, 8, seed=1), normal(2, 5, 20, seed=2)
    for timestep in (0, 1, 250, 958, 990, 999, 1000, 0.25, 37.5, 613.8132):
        for given in (torch.tensor(timestep), torch.tensor([timestep, timestep / 2])):
            expected = theirs(sample, given, context).sample
            assert relative_error(ours(sample, given, context), expected) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", VAES)
@torch.no_grad()
def test_autoencoder(name: str) -> None:
    config = VAES[name]
    ours, theirs = vae_pair(config)
    factor = config.downsample_factor
    image = normal(2, config.in_channels, 5 * factor, 3 * factor, seed=1)
    posterior, expected = ours.encode(image), theirs.encode(image).latent_dist
    assert relative_error(posterior.mean, expected.mean) <= MODEL_TOLERANCE
    assert relative_error(posterior.std, expected.std) <= MODEL_TOLERANCE
    noise = normal(*expected.mean.shape, seed=2)
    sampled = expected.mean + expected.std * noise
    assert relative_error(posterior.sample(noise), sampled) <= MODEL_TOLERANCE
    latents = normal(2, config.latent_channels, 5, 3, seed=3)
    assert relative_error(ours.decode(latents), theirs.decode(latents).sample) <= MODEL_TOLERANCE


@pytest.mark.parametrize("name", ["sd", "three levels"])
@pytest.mark.parametrize("size", [(33, 47), (57, 40), (31, 8), (16, 63)])
@torch.no_grad()
def test_encoder_of_odd_images(name: str, size: tuple[int, int]) -> None:
    ours, theirs = vae_pair(VAES[name])
    image = normal(1, 3, *size, seed=1)
    posterior, expected = ours.encode(image), theirs.encode(image).latent_dist
    assert relative_error(moments(posterior), moments(expected)) <= MODEL_TOLERANCE


@torch.no_grad()
def test_encoder_cuts_extreme_log_variances() -> None:
    ours, theirs = vae_pair(SD_VAE)
    for model in (ours, theirs):
        model.quant_conv.bias[4:] += torch.tensor([100.0, -100.0, 20.0, -30.0])
    image = normal(1, 3, 32, 32, seed=1)
    posterior, expected = ours.encode(image), theirs.encode(image).latent_dist
    for channel in range(4):
        error = relative_error(posterior.std[:, channel], expected.std[:, channel])
        assert error <= MODEL_TOLERANCE
    assert posterior.std[:, 0].max() == posterior.std[:, 0].min()  # the cut was reached


# What the comparison notices


Run = Callable[[nn.Module], Tensor]


def run_text_encoder(model: nn.Module) -> Tensor:
    result = model(tokens(SD1_CLIP, 2, 77))
    return result if isinstance(result, Tensor) else result.last_hidden_state


def run_unet(model: nn.Module) -> Tensor:
    sample, context = normal(2, 4, 8, 8, seed=1), normal(2, 5, 20, seed=2)
    result = model(sample, torch.tensor([3, 981]), context)
    return result if isinstance(result, Tensor) else result.sample


def run_vae(model: nn.Module) -> Tensor:
    encoded = model.encode(normal(1, 3, 16, 16, seed=1))
    decoded = model.decode(normal(1, 4, 2, 2, seed=2))
    if not isinstance(decoded, Tensor):
        encoded, decoded = encoded.latent_dist, decoded.sample
    return torch.cat([moments(encoded).flatten(), decoded.flatten()])


SMALL_UNET = replace(
    SD1_UNET,
    block_out_channels=(16, 32, 32),
    cross_attention=(True, True, False),
    attention_heads=(4, 4, 4),
    layers_per_block=1,
)
PAIRS: dict[str, tuple[Callable[..., tuple[nn.Module, nn.Module]], object, Run]] = {
    "text encoder": (text_encoder_pair, SD1_CLIP, run_text_encoder),
    "unet": (unet_pair, SMALL_UNET, run_unet),
    "vae": (vae_pair, replace(SD_VAE, layers_per_block=1), run_vae),
}


@pytest.mark.parametrize("kind", PAIRS)
@torch.no_grad()
def test_a_change_of_any_weight_is_noticed(kind: str) -> None:
    make_pair, config, run = PAIRS[kind]
    ours, theirs = make_pair(config)
    expected = run(ours)
    assert relative_error(run(theirs), expected) <= MODEL_TOLERANCE
    unnoticed = []
    for name, parameter in theirs.named_parameters():
        saved = parameter.clone()
        parameter.copy_(saved.flip(0) if saved.shape[0] > 1 else 2 * saved)
        if relative_error(run(theirs), expected) <= 10 * MODEL_TOLERANCE:
            unnoticed.append(name)
        parameter.copy_(saved)
    # A bias of the keys moves all scores of a query alike, which softmax cancels.
    assert [name for name in unnoticed if not name.endswith(("k_proj.bias", "to_k.bias"))] == []


def norms(model: nn.Module) -> dict[str, nn.GroupNorm | nn.LayerNorm]:
    kinds = (nn.GroupNorm, nn.LayerNorm)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("kind", PAIRS)
def test_every_norm_has_the_eps_and_groups_of_the_reference(kind: str) -> None:
    """Of one norm alone the next one hides much, so here they are compared by name."""

    def settings(model: nn.Module) -> dict[str, tuple[float, int]]:
        return {
            name.removeprefix("text_model."): (norm.eps, getattr(norm, "num_groups", 0))
            for name, norm in norms(model).items()
        }

    make_pair, config, _ = PAIRS[kind]
    ours, theirs = make_pair(config)
    assert settings(ours)
    assert settings(ours) == settings(theirs)


@pytest.mark.parametrize(
    ("kind", "weak", "norm", "right", "wrong"),
    [
        ("text encoder", "embedding", nn.LayerNorm, 1e-5, 1e-6),
        ("unet", "proj_in", nn.LayerNorm, 1e-5, 1e-6),
        ("unet", "conv", nn.GroupNorm, 1e-5, 1e-6),
        ("unet", "conv", nn.GroupNorm, 1e-6, 1e-5),
        ("vae", "conv", nn.GroupNorm, 1e-6, 1e-5),
    ],
)
@torch.no_grad()
def test_another_eps_is_noticed(
    kind: str, weak: str, norm: type, right: float, wrong: float
) -> None:
    make_pair, config, run = PAIRS[kind]
    ours, theirs = make_pair(config)
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            if weak in name and "norm" not in name:
                parameter.mul_(0.01)  # signals so weak that eps is not small beside them
    expected = run(theirs)
    assert relative_error(run(ours), expected) <= MODEL_TOLERANCE
    changed = [m for m in norms(ours).values() if isinstance(m, norm) and m.eps == right]
    assert changed
    for module in changed:
        module.eps = wrong
    assert relative_error(run(ours), expected) > 10 * MODEL_TOLERANCE


WRONG_REFERENCES = {
    "gelu for quick_gelu": lambda: (
        text_encoder_pair(SD1_CLIP)[0],
        reference_text_encoder(SD1_CLIP, hidden_act="gelu"),
        run_text_encoder,
    ),
    "other number of heads in the text encoder": lambda: (
        text_encoder_pair(SD1_CLIP)[0],
        reference_text_encoder(SD1_CLIP, num_attention_heads=2),
        run_text_encoder,
    ),
    "other number of heads": lambda: (
        unet_pair(SD1_UNET)[0],
        reference_unet(SD1_UNET, attention_head_dim=(4, 4, 4, 2)),
        run_unet,
    ),
    "sines before cosines": lambda: (
        unet_pair(SD1_UNET)[0],
        reference_unet(SD1_UNET, flip_sin_to_cos=False),
        run_unet,
    ),
    "frequency shift": lambda: (
        unet_pair(SD1_UNET)[0],
        reference_unet(SD1_UNET, freq_shift=1),
        run_unet,
    ),
    "another activation": lambda: (
        unet_pair(SD1_UNET)[0],
        reference_unet(SD1_UNET, act_fn="gelu"),
        run_unet,
    ),
}


@pytest.mark.parametrize("name", WRONG_REFERENCES)
@torch.no_grad()
def test_another_setting_is_noticed(name: str) -> None:
    ours, theirs, run = WRONG_REFERENCES[name]()
    if isinstance(ours, CLIPTextModel):
        load_text_encoder(theirs, ours.state_dict())
    else:
        theirs.load_state_dict(ours.state_dict())
    assert relative_error(run(ours), run(theirs)) > 10 * MODEL_TOLERANCE


# Names and shapes of the weights


SD21_UNET = UNet2DConditionConfig(
    attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
SD21_CLIP = CLIPTextConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
)
FULL_SIZE = {
    # tensors and numbers of the published files
    "sd15 text encoder": (CLIPTextModel, CLIPTextConfig(), 196, 123_060_480),
    "sd15 unet": (UNet2DConditionModel, UNet2DConditionConfig(), 686, 859_520_964),
    "sd15 unet, inpainting": (
        UNet2DConditionModel,
        UNet2DConditionConfig(in_channels=9),
        686,
        None,
    ),
    "sd15 vae": (AutoencoderKL, AutoencoderKLConfig(), 248, 83_653_863),
    "sd21 text encoder": (CLIPTextModel, SD21_CLIP, None, None),
    "sd21 unet": (UNet2DConditionModel, SD21_UNET, None, None),
}
TINY = {
    **{f"tiny text encoder, {n}": (CLIPTextModel, c, None, None) for n, c in TEXT_ENCODERS.items()},
    **{f"tiny unet, {n}": (UNet2DConditionModel, c, None, None) for n, c in UNETS.items()},
    **{f"tiny vae, {n}": (AutoencoderKL, c, None, None) for n, c in VAES.items()},
}


def shapes_of_reference(config: object) -> dict[str, torch.Size]:
    if isinstance(config, CLIPTextConfig):
        state = text_encoder_state(reference_text_encoder(config))
    elif isinstance(config, UNet2DConditionConfig):
        state = reference_unet(config).state_dict()
    else:
        state = reference_vae(config).state_dict()
    return {name: tensor.shape for name, tensor in state.items()}


@pytest.mark.parametrize("name", [*FULL_SIZE, *TINY])
def test_names_and_shapes_of_the_weights(name: str) -> None:
    model, config, tensors, numbers = {**FULL_SIZE, **TINY}[name]
    with torch.device("meta"):
        state = model(config).state_dict()
        expected = shapes_of_reference(config)
    assert {key: tensor.shape for key, tensor in state.items()} == expected
    if tensors is not None:
        assert len(state) == tensors
    if numbers is not None:
        assert sum(tensor.numel() for tensor in state.values()) == numbers


def test_the_text_encoder_has_the_names_of_the_published_files() -> None:
    """The reference's own have a prefix or not, according to its version."""
    with torch.device("meta"):
        names = list(CLIPTextModel(SD1_CLIP).state_dict())
    assert all(name.startswith("text_model.") for name in names)
    assert "text_model.embeddings.token_embedding.weight" in names
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names
