"""docs/hooks.md says what the code says: every hook with its signature, every record with its fields."""

import ast
import inspect
import re

import attrs
import pytest

from sfumato import hookspecs, records
from small import ROOT

PAGE = (ROOT / "docs" / "hooks.md").read_text()
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("sfumato_")}


def documented():
    """Name -> signature of every function in the page's blocks, as it is written."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    functions = (node for block in blocks for node in ast.walk(ast.parse(block)))
    return {
        node.name: f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        for node in functions
        if isinstance(node, ast.FunctionDef)
    }


def signature(hook):
    return str(inspect.signature(hook)).replace("'", "")


def test_the_page_shows_every_hook_with_its_signature():
    assert len(HOOKS) == 7
    assert documented() == {name: signature(hook) for name, hook in HOOKS.items()}


@pytest.mark.parametrize("name", [name for name in HOOKS if name != "sfumato_components"])
def test_the_page_shows_every_field_of_a_record(name):
    ((_, parameter),) = inspect.signature(HOOKS[name]).parameters.items()
    record = parameter.annotation
    (listed,) = re.findall(rf"`{record}` has\n\n((?:- .*\n)+)", PAGE)
    fields = re.findall(r"^- `(\w+): (.+?)`: \S", listed, re.MULTILINE)
    assert len(fields) == len(listed.splitlines())
    assert fields == [(f.name, f.type) for f in attrs.fields(getattr(records, record))]
