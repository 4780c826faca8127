"""DeepCache: the UNet's deep layers are evaluated now and then, the outermost ones always."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from sdpy.errors import UsageError
from sdpy.models import UNet2DConditionConfig, UNet2DConditionModel
from sdpy.models.base import ModelMixin
from sdpy.models.rows import add_rows, check_rows
from sdpy.models.unet import add_residuals, skip_channels


@dataclass(frozen=True)
class DeepCache:
    """Evaluate the whole UNet once, and only its outermost layers the next ``interval - 1`` times.

    These take what comes up from below from the last whole evaluation. Evaluations are counted,
    not steps: for a sampler that needs two a step (Heun, KDPM2) the same ``interval`` is half as
    many steps. The whole UNet is evaluated out of turn wherever the last result does not fit:
    where the batch or the prompts are others, as guidance begins or ends, and where ControlNets or
    T2I-Adapters begin or cease to count. These steer the outermost layers each time, and what comes
    up from below as they did in the last whole evaluation.

    Attributes:
        interval: at least 1, at which every evaluation is whole.
        branch: number of the deepest skip that is computed each time, in the order in which they
            arise: 0 is that of the input convolution, used by the last layer on the way up; 1 adds
            the first ResNet with its transformer, and the last layer but one; and so on.

    Source: "DeepCache: Accelerating Diffusion Models for Free" (Ma et al., 2023), section 3.2,
    with the uniform schedule; branches are numbered as in the authors' package.
    """

    interval: int
    branch: int = 0

    def check(self, config: UNet2DConditionConfig) -> None:
        """Refuse an interval or a branch that cannot be; see `Approximation.check`."""
        if self.interval < 1:
            raise UsageError(f"DeepCache every {self.interval} evaluations: use 2 or more")
        last = len(skip_channels(config)) - 2  # below the deepest skip only the middle is left
        if not 0 <= self.branch <= last:
            raise UsageError(f"DeepCache branch {self.branch}: this UNet has 0 to {last}")

    @contextmanager
    def applied(self, unet: UNet2DConditionModel, seeds: Sequence[int]) -> Iterator[CachedUNet]:
        """Have a `CachedUNet` called; see `Approximation.applied`."""
        yield CachedUNet(unet, self)

    def facts(self) -> dict[str, str]:
        """Interval and branch; see `Approximation.facts`."""
        return {"DeepCache": f"{self.interval} branch {self.branch}"}


class CachedUNet(ModelMixin):
    """Stands in for a UNet, and keeps what last came up from its deep layers."""

    def __init__(self, unet: UNet2DConditionModel, settings: DeepCache) -> None:
        super().__init__()
        self.unet, self.config = unet, unet.config
        self.interval, self.outermost = settings.interval, settings.branch + 1
        self.deep: Tensor | None = None
        """(k B, C, h, w), what the first of the outermost layers on the way up was given."""
        self.fits: object = None
        """For which kind of evaluation that is."""
        self.context: Tensor | None = None
        """For which prompts."""
        self.reused = 0

    def embed(
        self,
        timestep: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """See `UNet2DConditionModel.embed`."""
        return self.unet.embed(timestep, timestep_cond, text_embeds, time_ids)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        emb: Tensor | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: Sequence[Tensor] = (),
    ) -> Tensor:
        """See `UNet2DConditionModel.forward`."""
        unet, outermost, context = self.unet, self.outermost, encoder_hidden_states
        _run_pre_hooks(unet, sample, timestep, context)
        check_rows(sample, context)
        if emb is None:
            emb = unet.embed(timestep, timestep_cond, text_embeds, time_ids)
        features = down_intrablock_additional_residuals
        steered = (mid_block_additional_residual is not None, len(features))
        kind = (sample.shape, context.shape, *steered)
        fits = self.fits == kind and self.context is context
        if self.deep is None or not fits or self.reused + 1 >= self.interval:
            skips = unet.down_blocks(
                unet.conv_in(sample), emb, context, additional_residuals=features
            )
            x = unet.go_through_middle(skips[-1], emb, context, unet.residual_of_middle(features))
            if down_block_additional_residuals is not None:
                skips = add_residuals(skips, down_block_additional_residuals)
            if mid_block_additional_residual is not None:
                x = add_rows(x, mid_block_additional_residual)
            deep, reused = unet.up_blocks(x, skips, emb, context, outermost), 0
        else:
            skips = unet.down_blocks(unet.conv_in(sample), emb, context, outermost, features)
            if down_block_additional_residuals is not None:
                skips = add_residuals(skips, down_block_additional_residuals[:outermost])
            deep, reused = self.deep, self.reused + 1
        prediction = unet.predict(unet.up_blocks(deep, skips[:outermost], emb, context))
        self.deep, self.fits, self.reused, self.context = deep, kind, reused, context
        return prediction


def _run_pre_hooks(unet: UNet2DConditionModel, *inputs: Tensor) -> None:
    """Run what waits for a call of the UNet, of which only the parts are called here."""
    for number, hook in tuple(unet._forward_pre_hooks.items()):
        if number in unet._forward_pre_hooks_with_kwargs:
            hook(unet, inputs, {})
        else:
            hook(unet, inputs)
