"""The site: what is generated says what the code says, and Sphinx has nothing to complain about."""

import importlib
import re
import subprocess
import sys

import pytest

import sfumato
from sfumato import plugins, settings
from sfumato.interfaces import KINDS
from small import ROOT

DOCS = ROOT / "docs"
OFFERS = plugins.load().offers
TREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.MULTILINE | re.DOTALL)


def title(offer):
    return f"{offer.component.kind}-{offer.component.name}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The pages as Sphinx reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        folder = tmp_path_factory.mktemp("site") / "source"
        importlib.import_module("build_site").stage(folder)
    return folder


@pytest.mark.parametrize("offer", OFFERS, ids=title)
def test_a_component_has_a_page_with_its_options_and_papers(source, offer):
    component = offer.component
    page = (source / "reference" / component.kind / f"{component.name}.md").read_text()
    rows = [line.replace(r"\|", "I") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(settings.fields(component))
    for row, (name, field) in zip(rows, settings.fields(component).items(), strict=True):
        said = settings.describe(field)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        default = said.default if said.default == "required" else f"`{said.default}`"
        assert cells == [f"`{name}`", said.type, said.bounds, default, said.doc]
    for paper in re.findall(r"arXiv:(\S+?)[,.]?$", component.__doc__, re.MULTILINE):
        assert f"](https://arxiv.org/abs/{paper})" in page
    assert "References:" not in page


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_leads_to_its_components_and_back(source, kind):
    concept = source / "concepts" / f"{kind.replace('_', '-')}.md"
    reference = (source / "reference" / f"{kind}.md").read_text()
    assert f"](../concepts/{concept.name})" in reference
    for offer in OFFERS:
        if offer.component.kind == kind:
            assert f"](../reference/{kind}/{offer.component.name}.md)" in concept.read_text()
            assert f"]({kind}/{offer.component.name}.md)" in reference


def test_every_public_name_is_documented_once(source):
    texts = [(source / "reference" / f"{name}.md").read_text() for name in ("python", "records")]
    named = re.findall(r"^\.\. auto\w+:: sfumato\.(\w+)$", "\n".join(texts), re.MULTILINE)
    assert sorted(named) == sorted(sfumato.__all__)
    assert "autoclass:: sfumato.TextEmbedding" in texts[1]


def test_navigation_reaches_every_page(source):
    reached, waiting = set(), [source / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page.resolve())
        for tree in TREE.findall(page.read_text()):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            waiting += [
                (page.parent / name.removesuffix(".md")).with_suffix(".md") for name in names
            ]
    assert reached == {page.resolve() for page in source.rglob("*.md")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, DOCS / "build_site.py", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for page in ("index", "readme", "reference/noise_schedule/linear", "adr/0007-philox"):
        assert (tmp_path / "site" / f"{page}.html").is_file()


def test_make_builds_it_where_git_does_not_look():
    recipe = (ROOT / "Makefile").read_text()
    assert "docs/build_site.py build/docs" in recipe
    assert "build/" in (ROOT / ".gitignore").read_text().splitlines()
