"""The documentation keeps its word: blocks run, shown output is what is printed, links lead somewhere.

Each page is run from top to bottom in a folder of its own that holds `registry.yaml`, the registry of
`small` under the names of the one at the root, and `runs/demo`, a finished run.

    python    is executed; the blocks of a page share one namespace
    yaml      is read by the strict reader; with `version:` it is a whole registry
    toml      is parsed
    sh        each line is a command, which must succeed
    console   the lines after `$ ` likewise; the lines below it are its output, `...` being anything;
              output that begins with `error: ` belongs to a command that must fail

`<!-- file: NAME -->` before a block means that it is written to NAME, which a later line must use.
"""

import contextlib
import doctest
import io
import re
import shlex
import shutil
import sys
import tomllib
import types
import warnings

import attrs
import pytest
import typer

import sfumato
from sfumato import MetricState, Registry, Split, cli, document, modules
from sfumato.interfaces import KINDS
from small import ROOT, SMALL

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?:<!-- file: (?P<file>\S+) -->\n)?(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=fence)\s*$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LINES_OF_A_FILE = 40
NOT_RUN = (
    "git switch ",
    "git clone ",
    "cd ",
    "source .venv/bin/activate",
    "pip install 'sfumato[",
    "torchrun ",
)
"""Commands that lead to a state in which a page's folder already is."""
MINUTES = ("sweep", "reproduce")
"""Commands that have stories of their own, and of which a page is checked for the arguments alone."""
SHELL = {"|", ">", "<", "&", "&&", ";"}
"""What would make a line more than one command."""
RENAMED = (("  small:", "  demo:"), ("from: small", "from: demo"), ("  cosine:", "  demo-cosine:"),
           ("  strong:", "  demo-strong:"),
           ("  demo-strong:", "  emoji-64: {from: demo}\n  demo-strong:"))  # fmt: skip


def names(page):
    return str(page.relative_to(ROOT))


@attrs.frozen
class Block:
    line: int
    language: str
    text: str
    file: str | None


def blocks(page):
    text = page.read_text()
    return [
        Block(text.count("\n", 0, m.start("text")) + 1, m["language"], m["text"], m["file"])
        for m in FENCE.finditer(text)
    ]


def commands(block):
    """(command, output shown below it or None) of each line that is to be run."""
    text = re.sub(r"\\\n\s*", "", block.text)
    if block.language == "sh":
        for line in filter(str.strip, text.splitlines()):
            yield line, None
        return
    first, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not first, f"a console block begins with a command, not with {first!r}"
    for part in parts:
        command, _, output = part.partition("\n")
        yield command, output


class Page:
    """A page on its way from top to bottom."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.module = types.ModuleType("page")
        self.waiting = set()
        monkeypatch.setitem(sys.modules, "page", self.module)

    def take(self, block, path):
        if block.file is not None:
            path.joinpath(block.file).parent.mkdir(parents=True, exist_ok=True)
            path.joinpath(block.file).write_text(block.text)
            self.waiting.add(block.file)
            return
        match block.language:
            case "python":
                code = compile("\n" * (block.line - 1) + block.text, "page", "exec")
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(code, vars(self.module))
            case "yaml":
                document.read(block.text, "page")
                if block.text.startswith("version:"):
                    path.joinpath("page.yaml").write_text(block.text)
                    Registry.load(path / "page.yaml")
            case "toml":
                tomllib.loads(block.text)
            case "sh" | "console":
                found = list(commands(block))
                assert found, "no command"
                for command, output in found:
                    self.command(command, output, path)
            case _:
                pytest.fail(f"line {block.line}: blocks of {block.language!r} are not checked")

    def command(self, command, output, path):
        program, *arguments = shlex.split(command, comments=True)
        program = program.removeprefix(".venv/bin/")
        self.waiting -= set(arguments)
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert arguments, command
            assert set(arguments) <= set(targets), command
        elif command.startswith("pip install -e "):
            self.install(path / arguments[-1])
        elif program == "sfumato" and arguments[0] in MINUTES:
            known = typer.main.get_command(cli.app)
            known.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        elif program == "sfumato" and not SHELL & set(arguments):
            self.run(command, arguments, output)
        else:
            assert command.startswith(NOT_RUN), f"{command!r} is not checked"

    def run(self, command, arguments, output):
        printed = io.StringIO()
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as end,
        ):
            # True of the run here, which has seen ten steps, and not of one that a reader trains.
            warnings.filterwarnings("ignore", ".* pictures are saturated")
            # pytest would keep them to itself; the command says how they are shown.
            warnings.showwarning = lambda *facts: printed.write(warnings.formatwarning(*facts[:4]))
            cli.main(arguments)
        got = printed.getvalue()
        fails = output is not None and output.startswith("error: ")
        assert bool(end.value.code) == fails, f"{command}\nended with {end.value.code}:\n{got}"
        if output is not None:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(output, got, flags), f"{command}\n{got}"

    def install(self, folder):
        """What an editable install leaves behind: the folder on the path, and its entry points."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        facts = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        facts.mkdir()
        facts.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = [f"{name} = {value}" for name, value in project["entry-points"]["sfumato"].items()]
        facts.joinpath("entry_points.txt").write_text("\n".join(["[sfumato]", *lines]))
        self.monkeypatch.syspath_prepend(folder)
        self.waiting = {file for file in self.waiting if not file.startswith(f"{folder.name}/")}


