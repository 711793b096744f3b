"""The page of faults lists every row, every test that is marked, and no other."""

import ast
import re
import runpy

from small import ROOT

ROWS = runpy.run_path(str(ROOT / "benchmarks" / "reliability.py"))["ROWS"]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def marked():
    """(row, test) of every marker in the tests."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text())
        owners = {id(inner): f"{one.name}::" for one in tree.body if isinstance(one, ast.ClassDef) for inner in one.body}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                for call in node.decorator_list:
                    if ast.unparse(call).startswith("pytest.mark.fault("):
                        yield (
                            call.args[0].value,
                            f"{path.name}::{owners.get(id(node), '')}{node.name}",
                        )


def test_every_row_has_a_test_and_every_marker_a_row():
    assert {row for row, _ in marked()} == set(ROWS)


def test_the_page_is_that_of_the_tests():
    listed = {
        (fault, test)
        for fault, tests in re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", PAGE, re.MULTILINE)
        for test in re.findall(r"`([^`]+)`", tests)
    }
    assert listed == {(ROWS[row][0], test) for row, test in marked()}, (
        "run benchmarks/reliability.py"
    )


def test_the_page_says_when_and_that_all_passed():
    made = r"^Made by `python benchmarks/reliability.py` on 20\d\d-\d\d-\d\d, Python \S+, as (root|a user): \d+ cases passed\.$"
    assert re.search(made, PAGE, re.MULTILINE)
