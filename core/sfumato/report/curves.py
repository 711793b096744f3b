"""Curves of what was logged, as SVG that a page takes in as it is.

Text and lines name no color of their own but the page's: so one drawing fits light and dark. A long
log is thinned to buckets, each shown by its mean, in a band from its least to its largest value: no
spike is lost.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import attrs
import numpy as np

from sfumato.errors import ConfigError

try:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ConfigError(
        "the curves of a report are drawn with matplotlib, which is not installed",
        remedy="pip install 'sfumato[plots]'",
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from sfumato.report.reading import Reported, Series

BUCKETS = 240
"""Points of a curve, at most."""
WIDE = 20.0
"""A number whose values differ by more than this factor is shown on a logarithmic axis ..."""
LINEAR = ("learning_rate", "seconds")
"""... but for those whose shape is known on a linear one."""
COLORS = 8
"""Colors that the page has for runs; more runs take them again, dashed."""
FIRST, LAST = ("loss",), ("gradient_norm", "learning_rate", "seconds")
"""Numbers that come before and after those that an objective adds."""

_INK, _FAINT = "#010203", "#010204"
"""Stand-ins, replaced by what the page calls its colors."""


@attrs.frozen(kw_only=True)
class Curve:
    """One number of one stage over all runs that logged it.

    Attributes:
        number: its name.
        svg: the drawing.
        text: the same in words, for whoever does not see it.
    """

    number: str
    svg: str
    text: str


def stages(runs: Sequence[Reported]) -> dict[str, list[Curve]]:
    """The curves of each stage, in the order of training."""
    names = dict.fromkeys(name for run in runs for name in run.stages)
    return {stage: list(_curves(stage, runs)) for stage in names}


def _curves(stage: str, runs: Sequence[Reported]) -> Iterator[Curve]:
    logged = {place: run.stages[stage] for place, run in enumerate(runs) if stage in run.stages}
    for number in ordered({name for series in logged.values() for name in series}):
        lines = {k: thinned(series, number) for k, series in logged.items() if number in series}
        words = "; ".join(
            f"{runs[k].name}: from {line.mean[0]:.3g} to {line.mean[-1]:.3g} "
            f"in {line.step[-1]:.0f} steps"
            for k, line in lines.items()
        )
        svg = drawing(lines, f"{stage}-{number}", logarithmic=number not in LINEAR)
        yield Curve(number=number, svg=svg, text=f"{number} of stage {stage}. {words}")


def ordered(names: set[str]) -> list[str]:
    """The loss first, then what the objective adds, then what every stage logs."""
    between = sorted(names - {*FIRST, *LAST})
    return [name for name in (*FIRST, *between, *LAST) if name in names]


@attrs.frozen(eq=False, kw_only=True)
class Line:
    """Buckets of a curve: the middle step of each, and the mean, least and largest value."""

    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def thinned(series: Series, number: str) -> Line:
    """At most `BUCKETS` points of what a stage logged, its first step being 1."""
    start = min(at[0] for at, _ in series.values())
    at, values = (np.asarray(column) for column in series[number])
    starts = np.unique(np.linspace(0, len(at), min(len(at), BUCKETS), endpoint=False).astype(int))
    count = np.diff([*starts, len(at)])
    return Line(
        step=np.add.reduceat(at, starts) / count - start + 1,
        mean=np.add.reduceat(values, starts) / count,
        low=np.minimum.reduceat(values, starts),
        high=np.maximum.reduceat(values, starts),
    )


def drawing(lines: Mapping[int, Line], name: str, *, logarithmic: bool) -> str:
    """An SVG of these lines, by the place of their runs.

    Args:
        lines: to draw.
        name: what the ids in it begin with, so that no two drawings of a page share one.
        logarithmic: whether the axis may be, where values are above 0 and differ widely.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained")
        axes: Any = figure.subplots()
        for place, line in lines.items():
            color = _series(place)
            if (line.high > line.low).any():
                axes.fill_between(line.step, line.low, line.high, color=color, alpha=0.18, lw=0)
            style = "-" if place < COLORS else "--"
            marker = "o" if len(line.step) == 1 else None
            axes.plot(line.step, line.mean, style, color=color, lw=1.4, marker=marker)
        least = min(float(line.low.min()) for line in lines.values())
        most = max(float(line.high.max()) for line in lines.values())
        if logarithmic and 0 < WIDE * least < most:
            axes.set_yscale("log")
        _style(axes)
        page = io.StringIO()
        bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(page, metadata=bare)
    return taken_in(page.getvalue(), name)


def taken_in(svg: str, name: str) -> str:
    """A drawing of matplotlib as a part of a page: no prologue, ids of its own, the page's colors
    and fonts.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace(_INK, "currentColor").replace(_FAINT, "var(--line)")
    for place in range(COLORS):
        svg = svg.replace(_series(place), f"var(--series-{place})")
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _series(place: int) -> str:
    """The stand-in for the color of a run."""
    return f"#0102{0x10 + place % COLORS:02x}"


def _style(axes: Any) -> None:
    axes.margins(x=0.02)
    axes.grid(color=_FAINT, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=_FAINT, labelcolor=_INK, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_FAINT)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
