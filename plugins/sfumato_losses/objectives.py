"""Settings of the objectives that train a denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from attrs.validators import ge, le

from sfumato import Objective, option

if TYPE_CHECKING:
    from sfumato import ObjectiveModule, Pipeline


@attrs.frozen(kw_only=True)
class Denoising(Objective):
    """E || model(alpha x0 + sigma eps, t, c) - target ||^2, with c null for a share of the
    examples.

    The time comes from the pipeline's `time_sampler`, the target from the denoiser's prediction
    type, the comparison from `loss` and `loss_weight`. No guidance happens here: condition dropout
    is what makes it possible later (Ho & Salimans find 0.1 and 0.2 alike, and 0.5 worse).

    Two options change the noise, and not alike. `offset_noise` adds one number for each channel, so
    that pictures can be dark or bright as a whole: it is noise like the rest and belongs to the
    target. `input_perturbation` adds to x_t what the target does not know of, as errors of earlier
    steps do in sampling.

    References:
        Denoising Diffusion Probabilistic Models, Ho et al., 2020, arXiv:2006.11239.
        Classifier-Free Diffusion Guidance, Ho & Salimans, 2022, arXiv:2207.12598.
        Diffusion with Offset Noise, Guttenberg, 2023, crosslabs.org.
        Input Perturbation Reduces Exposure Bias in Diffusion Models, Ning et al., 2023,
        arXiv:2301.11706, Algorithm 3.
    """

    name = "denoising"
    trains = "denoiser"
    looks_at_pictures = False
    reads = frozenset(
        {"noise_schedule", "text_encoder", "denoiser", "autoencoder"}
        | {"loss", "loss_weight", "time_sampler"}
    )

    text_dropout: float = option(0.1, "share of texts replaced by the null condition", ge(0), le(1))
    offset_noise: float = option(0.0, "deviation of a channel's own number; 0.1 is usual", ge(0))
    input_perturbation: float = option(0.0, "deviation of what x_t alone gets; 0.1 is usual", ge(0))

    def build(self, pipeline: Pipeline) -> ObjectiveModule:
        """The module that trains the pipeline's denoiser."""
        from sfumato_losses.denoising import DenoisingModule

        return DenoisingModule(pipeline, self)
