"""Error against the number of predictions for every sampler, on data whose best denoiser is known.

Without noise: the largest error against the probability flow of a mixture of Gaussians, from t =
0.9 to t = 0.1 on steps that are even in log(sigma / alpha), as in the conformance kit. With noise:
the error of the standard deviation of Gaussian data. As everything is linear there, start and draws
can be unit vectors, the result holds their coefficients, and no sampling error is left.

    python benchmarks/sampler_orders.py

prints both tables and writes docs/sampler-orders.md and docs/pictures/sampler_orders.png.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import matplotlib.pyplot as plt
import torch

from sfumato import Guided, Sampler, create
from sfumato.testing.mixture import QuarterCircle, gaussian
from sfumato.testing.samplers import errors, even_levels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

STEPS = (6, 12, 24, 48, 96, 192)
DOCS = Path(__file__).parents[1] / "docs"
DEVIATION = 0.5
COLOURS = {
    "renoising": "#444444",
    "heun": "#1f77b4",
    "midpoint": "#2ca02c",
    "multistep": "#d95f02",
    "exponential": "#9467bd",
}

Named = dict[str, Sampler]
WITHOUT_NOISE: dict[str, Named] = {
    "renoising": {"ddim, euler, euler_ancestral": create("sampler", "euler")},
    "heun": {"heun, edm, restart": create("sampler", "heun")},
    "midpoint": {
        "dpm2": create("sampler", "dpm2"),
        "dpmpp_2s_ancestral, dpmpp_sde": create("sampler", "dpmpp_2s_ancestral", eta=0.0),
    },
    "multistep": {name: create("sampler", name) for name in ("lms", "ipndm", "pndm", "deis")},
    "exponential": {
        "dpmpp_2m": create("sampler", "dpmpp_2m"),
        "dpmpp_2m_sde (rule heun)": create("sampler", "dpmpp_2m_sde", eta=0.0, rule="heun"),
        "dpmpp_3m_sde": create("sampler", "dpmpp_3m_sde", eta=0.0),
        **{f"unipc (depth {p})": create("sampler", "unipc", depth=p) for p in (1, 2, 3)},
    },
}
WITH_NOISE: dict[str, Named] = {
    "renoising": {
        "ddpm": create("sampler", "ddpm"),
        "ddpm (large)": create("sampler", "ddpm", variance="large"),
        "euler_ancestral, ddim": create("sampler", "euler_ancestral"),
    },
    "heun": {
        "edm": create("sampler", "edm", noise_scale=1.0),
        "restart": create("sampler", "restart", low=0.5),
    },
    "midpoint": {name: create("sampler", name) for name in ("dpmpp_2s_ancestral", "dpmpp_sde")},
    "exponential": {name: create("sampler", name) for name in ("dpmpp_2m_sde", "dpmpp_3m_sde")},
}


@attrs.frozen
class Curve:
    """One sampler: its predictions and errors at each of `STEPS`."""

    family: str
    label: str
    order: int | None
    predictions: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def slope(self) -> float:
        """P of an error like n^-p, between the two longest runs but one."""
        return math.log2(self.errors[-3] / self.errors[-2])


def spread(sampler: Sampler, steps: int) -> tuple[int, float]:
    """Predictions, and the relative error of the deviation at END of data N(0, DEVIATION^2)."""
    times, count = even_levels(steps), itertools.count()
    size = 4 * steps + 10
    best = gaussian(0.0, DEVIATION, (1, 1, size)).denoise(QuarterCircle())

    def denoise(x: torch.Tensor, t: torch.Tensor) -> Guided:
        next(count)
        return best(x, t)

    def deviation(t: torch.Tensor) -> float:
        alpha, sigma = QuarterCircle().alpha_sigma(t)
        return math.hypot(float(alpha) * DEVIATION, float(sigma))

    draws = iter(torch.eye(size, dtype=torch.float64).reshape(size, 1, 1, 1, size))
    start = deviation(times[0]) * next(draws)
    *_, last = sampler.run(denoise, QuarterCircle(), start, times, lambda: next(draws))
    return next(count), abs(float(last.x.norm()) / deviation(times[-1]) - 1)


def curves(families: dict[str, Named], *, noisy: bool) -> Iterable[Curve]:
    """Measures all."""
    for family, members in families.items():
        for label, sampler in members.items():
            predictions, spreads = zip(*(spread(sampler, n) for n in STEPS), strict=True)
            found = spreads if noisy else tuple(errors(sampler, STEPS))
            yield Curve(family, label, sampler.order, predictions, found)


def table(found: Iterable[Curve]) -> str:
    """In Markdown."""
    head = [
        "sampler",
        "order",
        "measured",
        *(f"{n} steps" for n in STEPS),
        f"predictions in {STEPS[-1]}",
    ]
    lines = [head, ["---"] * len(head)]
    for curve in found:
        order = "none" if curve.order is None else str(curve.order)
        cells = [f"{error:.1e}" for error in curve.errors]
        cost = str(curve.predictions[-1])
        lines.append([curve.label, order, f"{curve.slope:.1f}", *cells, cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(axes: Axes, found: Iterable[Curve], title: str) -> None:
    """Log against log; a colour for each family, a dash for each member."""
    strokes = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
    for family, members in itertools.groupby(found, key=lambda curve: curve.family):
        for curve, stroke in zip(members, strokes, strict=False):
            axes.loglog(
                curve.predictions, curve.errors, color=COLOURS[family], linestyle=stroke,
                marker=".", label=curve.label,
            )  # fmt: skip
    axes.set(title=title, xlabel="predictions", ylim=(1e-8, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), handlelength=4)


PAGE = """# How fast samplers converge

