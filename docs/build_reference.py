"""The reference, made from the code: a page for each component, and the Python interface.

Pages are MyST Markdown. What a page says of an option is what `sfumato describe` says.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import sfumato
from sfumato import settings
from sfumato.interfaces import KINDS, Component

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.plugins import Catalogue, Offer

PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
NO_CLASSES = {
    "Denoise": "sfumato.interfaces",
    "PredictionType": "sfumato.prediction",
    "hookimpl": "sfumato.hookspecs",
}
"""Public names that are neither classes nor functions, and the modules that define them."""
HEADER = "| Option | Type | Bounds | Default | Meaning |\n|---|---|---|---|---|"


def write(folder: Path, catalogue: Catalogue) -> None:
    """Writes the reference of a catalogue into `folder`, `index.md` on top."""
    kinds = sorted(KINDS)
    pages = {"python": python("sfumato", without="sfumato.records")}
    pages["records"] = python("sfumato.records")
    for offer in catalogue.offers:
        pages[f"{offer.component.kind}/{offer.component.name}"] = component(offer)
    for interface in KINDS.values():
        offers = [o for o in catalogue.offers if o.component.kind == interface.kind]
        pages[interface.kind] = kind(interface, offers)
    pages["index"] = index(kinds)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def index(kinds: list[str]) -> str:
    """The front page of the reference."""
    return "\n".join(
        [
            "# Reference",
            "",
            "Made from the code of the installed version.",
            "",
            toctree(["python", "records"], ":caption: Python", ":maxdepth: 1"),
            toctree(kinds, ":caption: Components by kind", ":maxdepth: 1"),
        ]
    )


def kind(interface: type[Component], offers: list[Offer]) -> str:
    """The page of a kind: what it is, and its components."""
    concept = f"../concepts/{interface.kind.replace('_', '-')}.md"
    names = sorted(offer.component.name for offer in offers)
    return "\n".join(
        [
            f"# {interface.kind}",
            "",
            marked(inspect.cleandoc(interface.__doc__ or "")),
            "",
            f"[Idea, contract and how to write one]({concept})",
            "",
            built_in(interface.kind, offers, ""),
            "",
            toctree([f"{interface.kind}/{name}" for name in names], ":hidden:"),
        ]
    )


def built_in(kind: str, offers: list[Offer], folder: str) -> str:
    """A line for each component of a kind; `folder` leads to the reference."""
    return "\n".join(
        f"- [`{c.name}`]({folder}{kind}/{c.name}.md): {marked(summary(c))}"
        for c in sorted((offer.component for offer in offers), key=lambda c: c.name)
    )


def component(offer: Offer) -> str:
    """The page of a component: what it computes, its options, its papers."""
    cls = offer.component
    about, _, papers = inspect.cleandoc(cls.__doc__ or "").partition("References:\n")
    options = [
        [f"`{name}`", said.type, said.bounds, code(said.default), said.doc]
        for name, field in settings.fields(cls).items()
        for said in [settings.describe(field)]
    ]
    table = [HEADER, *("| " + " | ".join(map(cell, row)) + " |" for row in options)]
    parts = [
        f"# {cls.name}",
        f"*A component of kind [{cls.kind}](../{cls.kind}.md), "
        f"`{cls.__module__}.{cls.__qualname__}` of {offer.distribution}.*",
        marked(about),
        "## Options\n\n" + ("\n".join(table) if options else "None."),
    ]
    if papers:
        parts.append("## References\n\n" + "\n".join(f"- {marked(one)}" for one in entries(papers)))
    return "\n\n".join(parts) + "\n"


def summary(cls: type) -> str:
    """The first paragraph of its docstring, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def entries(papers: str) -> list[str]:
    """Papers, one a line; a line that ends with a comma goes on in the next."""
    return re.sub(r",\n\s*", ", ", inspect.cleandoc(papers)).splitlines()


def marked(text: str) -> str:
    """Plain text as Markdown."""
    return linked(re.sub(r"(?<!`)([*<])(?![^`\n]*`)", r"\\\1", text))


def linked(text: str) -> str:
    """Markdown in which a paper's id leads to the paper."""
    return PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def code(default: str) -> str:
    """A default as code; that there is none, as a word."""
    return default if default == "required" else f"`{default}`"


def cell(text: str) -> str:
    """Text that does not end its cell."""
    return text.replace("|", r"\|")


def toctree(names: list[str], *options: str) -> str:
    """Navigation to pages."""
    return "\n".join(["```{toctree}", *options, "", *names, "```", ""])


def python(package: str, without: str = "") -> str:
    """The public names whose module lies in `package`, a section for each module."""
    found: dict[str, list[str]] = {}
    for name in sfumato.__all__:
        found.setdefault(home(name), []).append(name)
    parts = ["# Records" if package != "sfumato" else "# Python interface"]
    for module in sorted(found):
        if module.startswith(package) and module != without:
            about = inspect.getdoc(__import__(module, fromlist=["_"])) or ""
            heading = "" if module == package else f"## {module}\n\n"
            parts.append(heading + marked(about))
            parts.append("\n".join(["```{eval-rst}", *map(directive, found[module]), "```"]))
    return "\n\n".join(parts) + "\n"


def home(name: str) -> str:
    """The module in which a public name is defined."""
    return NO_CLASSES.get(name) or str(getattr(sfumato, name).__module__)


def directive(name: str) -> str:
    """What makes Sphinx document a name of sfumato."""
    value = getattr(sfumato, name)
    if inspect.isclass(value):
        return f".. autoclass:: sfumato.{name}\n   :members:\n"
    if inspect.isfunction(value):
        return f".. autofunction:: sfumato.{name}\n"
    return f".. autodata:: sfumato.{name}\n   :no-value:\n"
