"""`sfumato new-plugin`: a package with one working component, ready to be installed and changed."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
import tempfile
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from sfumato import __version__
from sfumato.admission import name_problem
from sfumato.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from sfumato.plugins import Catalogue

SUFFIX = ".py.template"
DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
"""A name that an index takes (PEP 508)."""

USES = {
    "data": (
        "{from: demo, set: {data: %s, evaluation: {metrics: [clip_similarity], studies: []}}}"
    ),
    "layout": "{from: demo}  # then: sfumato export runs/NAME FOLDER --layout %s",
    "metric": "{from: demo, set: {evaluation: {metrics: [%s]}}}",
    "objective": "{from: demo, set: {stages: {denoiser: {objective: %s}}}}",
    "study": "{from: demo, set: {evaluation: {studies: [%s]}}}",
    "text_encoder": (
        "{pipeline: shapes, set: {text_encoder: %s}, "
        "stages: {denoiser: {objective: denoising, steps: 2000, batch: 24}}}"
    ),
    "tracker": "{from: demo, set: {trackers: [%s]}}",
}
"""An experiment with the component, where it is more than the swap of a slot: the demo measures
what only its own data can tell, and its contrastive stage needs an encoder of pictures too.
"""


@attrs.frozen(kw_only=True)
class Names:
    """What the parts of a package are called, all from the name of the distribution."""

    distribution: str

    @property
    def module(self) -> str:
        """The package to import, which is the name of the component too."""
        return re.sub(r"[._-]+", "_", self.distribution).lower()

    @property
    def cls(self) -> str:
        """The class of the component."""
        return "".join(part[:1].upper() + part[1:] for part in self.module.split("_"))


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the distribution, such as soft-noise.")],
    kind: Annotated[str, typer.Option(help="Of the component, such as noise_schedule.")],
    out: Annotated[Path | None, typer.Option(help="The folder; by default ./NAME.")] = None,
) -> None:
    """Write a package with one working component of a kind, its test and its README."""
    if kind not in kinds():
        raise ConfigError(
            f"no kind is named {kind!r}", place="--kind", remedy=suggestion(kind, kinds())
        )
    names = Names(distribution=name)
    files = contents(names, kind)
    _check(names, kind, files, context.obj.catalogue)
    folder = out or Path(name)
    write(folder, files)
    typer.echo(f"{folder}: the {kind} {names.module!r} in {names.module}/__init__.py")
    typer.echo(f"Next: pip install -e {folder}, then sfumato check {name}")


def kinds() -> list[str]:
    """The kinds that have a template, sorted."""
    found = (entry.name for entry in _templates().iterdir())
    modules = (name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX))
    return sorted(name for name in modules if not name.startswith("test_"))


def contents(names: Names, kind: str) -> dict[str, str]:
    """The files of a package, by path."""
    use = USES.get(kind, f"{{from: demo, set: {{{kind}: %s}}}}") % names.module
    values = {
        "name": names.distribution,
        "component": names.module,
        "cls": names.cls,
        "kind": kind,
        "version": __version__,
        "experiment": use,
    }
    templates = {
        "pyproject.toml": "pyproject.toml.template",
        "README.md": "README.md.template",
        f"{names.module}/__init__.py": kind + SUFFIX,
        "tests/test_conformance.py": "test_conformance.py.template",
    }
    files = {
        path: Template((_templates() / template).read_text(encoding="utf-8")).substitute(values)
        for path, template in templates.items()
    }
    return {**files, f"{names.module}/py.typed": ""}


def write(folder: Path, files: dict[str, str]) -> None:
    """Writes all files or none: into a folder beside `folder`, which then takes its name.

    Raises:
        ConfigError: `folder` holds something, or cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        remedy = "name another folder with --out"
        raise ConfigError("is there and is no empty folder", place=str(folder), remedy=remedy)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-plugin-", dir=folder.parent) as scratch:
            draft = Path(scratch, folder.name)
            for path, text in files.items():
                draft.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
                draft.joinpath(path).write_text(text, encoding="utf-8")
            draft.replace(folder)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(folder)) from error


def _templates() -> Traversable:
    return resources.files("sfumato") / "templates"


def _check(names: Names, kind: str, files: dict[str, str], catalogue: Catalogue) -> None:
    """Raises ConfigError where a package of this name could not be installed and used."""
    name, module = names.distribution, names.module
    if not DISTRIBUTION.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name of a distribution",
            remedy="use letters, digits and, between them, - _ or .",
        )
    if not module.isidentifier() or {module, names.cls} & {*keyword.kwlist}:
        raise ConfigError(
            f"{name!r} gives the module {module!r}, which Python cannot import",
            remedy="begin with a letter, and use no keyword",
        )
    if problem := name_problem(module):
        raise ConfigError(f"{name!r} gives the component {module!r}, {problem}")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:
        raise ConfigError(f"a module {module!r} is installed already", remedy="use another name")
    if module in catalogue.names(kind):
        raise ConfigError(f"there is a {kind} {module!r} already", remedy="use another name")
    if _bound(files[f"{module}/__init__.py"]).count(names.cls) > 1:
        raise ConfigError(
            f"{name!r} gives the class {names.cls!r}, a name that the module needs itself",
            remedy="use another name",
        )


def _bound(source: str) -> list[str]:
    """Every name that a module imports, and that of every class."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = [n.name for node in nodes if isinstance(node, ast.ImportFrom) for n in node.names]
    return imported + [node.name for node in nodes if isinstance(node, ast.ClassDef)]
