"""The order of the house: core imports no plugin, plugins only public names, modules only what stands above them."""

import ast
import subprocess
import sys

import pytest

import sfumato
from sfumato import schema
from small import ROOT

ORDER = (
    "errors", "measurements", "records", "prediction", "randomness", "modules", "split", "interfaces", "bootstrap", "tables", "hookspecs",
    "watchers", "admission", "document", "plugins", "settings", "lock", "experiment", "streaming",
    "checkpoint", "claim", "references", "runs", "layers", "sweep", "registry", "schema", "trajectory", "compatibility", "engine", "memory",
    "forwards", "compiling", "sampling", "request", "editing", "pictures", "weak", "walk", "pipeline", "exchange", "evaluation", "interruption",
    "shards", "ranks", "drawing", "evaluations", "bad_examples", "content", "stage_keys", "encoded", "batches", "stage", "footprint", "resumption", "saving", "reuse", "loop", "training", "report", "reproduction", "replicates", "summary", "jobs", "sweep_targets", "sweep_runner", "search", "testing", "cli",
)  # fmt: skip
CORE = sorted((ROOT / "core" / "sfumato").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imports(path):
    """(module, names) of every import that runs: those for type checkers only are exempt."""
    tree = ast.parse(path.read_text())
    exempt = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exempt |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in exempt:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, [alias.name for alias in node.names]


def core_modules(path):
    for module, names in imports(path):
        if module == "sfumato":
            yield from (name for name in names or ["errors"] if name in ORDER)
        elif module.startswith("sfumato."):
            yield module.split(".")[1]


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT / "core")))
def test_core_reads_from_top_to_bottom_and_knows_no_plugin(path):
    assert not [m for m, _ in imports(path) if m.startswith("sfumato_")]
    own = path.relative_to(ROOT / "core" / "sfumato").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in core_modules(path):
        assert module == own or ORDER.index(module) < ORDER.index(own), f"{own} imports {module}"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT / "plugins")))
def test_plugins_import_public_names_and_no_other_plugin(path):
    own = path.relative_to(ROOT / "plugins").parts[0]
    for module, names in imports(path):
        if module.split(".")[0].startswith("sfumato_"):
            assert module.split(".")[0] == own
        if module == "sfumato":
            assert set(names) <= set(sfumato.__all__)
        assert not module.startswith("sfumato."), f"{module} is not public"


def test_neither_root_is_a_package():
    assert not (ROOT / "core" / "__init__.py").exists()
    assert not (ROOT / "plugins" / "__init__.py").exists()


def test_every_package_is_typed():
    for folder in [ROOT / "core" / "sfumato", *(ROOT / "plugins").iterdir()]:
        assert not folder.is_dir() or (folder / "py.typed").exists(), folder


def test_every_public_name_is_there():
    for name in sfumato.__all__:
        assert getattr(sfumato, name) is not None


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["schema"]])
def test_listing_imports_neither_torch_nor_transformers(arguments):
    program = (
        "import sys\nfrom sfumato.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_no_module_of_ours_names_a_host():
    for path in [
        *CORE,
        *PLUGINS,
        ROOT / "constraints.txt",
        ROOT / "Makefile",
        ROOT / "registry.yaml",
    ]:
        assert "https://" not in path.read_text().replace(schema.DIALECT, ""), path
