"""How the predictions that guidance combines lie to each other: angles, lengths, and a plane.

Predictions are vectors of N = C H W elements. Lengths are divided by sqrt(N), so that the length of
unit noise is 1 at every size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from sfumato import Branch, Draw, Finding, Guidance, measured_mean
from sfumato_metrics import charts
from sfumato_metrics.answering import full_captions
from sfumato_metrics.walking import chosen, first_noise

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sfumato import GuidanceStep, Guided, Pipeline, Prediction
    from sfumato_metrics.explanations import GuidanceGeometry

PROMPT, NULL = Branch(text="prompt"), Branch(text="null")
FLAT = 1e-3
"""A vector whose part outside of a plane is a smaller share of it lies in the plane: float32 adds
guided predictions up to about that where text changes little."""


@attrs.frozen(eq=False, kw_only=True)
class Seen:
    """What was predicted in one interval: eps (B, N) float64 of the null condition, of the prompt,
    and guided.
    """

    t: float
    uncond: Tensor
    cond: Tensor
    guided: Tensor


@attrs.frozen(eq=False)
class Watched(Guidance):
    """Another guidance, of whose predictions the first in each interval is kept in `seen`."""

    name = "watched"
    inner: Guidance
    seen: dict[int, Seen] = attrs.field(factory=dict)

    def branches(self, step: GuidanceStep) -> Collection[Branch]:
        """Those of the other, the prompt and the null condition."""
        return {*self.inner.branches(step), PROMPT, NULL}

    def combine(
        self,
        predictions: Mapping[Branch, Prediction],
        step: GuidanceStep,
        guided: Guided | None,
        memory: Any,
    ) -> tuple[Guided, Any]:
        """What the other makes of them."""
        found, memory = self.inner.combine(predictions, step, guided, memory)
        uncond, cond, combined = (
            one.eps.flatten(1).double().cpu()
            for one in (predictions[NULL], predictions[PROMPT], found)
        )
        self.seen.setdefault(step.index, Seen(t=step.t, uncond=uncond, cond=cond, guided=combined))
        return found, memory


def guidance_geometry(study: GuidanceGeometry, pipeline: Pipeline, seed: int) -> Finding:
    """Angles and lengths along the paths, and the plane at one time."""
    prompts = chosen(study.prompts, study.count, pipeline)
    watched = Watched(pipeline.settings.guidance)
    start = first_noise(pipeline, len(prompts), seed)
    for _ in pipeline.sample_steps(prompts, seed=seed, start=start, guidance=watched):
        pass
    seen = [watched.seen[index] for index in sorted(watched.seen)]
    times = [one.t for one in seen]
    angles = torch.stack([angle(one.cond, one.uncond) for one in seen])
    lengths = torch.stack([length(one.cond - one.uncond) for one in seen])
    over_t = {
        name: [measured_mean(row) for row in rows]
        for name, rows in (("angle", angles), ("length", lengths))
    }
    nearest = min(range(len(times)), key=lambda k: abs(times[k] - study.time))
    points = (
        _on_the_path(seen[nearest])
        if study.prompts
        else _beside_a_known_noise(pipeline, prompts[0], nearest, seed)
    )
    flat = {"t": times[nearest], "prompt": prompts[0], **plane(points)}
    return Finding(
        numbers={
            "guidance_geometry": {
                "angle": measured_mean(angles.mean(dim=0)),
                "length": measured_mean(lengths.mean(dim=0)),
            }
        },
        details={
            "prompts": prompts,
            "t": times,
            **{name: [attrs.asdict(one) for one in row] for name, row in over_t.items()},
            "plane": flat,
            "seed": seed,
        },
        picture=charts.geometry(times, over_t["angle"], over_t["length"], flat),
    )


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Degrees (B,) between vectors (B, N).

    By the arc tangent of Kahan, since the arc cosine is blind to angles below 1e-6.
    """
    a, b = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-300) for x in (a, b))
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


def length(vectors: Tensor) -> Tensor:
    """Root mean squares (B,) of vectors (B, N)."""
    return vectors.square().mean(dim=1).sqrt()


def plane(points: Mapping[str, Tensor]) -> dict[str, Any]:
    """Coordinates in a plane of points (N,), lengths divided by sqrt(N).

    Args:
        points: by name; the first is the origin, the second lies on the first axis, the first of
            the others that is not on that line spans the plane with them. Where none does, the
            zero vector spans it.

    Returns:
        `points`: [x, y] by name; `outside`: how far from the plane each lies.
    """
    vectors = [*points.values()]
    origin, unit = vectors[0], math.sqrt(len(vectors[0]))
    axes = basis([*(vector - origin for vector in vectors[1:]), -origin])
    placed: dict[str, list[float]] = {}
    outside: dict[str, float] = {}
    for name, vector in points.items():
        along = axes @ (vector - origin)
        placed[name] = (along / unit).tolist()
        outside[name] = float((vector - origin - along @ axes).norm()) / unit
    return {"points": placed, "outside": outside}


def basis(directions: Sequence[Tensor]) -> Tensor:
    """Two unit vectors (2, N) at a right angle that span the first two directions (N,) which do not
    lie on one line; zeros where there are none.
    """
    axes = torch.zeros(2, len(directions[0]), dtype=directions[0].dtype)
    found = 0
    for direction in directions:
        rest = direction - (axes @ direction) @ axes
        if found < 2 and rest.norm() > FLAT * direction.norm():
            axes[found] = rest / rest.norm()
            found += 1
    return axes


def _on_the_path(seen: Seen) -> dict[str, Tensor]:
    """The predictions for the first prompt."""
    return {"uncond": seen.uncond[0], "cond": seen.cond[0], "guided": seen.guided[0]}


@torch.no_grad()
def _beside_a_known_noise(
    pipeline: Pipeline, prompt: str, index: int, seed: int
) -> dict[str, Tensor]:
    """The predictions for a picture of the test split, noised to the time of this interval, and the
    noise.
    """
    data = pipeline.settings.given_data()
    image, _ = data.split("test").example(full_captions(data, 1)[prompt])
    x0 = pipeline.autoencoder.encode(image[None].to(pipeline.device, pipeline.dtype)).float()
    draw = Draw(seed=seed, stream="study", examples=torch.arange(1))
    noise = draw.normal("plane", pipeline.latent_shape).to(x0.device)
    watched = Watched(pipeline.settings.guidance)
    denoise = pipeline.denoise([prompt], guidance=watched)
    denoise.index, t = index, denoise.times[index]
    alpha, sigma = pipeline.settings.noise_schedule.alpha_sigma(t)
    denoise(float(alpha) * x0 + float(sigma) * noise, t)
    return {**_on_the_path(watched.seen[index]), "noise": noise.flatten().double().cpu()}
