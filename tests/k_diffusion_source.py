"""k-diffusion past what its package imports: single definitions, and its samplers."""

import ast
import contextlib
import importlib.machinery
import importlib.util
import math
import sys
import types
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


def sampling():
    """Its module of samplers, past the package's `__init__`, which needs torchvision.

    It wants one function of the package's `utils`, which needs torchvision too: that function is run from
    its own source.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    for needed in ("scipy", "torchsde", "torchdiffeq"):
        pytest.importorskip(needed)
    (folder,) = spec.submodule_search_locations
    source = ast.parse(Path(folder, "utils.py").read_text())
    source.body = [node for node in source.body if getattr(node, "name", "") == "append_dims"]
    package, utils = types.ModuleType("kd"), types.ModuleType("kd.utils")
    package.__path__, package.utils = [folder], utils
    exec(compile(source, f"{folder}/utils.py", "exec"), vars(utils))
    modules = {"kd": package, "kd.utils": utils}
    loader = importlib.machinery.SourceFileLoader("kd.sampling", f"{folder}/sampling.py")
    found = types.ModuleType("kd.sampling")
    found.__package__ = "kd"
    sys.modules.update(modules)
    try:
        exec(loader.get_code("kd.sampling"), vars(found))
    finally:
        for name in modules:
            del sys.modules[name]
    return found


@contextlib.contextmanager
def float64():
    """The dtype of what a peer makes where it names none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
