"""Weights on disk: a folder of safetensors and a manifest with a SHA-256 for every file.

A checkpoint is written to a temporary folder beside its place, synced and renamed, so that it is
either whole or absent. Reading checks every file against the manifest before a tensor is used. No
pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

MANIFEST = "manifest.json"


def write(
    path: Path,
    modules: Mapping[str, Mapping[str, Tensor]],
    files: Mapping[str, bytes],
    facts: Mapping[str, Any],
) -> None:
    """Writes a checkpoint.

    Args:
        path: its folder, which must not exist.
        modules: state by slot; each becomes `SLOT.safetensors`.
        files: further files by name.
        facts: what else the manifest says.

    Raises:
        CheckpointError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        names = [f"{slot}.safetensors" for slot in modules]
        if clash := files.keys() & set(names):
            raise CheckpointError(f"two files are named {', '.join(clash)}", place=str(path))
        for name, state in zip(names, modules.values(), strict=True):
            _write_weights(temporary / name, state)
        for name, content in files.items():
            _write_synced(temporary / name, content)
        hashes = {name: _hash(temporary / name) for name in (*names, *files)}
        manifest = json.dumps({**facts, "files": hashes}, indent=1)
        _write_synced(temporary / MANIFEST, manifest.encode())
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot be written: {error.strerror}", place=str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def facts(path: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint says beside its hashes.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read.
    """
    return _manifest(path)[1]


def hashes(path: Path) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint, as its manifest says.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read.
    """
    return _manifest(path)[0]


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, bytes]]:
    """State by slot, and further files by name.

    Raises:
        CheckpointError: a file is missing, differs from its hash, or is not what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hashes, _ = _manifest(path)
    modules: dict[str, dict[str, Tensor]] = {}
    files: dict[str, bytes] = {}
    for name, wanted in hashes.items():
        checked = _checked(path, name, wanted)
        if name.endswith(".safetensors"):
            try:
                modules[name.removesuffix(".safetensors")] = load_file(checked)
            except SafetensorError as error:
                raise CheckpointError(
                    f"is not safetensors: {error}", place=str(path / name)
                ) from error
        else:
            files[name] = checked.read_bytes()
    return modules, files


def restore(module: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Loads state into a module.

    Raises:
        CheckpointError: names or shapes differ, of which it lists the first, or a value is not
            finite.
    """
    check_fit(module, state, place)
    check_finite(state, place, "take an earlier checkpoint")
    module.load_state_dict(dict(state))


def check_fit(module: nn.Module, state: Mapping[str, Tensor], place: str) -> None:
    """Raises CheckpointError where names or shapes differ, of which it lists the first."""
    own = module.state_dict()
    lines = [f"{name}: missing" for name in own if name not in state]
    lines += [f"{name}: not in the model" for name in state if name not in own]
    lines += [
        f"{name}: {tuple(state[name].shape)} here, {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if lines:
        shown = "\n  ".join(
            [*lines[:8], *([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])]
        )
        raise CheckpointError(f"holds another architecture:\n  {shown}", place=place)


def check_finite(state: Mapping[str, Tensor], place: str, remedy: str = "") -> None:
    """Raises CheckpointError where a value is not a finite number."""
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{name} is not finite", place=place, remedy=remedy)


def _manifest(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The hash of each file, and the facts."""
    try:
        manifest = dict(json.loads((path / MANIFEST).read_bytes()))
        return dict(manifest.pop("files")), manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = "is not a checkpoint: its manifest.json is missing or unreadable"
        raise CheckpointError(problem, place=str(path)) from error


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """As `_write_synced`; what is large is never held twice."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors leaves a file that only its owner reads
    save_file(tensors, path)
    path.chmod(mode)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, as `_write_synced` does the contents."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked(folder: Path, name: str, wanted: str) -> Path:
    """A file of a checkpoint, which is what the manifest says."""
    path = folder / name
    if Path(name).name != name or path.is_symlink():
        raise CheckpointError("the manifest names a path outside the checkpoint", place=str(path))
    try:
        found = _hash(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", place=str(path)) from error
    if found != wanted:
        raise CheckpointError(
            "differs from its hash in the manifest: it is damaged", place=str(path)
        )
    return path
