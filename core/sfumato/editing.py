"""Sampling from a picture: where the walk starts, what of the picture it keeps, and the way back.

**Image-to-image** skips the first steps of the grid and starts from the picture, noised to the time
that is then the first (SDEdit, Meng et al., 2021, arXiv:2108.01073).

**Inpainting** keeps what a mask leaves out: it is the original, noised to each time (RePaint,
Lugmayr et al., 2022, arXiv:2201.09865; Blended Diffusion, Avrahami et al., 2022, arXiv:2111.14818).
Here that is an estimate, not a paste between steps: outside of the mask the x0 of `denoise` is the
known one, and eps is what x then holds, (x - alpha x0) / sigma. From there any sampler, of one step
or of many, walks to x0 as along every other prediction. One without noise keeps eps on the way, one
with noise renews it as it does elsewhere.

**Inversion** walks the probability flow upwards, from a picture to the noise that leads to it (Song
et al., 2020, arXiv:2010.02502; Mokady et al., 2022, arXiv:2211.09794). A picture stands at t = 0,
where nothing tells its noise; at the first time above it stands as alpha x0, noise still to come.
On a grid that ends above 0 it is, as in sampling, x itself.

This module knows nothing about prompts, networks or files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.errors import ConfigError, PluginError
from sfumato.records import Guided

if TYPE_CHECKING:
    from sfumato.compatibility import Plan
    from sfumato.interfaces import Denoise, NoiseSchedule


def keeping(denoise: Denoise, schedule: NoiseSchedule, x0: Tensor, painted: Tensor) -> Denoise:
    """`denoise` that knows x0, (B, C, H, W), wherever `painted`, (B or 1, 1, H, W) bool, is
    False.
    """

    def known(x: Tensor, t: Tensor) -> Guided:
        guided = denoise(x, t)
        alpha, sigma = schedule.alpha_sigma(t)
        eps = (x - float(alpha) * x0) / float(sigma)
        return Guided(guided.x0.where(painted, x0), guided.eps.where(painted, eps))

    return known


def noised_start(
    noise: Tensor, plan: Plan, x0: Tensor | None = None, painted: Tensor | None = None
) -> Tensor:
    """X at the first time of a plan, like `noise`, which is unit Gaussian.

    Without x0, and where a walk of all steps paints anew, it is the schedule's own noise: strength
    1 forgets the picture. Everywhere else it is x0, noised.
    """
    schedule, first = plan.settings.noise_schedule, plan.times[0]
    drawn = noise * schedule.start_scale(float(first))
    if x0 is None:
        return drawn
    alpha, sigma = schedule.alpha_sigma(first)
    noised = float(alpha) * x0 + float(sigma) * noise
    if len(plan.times) <= plan.steps:
        return noised
    return drawn if painted is None else drawn.where(painted, noised)


def check_inversion(plan: Plan) -> None:
    """Raises ConfigError where the way from a picture up to its noise is not known."""
    sampler, schedule = plan.settings.sampler, plan.settings.noise_schedule
    if sampler.order is None:
        raise ConfigError(
            f"the sampler {sampler.name!r} draws noise, so no start leads to a given picture",
            remedy="use one that draws none, such as --set sampler=ddim",
        )
    if plan.starts_blind:
        raise ConfigError(
            f"noise_schedule {schedule.name!r} leaves no signal at t = {float(plan.times[0]):g}, "
            "so no noise there leads to a given picture",
            remedy="use a strength below 1, or a grid that starts later (--set time_grid=leading)",
        )


def shrinking(plan: Plan, times: Tensor) -> float:
    """What the last x of a plan is multiplied with to be one at the first of the rising `times`."""
    ends = torch.stack([times[0], plan.times[-1]])
    first, end = plan.settings.noise_schedule.alpha_sigma(ends)[0].tolist()
    return float(first / end)


def no_noise() -> Tensor:
    """The noise of a sampler that says it draws none."""
    raise PluginError("a sampler that claims an order draws noise")


def checked_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, 3, *size) float32 in [-1, 1].

    Raises:
        ConfigError: they are not.
    """
    wanted = (len(image), 3, *size)
    if image.shape != wanted:
        raise ConfigError(f"image has shape {tuple(image.shape)}, expected {wanted}")
    if not bool((image.abs() <= 1).all()):  # NaN neither
        raise ConfigError(
            "image holds values outside of [-1, 1]", remedy="make bytes so by image / 127.5 - 1"
        )
    return image.float()


def latents_painted(mask: Tensor, size: tuple[int, int], factor: int) -> Tensor:
    """Where latents are painted anew, (B or 1, 1, H, W) bool: where any of their pixels is.

    Args:
        mask: (B or 1, 1, height, width) of 0 and 1, as large as pictures or as latents.
        size: of pictures.
        factor: how many pixels one latent is high and wide.

    Raises:
        ConfigError: it is no such mask.
    """
    height, width = size
    latent = (height // factor, width // factor)
    if mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] not in (size, latent):
        sizes = " or ".join(f"(1, {h}, {w})" for h, w in dict.fromkeys((size, latent)))
        raise ConfigError(f"mask has shape {tuple(mask.shape)}, expected B or 1 times {sizes}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ConfigError("mask holds values other than 0 and 1", remedy="give mask > 0.5")
    if mask.shape[2:] == latent:
        return mask == 1
    return torch.nn.functional.max_pool2d(mask.float(), factor) == 1


def pasted(pictures: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) with those of `image`, to the bit, outside of the mask."""
    factor = pictures.shape[-1] // mask.shape[-1]
    pixels = mask.repeat_interleave(factor, -2).repeat_interleave(factor, -1).to(pictures.device)
    return pictures.where(pixels == 1, image.to(pictures))