@pytest.fixture
def desk(tmp_path, monkeypatch, small_run):
    """A page's folder."""
    text = SMALL
    for old, new in RENAMED:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "registry.yaml").write_text(text)
    shutil.copytree(small_run, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("always::UserWarning:sfumato")  # a page may show a warning
@pytest.mark.parametrize("page", PAGES, ids=names)
def test_every_block_of_a_page_does_what_the_page_says(page, desk, monkeypatch):
    found = blocks(page)
    assert page.read_text().count("```") == 2 * len(found), "a block that cannot be made out"
    if not found:
        return
    state = Page(monkeypatch)
    modules = set(sys.modules)
    try:
        for block in found:
            state.take(block, desk)
    finally:
        for name in set(sys.modules) - modules:
            if str(desk) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
    assert not state.waiting, f"written but never used: {state.waiting}"


def test_the_names_in_the_examples_are_those_of_the_registry(desk):
    ours = Registry.load(ROOT / "registry.yaml")
    assert set(Registry.load("registry.yaml").experiments) <= set(ours.experiments)
    assert set(ours.experiment("demo").stages) == {"clip", "denoiser"}
    assert ("guidance", "negative") in ours.entries


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```\nx\n```\n", "blocks of '' are not checked"),
        ("```rust\nx\n```\n", "blocks of 'rust' are not checked"),
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```yaml\na: &b 1\n```\n", "anchors"),
        ("```yaml\nversion: 2\n```\n", "expected version: 1"),
        ("```sh\nmake coffee\n```\n", "make coffee"),
        ("```sh\nrm -rf /\n```\n", "is not checked"),
        ("```sh\nsfumato show nothing\n```\n", "no experiment is named 'nothing'"),
        ("```sh\nsfumato plugins | wc -l\n```\n", "is not checked"),
        ("```console\n$ sfumato plugins\nnone\n```\n", "noise_schedule"),
        ("```console\n$ sfumato plugins\nerror: none\n```\n", "ended with 0"),
    ],
)
def test_a_wrong_block_is_seen(text, complaint, desk, monkeypatch):
    page = desk / "page.md"
    page.write_text(text)
    (block,) = blocks(page)
    with pytest.raises((Exception, pytest.fail.Exception), match=re.escape(complaint)):
        Page(monkeypatch).take(block, desk)


def test_a_plugin_in_one_file_is_short():
    files = {b.file: b.text for b in blocks(ROOT / "docs" / "write-a-plugin.md") if b.file}
    assert len(files["power.py"].splitlines()) <= LINES_OF_A_FILE


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """(file, anchor) of every link of a page that stays in the repository."""
    text = FENCE.sub("", page.read_text())
    for target in LINK.findall(text):
        if not target.startswith(("https://", "http://", "mailto:")):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.is_relative_to(ROOT), f"{target} is outside of the repository"
        assert target.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(target), f"{target} has no heading {anchor!r}"


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    listed = {target for target, _ in links(index)}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= listed


BUILT = {
    "text_encoder": (modules.TextEncoderModule, modules.JointEncoderModule),
    "denoiser": (modules.DenoiserModule,),
    "autoencoder": (modules.AutoencoderModule,),
    "objective": (modules.ObjectiveModule,),
    "data": (Split,),
    "metric": (MetricState,),
}
"""What `build` or `split` of a kind returns has a contract too."""


@pytest.mark.parametrize("interface", KINDS.values(), ids=lambda i: i.kind)
def test_a_kind_has_a_page_that_states_its_contract_and_writes_one(interface):
    path = ROOT / "docs" / "concepts" / f"{interface.kind.replace('_', '-')}.md"
    text = path.read_text()
    assert text.startswith(f"# {interface.kind.replace('_', ' ').capitalize()}\n")
    contract = text.partition("## Contract\n")[2].partition("\n## ")[0]
    for cls in (interface, *BUILT.get(interface.kind, ())):
        for method in cls.__abstractmethods__ - {"__len__", "log_scale"}:
            assert re.search(rf"(`|\.|    ){method}\b", contract), f"{path.name} lacks {method}"
    code = "".join(block.text for block in blocks(path) if block.language == "python")
    bases = re.findall(r"^class \w+\((?:sfumato\.)?(\w+)\):", code, re.MULTILINE)
    assert any(issubclass(getattr(sfumato, base), interface) for base in bases)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=names)
def test_a_decision_is_short_and_says_what_it_costs(page):
    text = page.read_text()
    assert re.match(r"# \d{4} ", text)
    assert len(text.splitlines()) <= 30
    parts = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
    assert parts == ["Context", "Choice", "Cost"]
