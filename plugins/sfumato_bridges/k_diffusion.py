"""k-diffusion's convention `model(x, sigma)`, in both directions.

A model there says x0 of x = x0 + sigma eps. On any schedule of ours that is x_t / alpha_t at the
time when sigma_t / alpha_t is sigma; a grid of sigmas is a time grid.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364
    k-diffusion, Katherine Crowson, 2022
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sfumato import ConfigError, Guided

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from sfumato import Denoise, Guidance, NoiseSchedule, Pipeline


SAME_TIME = 1e-6
"""Times that are closer are one."""


def as_k_diffusion(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    negative: str | Sequence[str | Sequence[str]] | None = None,
    steps: int | None = None,
    guidance: Guidance | None = None,
) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
    """A pipeline with prompts and guidance applied, and the levels of its time grid.

    Args:
        pipeline: any.
        prompts: B texts.
        negative: as for `Pipeline.sample`, like `steps` and `guidance`.
        steps: of the time grid.
        guidance: in place of the pipeline's.

    Returns:
        `model(x, sigma)` from x (B, C, H, W) and sigma (B,), all equal and above 0, to x0; and
        sigmas (steps + 1,) float32. A walk starts from unit noise times `(1 + sigmas[0]**2)**0.5`.

    Raises:
        ConfigError: the grid starts from pure noise, or the guidance renoises with another eps.
    """
    denoise = pipeline.denoise(prompts, negative=negative, steps=steps, guidance=guidance)
    schedule, times = pipeline.settings.noise_schedule, denoise.times
    if not denoise.guidance.explains_x_t:
        raise ConfigError(
            f"the guidance {denoise.guidance.name!r} renoises with an eps of its own, which "
            "model(x, sigma) cannot say",
            remedy="use another, such as cfg",
        )
    alpha, sigma = schedule.alpha_sigma(times)
    if alpha[0] == 0:
        raise ConfigError(
            "the time grid starts where alpha is 0 and sigma / alpha infinite",
            remedy="use one that starts later (--set time_grid=leading)",
        )

    @torch.no_grad()
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        t = schedule.time_at(sigma.flatten()[0].double().cpu().log())
        # A level of the grid comes in float32; its time is that of the grid all the same.
        nearest = times[(times - t).abs().argmin()]
        t = nearest if bool((nearest - t).abs() < SAME_TIME) else t
        denoise.index = int((times[1:-1] >= t).sum())
        return denoise(x * float(schedule.alpha_sigma(t)[0]), t).x0

    return model, (sigma / alpha).float().to(pipeline.device)


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
        x0 = model(x / alpha, x.new_full((len(x),), ratio), **extra_args)
        return Guided(x0, (x / alpha - x0) / ratio)

    return denoise
