"""Builds the site: `python docs/build_site.py build/docs`.

The pages are Markdown that also reads well in an editor and on a code host. A copy of them gets
what only a site has: links between their new places, the navigation, which is that of `index.md`,
names above the files that a page writes, the built-in components under each concept, and the
reference.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import build_reference
from sphinx.cmd.build import main as sphinx

from sfumato import plugins
from sfumato.interfaces import KINDS

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FRONT = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
FENCE = re.compile(r"(^`{3,}.*?^`{3,}\s*?$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\[[^\]]*\])\(([^)\s#:]+)(#[^)\s]*)?\)")
NAMED = re.compile(r"^<!-- file: (\S+) -->\n```(\w+)\n", re.MULTILINE)


def stage(folder: Path) -> None:
    """Writes all that Sphinx reads into `folder`."""
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, staged in FRONT.items():
        shutil.copy(ROOT / name, folder / staged)
    places = {path: folder / path.relative_to(DOCS) for path in DOCS.rglob("*")}
    places |= {ROOT / name: folder / staged for name, staged in FRONT.items()}
    for page, staged_page in places.items():
        if page.suffix == ".md":
            staged_page.write_text(_page(page, staged_page, places))
    catalogue = plugins.load()
    build_reference.write(folder / "reference", catalogue)
    for interface in KINDS.values():
        offers = [offer for offer in catalogue.offers if offer.component.kind == interface.kind]
        with (folder / "concepts" / f"{interface.kind.replace('_', '-')}.md").open("a") as page:
            listed = build_reference.built_in(interface.kind, offers, "../reference/")
            page.write(f"\n## Built in\n\n{listed}\n")
    with (folder / "index.md").open("a") as page:
        page.write("\n" + _navigation((DOCS / "index.md").read_text(), places))


def _page(page: Path, staged_page: Path, places: dict[Path, Path]) -> str:
    def moved(link: re.Match[str]) -> str:
        label, target, anchor = link.groups()
        place = places.get((page.parent / target).resolve())
        if place is None:
            return label[1:-1]
        return f"{label}({os.path.relpath(place, staged_page.parent)}{anchor or ''})"

    parts = FENCE.split(page.read_text())
    text = "".join(
        p if p.startswith("```") else build_reference.linked(LINK.sub(moved, p)) for p in parts
    )
    return NAMED.sub(r"```{code-block} \2\n:caption: \1\n\n", text)


def _navigation(index: str, places: dict[Path, Path]) -> str:
    """A toctree for each section of the index, of the pages that it lists; `Reference` is made."""
    staged = places[DOCS / "index.md"].parent
    trees = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        listed = re.findall(r"^- \[[^\]]*\]\(([^)\s#]+\.md)", section, re.MULTILINE)
        names = [os.path.relpath(places[(DOCS / target).resolve()], staged) for target in listed]
        caption = section.partition("\n")[0]
        names += ["reference/index"] * (caption == "Reference")
        trees.append(build_reference.toctree(names, f":caption: {caption}", ":hidden:"))
    return "\n".join(trees)


def main(out: str) -> int:
    """Builds into `out`; warnings are errors."""
    with tempfile.TemporaryDirectory() as folder:
        stage(Path(folder, "source"))
        doctrees = str(Path(folder, "doctrees"))
        options = ["-W", "--keep-going", "--quiet", "-b", "html", "-c", str(DOCS), "-d", doctrees]
        shutil.rmtree(out, ignore_errors=True)
        return sphinx([*options, str(Path(folder, "source")), out])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
