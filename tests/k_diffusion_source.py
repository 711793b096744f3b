"""Definitions out of k-diffusion's files, without what these import: for comparisons in float64."""

import ast
import contextlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch


def definition(file, name):
    """A function or class by name; the test is skipped where k-diffusion is not installed."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    tree = ast.parse(Path(spec.origin).with_name(file).read_text())
    wanted = [node for node in tree.body if getattr(node, "name", "") in (name, "append_zero")]
    module = {"torch": torch, "nn": torch.nn, "math": math}
    exec(compile(ast.Module(wanted, []), file, "exec"), module)
    return module[name]


@contextlib.contextmanager
def float64():
    """The dtype of what a peer makes where it names none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
