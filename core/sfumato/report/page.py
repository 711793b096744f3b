"""Fills the page: one HTML file that needs nothing else, every text in it escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import jinja2
import yaml
from markupsafe import Markup

import sfumato
from sfumato.report import comparing, curves
from sfumato.report.reading import Picture, Reported

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
KNOWN = ("running", "completed", "preempted", "failed")
HEADINGS = {
    "problems": "What cannot be shown",
    "facts": "Facts",
    "results": "Results",
    "settings": "Settings",
    "curves": "Curves",
    "samples": "Samples",
    "studies": "How it works, in the model's own numbers",
}


@attrs.frozen(eq=False, kw_only=True)
class Study:
    """The pictures of one study, each with its run, and the question that it answers."""

    question: str
    pictures: Sequence[tuple[Reported, Picture]]


def render(runs: Sequence[Reported], questions: Mapping[str, str]) -> str:
    """The page.

    Args:
        runs: at least one.
        questions: what studies ask, by their name.
    """
    content: dict[str, Any] = {
        "facts": comparing.facts(runs),
        "results": comparing.results(runs),
        "settings": [run for run in runs if run.settings],
        "curves": curves.stages(runs),
        "samples": [(run, sheets) for run in runs if (sheets := list(run.sheets()))],
        "studies": _studies(runs, questions),
    }
    # Last, since whatever was to be shown above may have been found broken.
    content["problems"] = [run for run in runs if run.problems]
    sections = {name: heading for name, heading in HEADINGS.items() if content[name]}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"base64": _base64, "words": _words, "yaml": _yaml}
    page = environment.get_template("page.html.jinja").render(
        {
            **content,
            "differences": comparing.differences(runs),
            "runs": runs,
            "sections": sections,
            "title": _title(runs),
            "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
            "colors": curves.COLORS,
            "known": KNOWN,
            "version": sfumato.__version__,
        }
    )
    return f"{page}\n"


def _title(runs: Sequence[Reported]) -> str:
    names = [run.name for run in runs]
    if len(names) <= 3:
        return " and ".join(", ".join(names).rsplit(", ", 1))
    return f"{len(names)} runs"


def _studies(runs: Sequence[Reported], questions: Mapping[str, str]) -> dict[str, Study]:
    found: dict[str, list[tuple[Reported, Picture]]] = {}
    for run in runs:
        for picture in run.studies():
            found.setdefault(picture.name, []).append((run, picture))
    return {
        name: Study(question=questions.get(name, ""), pictures=found[name])
        for name in sorted(found)
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _words(name: str) -> str:
    """A name as a heading."""
    return name.replace("_", " ").capitalize()


def _yaml(settings: Any) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
