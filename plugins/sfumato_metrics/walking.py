"""Walks the reverse process for studies: step by step, and twice from one noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sfumato import ConfigError, Draw, Finding, create, measured_mean
from sfumato_metrics import figures
from sfumato_metrics.answering import full_captions
from sfumato_metrics.metrics import DescribedShapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from sfumato import Guidance, Pipeline, SampleStep
    from sfumato_metrics.explanations import DenoisingPath, NegativeEffect


def chosen(prompts: Sequence[str], count: int, pipeline: Pipeline) -> list[str]:
    """These prompts, or as many full captions of the test split where there are none."""
    return list(prompts or full_captions(pipeline.settings.given_data(), count))


def negatives_for(
    prompts: Sequence[str], given: Sequence[str], pipeline: Pipeline, place: str
) -> list[str]:
    """A negative prompt for each prompt.

    Where none is given it is something that the prompt does not ask for, and a picture of it might
    show: `a COLOR shape` of the color that follows the prompt's own in the palette, where the data
    can parse captions, else the next prompt.

    Raises:
        ConfigError: as many are given as fit neither one nor all prompts.
    """
    if len(given) == 1:
        return [given[0]] * len(prompts)
    if given and len(given) != len(prompts):
        raise ConfigError(
            f"{len(given)} negatives for {len(prompts)} prompts",
            place=place,
            remedy="give one for all, or one for each",
        )
    data = pipeline.settings.data
    if given or not isinstance(data, DescribedShapes):
        return list(given) or [*prompts[1:], prompts[0]]
    colors = list(data.palette)
    said = [data.attributes(prompt).get("color", colors[-1]) for prompt in prompts]
    return [f"a {colors[(colors.index(color) + 1) % len(colors)]} shape" for color in said]


def two_scales(positive: float, negative: float) -> Guidance:
    """eps_u + s_pos (eps_p - eps_u) - s_neg (eps_n - eps_u)."""
    guidance: Guidance = create(
        "guidance", "negative_prompt", positive_scale=positive, negative_scale=negative
    )
    return guidance


def first_noise(pipeline: Pipeline, count: int, seed: int) -> Tensor:
    """X at the first time, (B, C, H, W), drawn for this many examples."""
    draw = Draw(seed=seed, stream="study", examples=torch.arange(count))
    noise = draw.normal("start", pipeline.latent_shape)
    return noise * pipeline.settings.noise_schedule.start_scale(float(pipeline.plan().times[0]))


def denoising_path(study: DenoisingPath, pipeline: Pipeline, seed: int) -> Finding:
    """Each column is a time: x_t, and the estimate of x0 that the model makes of it."""
    prompts = chosen(study.prompts, study.count, pipeline)
    start = first_noise(pipeline, len(prompts), seed)
    steps = list(pipeline.sample_steps(prompts, seed=seed, start=start))
    times = [float(pipeline.plan().times[0]), *(step.t for step in steps)]
    distances = distances_to_the_end(steps)
    shown = spread(len(times), study.columns)
    noisy = [start.to(pipeline.device), *(step.x for step in steps)]
    estimates = [*(step.x0 for step in steps), steps[-1].x]
    schedule = pipeline.settings.noise_schedule
    seen = torch.stack([noisy[k] / schedule.start_scale(times[k]) for k in shown])
    guessed = torch.stack([estimates[k] for k in shown])
    pairs = torch.stack([_decoded(pipeline, seen), _decoded(pipeline, guessed)])
    images = pairs.permute(2, 0, 1, 3, 4, 5).flatten(0, 1)
    return Finding(
        numbers={"denoising_path": {"half_way": measured_mean(half_way(distances, times))}},
        details={"prompts": prompts, "times": times, "distances": distances.tolist(), "seed": seed},
        picture=figures.picture_table(
            images[:, :, None],
            rows=[label for prompt in prompts for label in (prompt, "its estimate of x0")],
            columns=[f"t = {times[k]:.2f}" for k in shown],
            together=2,
            title="From noise to a picture: x_t, and below it what the model takes for its x0",
        ),
    )


def distances_to_the_end(steps: Sequence[SampleStep]) -> Tensor:
    """Root mean squares (steps, B), float64, of each estimate of x0 less the result."""
    result = steps[-1].x.double()
    offsets = torch.stack([step.x0.double() - result for step in steps])
    return offsets.flatten(2).square().mean(dim=2).sqrt().cpu()


def half_way(distances: Tensor, times: Sequence[float]) -> Tensor:
    """The time (B,) at which an estimate first is half as far from the result as the first one.

    Args:
        distances: (steps, B).
        times: at which the estimates were made; one more, that of the result, may follow.
    """
    arrived = distances <= distances[0] / 2
    first = arrived.int().argmax(dim=0).where(arrived.any(dim=0), len(distances) - 1)
    return torch.tensor(times, dtype=torch.float64)[first]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the places below `count`, evenly spread, both ends among them."""
    return torch.linspace(0, count - 1, min(count, most)).round().int().tolist()


@torch.no_grad()
def _decoded(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """Pictures (columns, B, 3, H, W) float32 on the CPU of latents (columns, B, C, h, w)."""
    decoded = [pipeline.autoencoder.decode(x.to(pipeline.device, pipeline.dtype)) for x in latents]
    return torch.stack(decoded).float().cpu()


def negative_effect(study: NegativeEffect, pipeline: Pipeline, seed: int) -> Finding:
    """A row for each prompt: without, with, and how much each pixel changed."""
    prompts = chosen(study.prompts, study.count, pipeline)
    negatives = negatives_for(prompts, study.negatives, pipeline, "study.negative_effect")
    guidance = two_scales(study.positive, study.negative)
    without = pipeline.sample(prompts, seed=seed, guidance=guidance)
    changed = pipeline.sample(prompts, negative=negatives, seed=seed, guidance=guidance)
    difference = (changed - without).double()
    distances = difference.flatten(1).square().mean(dim=1).sqrt()
    change = difference.abs().mean(dim=1, keepdim=True).float()
    brightest = float(change.max()) or 1.0
    shown = torch.stack([without, changed, (2 * change / brightest - 1).expand_as(without)], dim=1)
    return Finding(
        numbers={"negative_effect": {"distance": measured_mean(distances)}},
        details={
            "prompts": prompts,
            "negatives": negatives,
            "distances": distances.tolist(),
            "scales": [study.positive, study.negative],
            "seed": seed,
        },
        picture=figures.picture_table(
            shown[:, :, None],
            rows=[
                f"{wanted}; not {other}" for wanted, other in zip(prompts, negatives, strict=True)
            ],
            columns=["without", f"s_neg {study.negative:g}", f"change\n(white {brightest:.2f})"],
            together=1,
            title=f"A negative prompt at the same noise, s_pos {study.positive:g}",
        ),
    )
