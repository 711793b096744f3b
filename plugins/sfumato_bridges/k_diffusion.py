"""k-diffusion's convention `model(x, sigma)`, in both directions.

A model there says x0 of x = x0 + sigma eps. On any schedule of ours that is x_t / alpha_t at the
time when sigma_t / alpha_t is sigma; a grid of sigmas is a time grid.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    k-diffusion, https://github.com/crowsonkb/k-diffusion
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sfumato import ConfigError, Guided

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sfumato import Denoise, NoiseSchedule


def sigmas(schedule: NoiseSchedule, times: Tensor) -> Tensor:
    """sigma / alpha at times, like them: what k-diffusion's samplers take for `sigmas`."""
    alpha, sigma = schedule.alpha_sigma(times)
    return sigma / alpha


def as_k_diffusion(denoise: Denoise, schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """`denoise(x, t)` of ours as `model(x, sigma)` of theirs.

    Args:
        denoise: such as `pipeline.denoise(prompts, times)`, with its guidance.
        schedule: that of the pipeline.

    Returns:
        A function of x (B, C, H, W) and sigma (B,), all equal and above 0, that returns x0. What
        else k-diffusion hands on (`extra_args`) has no meaning here, and is an error.
    """

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        t = schedule.time_at(sigma.flatten()[0].double().cpu().log())
        alpha, _ = schedule.alpha_sigma(t)
        return denoise(x * float(alpha), t).x0

    return model


def from_k_diffusion(
    model: Callable[..., Tensor], schedule: NoiseSchedule, **extra_args: Any
) -> Denoise:
    """`model(x, sigma)` of theirs as `denoise(x, t)` of ours, for `Sampler.run`.

    Args:
        model: x (B, C, H, W) and sigma (B,) to x0.
        schedule: of the trajectory; any, as x is brought to the scale of the model.
        extra_args: handed to the model at each call.

    Returns:
        A function of x and t, (), that raises ConfigError at a t where alpha is 0.
    """

    def denoise(x: Tensor, t: Tensor) -> Guided:
        alpha, sigma = map(float, schedule.alpha_sigma(t))
        if alpha == 0:
            raise ConfigError(
                f"at t = {float(t):g} sigma / alpha is infinite, which model(x, sigma) cannot take",
                remedy="use times that start later",
            )
        ratio = sigma / alpha
        x0 = model(x / alpha, torch.full((len(x),), ratio).to(x), **extra_args)
        return Guided(x0, (x / alpha - x0) / ratio)

    return denoise