Made by `python benchmarks/sampler_orders.py`. Data, denoiser and probability flow are known in
closed form (`sfumato.testing.mixture`), on alpha = cos(pi t / 2), sigma = sin(pi t / 2), from t =
0.9 to t = 0.1 in steps that are even in log(sigma / alpha).

![Error against predictions, without and with noise](pictures/sampler_orders.png)

*Order* is what a sampler claims: n steps err like n^-order. *Measured* is the slope from 48 to 96
steps. A step of Heun's or of a midpoint method costs two predictions, and the warm-up of `pndm`
three more for each of three steps.

## Without noise

The largest error of x. Names on one line take the same steps: the first as it is, the others at
`eta` 0, `churn` 0 or no `repeats`.

{without}

Multistep methods begin with a step of Euler's, which errs by h^2. That limits them to order 2 where
their papers, taking the first predictions for granted, say 3 or 4; how much of it shows depends on
how little happens in the first step. The corrector of `unipc` leaves h^3 of it. `dpmpp_3m_sde` is
not what k-diffusion, diffusers and the authors' code compute: they give the second-order term half
of its weight, so that the steps themselves are of second order (`tests/test_samplers_peers.py`).

## With noise

The relative error of the standard deviation of Gaussian data, exactly. `edm` has a noise scale of 1
and the paper's churn, which reaches its largest growth up to 96 steps; `restart` goes from sigma /
alpha of 0.5 up to 2 and down, twice. A method that draws noise claims no order, and `dpmpp_2m_sde`
errs below at up to 12 steps and above from 24 on. That drawn noise makes up for the errors of a
network does not show here, where there are none.

{with_noise}

## Inversion

A sampler without noise walks rising times as well, from a picture to the noise that leads to it:
DDIM inversion is `ddim` along the reversed grid, so there is no component for it (see
[Edit a picture](editing.md)).
"""


def main() -> None:
    """Measures, prints, writes."""
    quiet = tuple(curves(WITHOUT_NOISE, noisy=False))
    noisy = tuple(curves(WITH_NOISE, noisy=True))
    text = {"without": table(quiet), "with_noise": table(noisy)}
    print(*text.values(), sep="\n\n")  # noqa: T201
    DOCS.joinpath("sampler-orders.md").write_text(PAGE.format(**text))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 7), sharey=True, layout="constrained")
    draw(left, quiet, "Without noise: the largest error of x")
    draw(right, noisy, "With noise: the relative error of the deviation")
    left.set_ylabel("error")
    figure.savefig(DOCS / "pictures" / "sampler_orders.png", dpi=110)


if __name__ == "__main__":
    main()
