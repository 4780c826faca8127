"""What the three networks promise by themselves: shapes, dtypes, refusals, untouched arguments."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from sdpy.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    AutoencoderTiny,
    AutoencoderTinyConfig,
    CLIPTextConfig,
    CLIPTextModel,
    ControlNetConfig,
    ControlNetModel,
    DiagonalGaussian,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)

CLIP = CLIPTextConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
)
UNET = UNet2DConditionConfig(
    block_out_channels=(8, 16),
    cross_attention=(True, False),
    attention_heads=(2, 2),
    layers_per_block=1,
    cross_attention_dim=12,
    norm_num_groups=4,
)
VAE = AutoencoderKLConfig(block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: type[nn.Module], config: object) -> nn.Module:
    torch.manual_seed(0)
    return make(config).eval().requires_grad_(False)


def test_a_token_sees_only_itself_and_those_before_it() -> None:
    model = seeded(CLIPTextModel, CLIP)
    ids = torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 6:] = 40
    before, after = model(ids), model(changed)
    assert torch.allclose(before[:, :6], after[:, :6], atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:], atol=1e-2)


def test_the_prompt_the_time_and_the_latents_each_change_the_prediction() -> None:
    model = seeded(UNet2DConditionModel, UNET)
    sample, context, timestep = normal(1, 4, 8, 8), normal(1, 5, 12, seed=1), torch.tensor(500)
    prediction = model(sample, timestep, context)
    for other in (
        model(sample + 0.1, timestep, context),
        model(sample, timestep + 100, context),
        model(sample, timestep, context + 0.5),
    ):
        assert not torch.allclose(other, prediction, atol=1e-4)


def test_members_of_a_batch_do_not_see_each_other() -> None:
    model = seeded(UNet2DConditionModel, UNET)
    sample, context = normal(3, 4, 8, 8), normal(3, 5, 12, seed=1)
    timesteps = torch.tensor([10, 500, 999])
    together = model(sample, timesteps, context)
    for i in range(3):
        alone = model(sample[i : i + 1], timesteps[i], context[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 9)])
def test_a_prediction_has_the_shape_of_the_latents(size: tuple[int, int]) -> None:
    model = seeded(UNet2DConditionModel, UNET)
    assert model(normal(1, 4, *size), torch.tensor(1), normal(1, 3, 12)).shape == (1, 4, *size)


def test_a_decoded_image_is_larger_by_the_factor() -> None:
    model = seeded(AutoencoderKL, VAE)
    assert VAE.downsample_factor == 4
    assert AutoencoderKLConfig().downsample_factor == 8
    assert model.decode(normal(1, 4, 3, 5)).shape == (1, 3, 12, 20)
    assert model.encode(normal(1, 3, 12, 20)).mean.shape == (1, 4, 3, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_results_have_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    latents, context = normal(1, 4, 8, 8).to(dtype), normal(1, 5, 12, seed=1).to(dtype)
    single = seeded(UNet2DConditionModel, UNET)
    expected = single(latents.float(), torch.tensor(981), context.float())
    result = seeded(UNet2DConditionModel, UNET).to(dtype)(latents, torch.tensor(981), context)
    assert result.dtype == dtype
    assert torch.allclose(result.float(), expected, atol=0.1 if dtype == torch.bfloat16 else 1e-4)
    vae = seeded(AutoencoderKL, VAE).to(dtype)
    assert vae.decode(latents).dtype == vae.encode(normal(1, 3, 8, 8).to(dtype)).std.dtype == dtype
    text_encoder = seeded(CLIPTextModel, CLIP).to(dtype)
    assert text_encoder(torch.arange(5)[None]).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_models_tell_their_device_and_dtype(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        models = [
            CLIPTextModel(CLIP),
            UNet2DConditionModel(UNET),
            ControlNetModel(ControlNetConfig(UNET)),
            AutoencoderKL(VAE),
            AutoencoderTiny(AutoencoderTinyConfig()),
        ]
    for model in models:
        assert (model.device.type, model.dtype) == ("meta", torch.float32)
        assert model.to(dtype).dtype == dtype
        assert model.to_empty(device="cpu").device == torch.device("cpu")


def test_arguments_and_weights_are_left_alone() -> None:
    unet, vae = seeded(UNet2DConditionModel, UNET), seeded(AutoencoderKL, VAE)
    arguments = [normal(1, 4, 8, 8), torch.tensor([7]), normal(1, 5, 12), normal(1, 3, 8, 8)]
    held = [*arguments, *unet.parameters(), *vae.parameters()]
    before = [tensor.clone() for tensor in held]
    first = unet(*arguments[:3])
    vae.decode(arguments[0])
    vae.encode(arguments[3])
    assert all(torch.equal(a, b) for a, b in zip(before, held, strict=True))
    assert torch.equal(unet(*arguments[:3]), first)


def test_posterior() -> None:
    moments = torch.tensor([1.0, 2.0, 3.0, 0.0, -50.0, 50.0]).view(1, 6, 1, 1)
    posterior = DiagonalGaussian.from_moments(moments)
    expected = torch.exp(torch.tensor([0.0, -15.0, 10.0]))  # log-variances cut to [-30, 20]
    assert torch.allclose(posterior.std.flatten(), expected)
    assert posterior.mean.flatten().tolist() == [1.0, 2.0, 3.0]
    drawn = posterior.sample(torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)).flatten()
    assert torch.allclose(drawn, torch.tensor([3.0, 2.0, 3.0 - expected[2].item()]))


@pytest.mark.parametrize(
    "changes",
    [
        {"cross_attention": (True,)},
        {"attention_heads": (2, 2, 2)},
        {"block_out_channels": (8, 16, 32)},
    ],
)
def test_tuples_of_different_lengths_are_refused(changes: dict[str, tuple[int, ...]]) -> None:
    sizes = {"block_out_channels": (8, 16), "cross_attention": (True, False)}
    with pytest.raises(ValueError, match="one of each a level is needed") as caught:
        UNet2DConditionConfig(**{**sizes, "attention_heads": (2, 2), **changes})
    for name, value in changes.items():
        assert f"{len(value)} {name}" in str(caught.value)


def test_sizes_that_do_not_divide_are_refused() -> None:
    def unet(**changes: object) -> None:
        UNet2DConditionModel(UNet2DConditionConfig(**{**vars(UNET), **changes}))

    with pytest.raises(ValueError, match="8 channels do not divide into 3 attention heads"):
        unet(attention_heads=(3, 2))
    # a level without cross-attention uses its heads only as the last, for the middle
    with pytest.raises(ValueError, match="16 channels do not divide into 5 attention heads"):
        unet(attention_heads=(2, 5))
    with pytest.raises(ValueError, match="divisible"):
        unet(norm_num_groups=3)
    with pytest.raises(ValueError, match="16 channels do not divide into 3 attention heads"):
        CLIPTextModel(CLIPTextConfig(**{**vars(CLIP), "num_attention_heads": 3}))
    with pytest.raises(ValueError, match="divisible"):
        AutoencoderKL(AutoencoderKLConfig(**{**vars(VAE), "norm_num_groups": 3}))
    with pytest.raises(KeyError, match="swish"):
        CLIPTextModel(CLIPTextConfig(**{**vars(CLIP), "hidden_act": "swish"}))


@pytest.mark.parametrize("config", [CLIP, UNET, VAE])
def test_configurations_are_frozen_and_can_be_compared(config: object) -> None:
    with pytest.raises(FrozenInstanceError):
        config.layers_per_block = 7
    assert config == type(config)(**vars(config))
    assert hash(config) == hash(type(config)(**vars(config)))
