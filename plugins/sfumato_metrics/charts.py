"""Charts of what a study found: lines with their intervals, a plane, a frontier."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from sfumato_metrics.figures import EDGE, INK, chart, rendered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from sfumato import Measured

BLUE, ORANGE, GREEN = "#2166ac", "#d95f02", "#1b7837"
ORDERED = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")
"""The map viridis in eight steps, light to dark."""


def geometry(
    times: Sequence[float],
    angles: Sequence[Measured],
    lengths: Sequence[Measured],
    plane: Mapping[str, Any],
) -> Image.Image:
    """Angle and length over t, and a plane.

    Args:
        times: one for each number.
        angles: in degrees.
        lengths: root mean squares.
        plane: `points`, [x, y] by name, `t` and `prompt`.
    """
    figure = chart(12.5, 3.9)
    over_t, across, flat = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
    _band(over_t, times, angles, "angle of eps_cond and eps_uncond, degrees")
    _band(across, times, lengths, "length of eps_cond - eps_uncond")
    _plane(flat, plane)
    return rendered(figure)


def _band(axes: Any, times: Sequence[float], numbers: Sequence[Measured], title: str) -> None:
    low, high = ([getattr(number, side) for number in numbers] for side in ("low", "high"))
    axes.fill_between(times, low, high, color=BLUE, alpha=0.2, lw=0)
    axes.plot(times, [number.value for number in numbers], color=BLUE, lw=1.8)
    _styled(axes, title, "t: noise at 1, picture at 0")
    axes.set(xlim=(1, 0), ylim=(0, None))


def _plane(axes: Any, plane: Mapping[str, Any]) -> None:
    points = plane["points"]
    (x0, y0), (x1, y1) = points["uncond"], points["guided"]
    axes.plot([x0, x1], [y0, y1], color=EDGE, lw=1, zorder=1)
    colors = {"uncond": INK, "cond": BLUE, "guided": ORANGE, "noise": GREEN}
    for name, (x, y) in points.items():
        axes.plot(x, y, "*" if name == "noise" else "o", color=colors[name], ms=9, zorder=2)
        label = "true noise" if name == "noise" else name
        axes.annotate(
            label, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=9,
            color=colors[name],
        )  # fmt: skip
    title = textwrap.fill(f"the plane at t = {plane['t']:.2f}: {plane['prompt']}", 52)
    _styled(axes, title, "along eps_cond - eps_uncond")
    axes.set_ylabel("across it", fontsize=9, color=INK)
    middle = [(low + high) / 2 for low, high in (axes.get_xlim(), axes.get_ylim())]
    reach = 0.7 * max(high - low for low, high in (axes.get_xlim(), axes.get_ylim()))
    axes.set(xlim=_around(middle[0], reach), ylim=_around(middle[1], reach), aspect="equal")


def _around(middle: float, reach: float) -> tuple[float, float]:
    return middle - reach, middle + reach


def frontier(
    rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], knees: Mapping[str, Any]
) -> Image.Image:
    """Alignment against diversity and fidelity: a line for each s_neg, along s_pos.

    Args:
        rows: `positive`, `negative`, and a `Measured` for each role.
        metrics: the names of the metrics by role, `alignment` first.
        knees: the row to be ringed, by role.
    """
    named, *others = (
        role if role == metric else f"{role}: {metric}" for role, metric in metrics.items()
    )
    costs = dict(zip(list(metrics)[1:], others, strict=True))
    figure = chart(1.2 + 5.6 * len(costs), 4.6)
    scales = sorted({row["negative"] for row in rows})
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (cost, title) in zip(panels, costs.items(), strict=True):
        for place, scale in enumerate(scales):
            color = ORDERED[-1 - place * (len(ORDERED) - 2) // max(len(scales) - 1, 1)]
            line = [row for row in rows if row["negative"] == scale]
            _line(axes, line, cost, color, f"s_neg {scale:g}")
        if (knee := knees.get(cost)) is not None:
            x, y = knee[cost].value, knee["alignment"].value
            axes.plot(x, y, "o", mfc="none", mec=ORANGE, mew=2, ms=15, zorder=4)
            axes.annotate(
                f"knee: s_pos {knee['positive']:g}, s_neg {knee['negative']:g}", (x, y), (12, -14),
                textcoords="offset points", fontsize=9, color=ORANGE,
            )  # fmt: skip
        _styled(axes, "", title)
    panels[0].set_ylabel(named, fontsize=9, color=INK)
    panels[0].legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(
        "What guidance buys and costs, at the same noise; labels are s_pos", fontsize=11
    )
    return rendered(figure)


def _line(axes: Any, rows: Sequence[Any], cost: str, color: str, label: str) -> None:
    x, y = ([row[key].value for row in rows] for key in (cost, "alignment"))
    axes.errorbar(
        x, y, xerr=_reach(rows, cost), yerr=_reach(rows, "alignment"), fmt="o-", color=color,
        ecolor=color, elinewidth=0.6, lw=1.4, ms=5, label=label,
    )  # fmt: skip
    for row, place in zip(rows, zip(x, y, strict=True), strict=True):
        axes.annotate(
            f"{row['positive']:g}", place, (5, 5), textcoords="offset points", fontsize=8,
            color=color,
        )  # fmt: skip


def _reach(rows: Sequence[Any], key: str) -> list[list[float]]:
    """How far intervals reach below and above their values."""
    numbers = [row[key] for row in rows]
    return [
        [max(n.value - n.low, 0.0) for n in numbers],
        [max(n.high - n.value, 0.0) for n in numbers],
    ]


def _styled(axes: Any, title: str, below: str) -> None:
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(below, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, color=EDGE)
    axes.grid(color="#eeeeee", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(EDGE)
