"""Weights on disk: a folder of safetensors and a manifest with a SHA-256 for every file.

A checkpoint is written to a temporary folder beside its place, synced and renamed, so that it is
either whole or absent; what is not finite, or does not fit on the disk, is not written at all.
Reading checks every file against the manifest before a tensor is used. No pickle is ever read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor, nn

MANIFEST, SEAL = "manifest.json", "sha256"
TRAINING = "training"
"""The name among the slots of what only a resumed stage needs."""
MARGIN = 1 << 16
"""Bytes beside tensors and files: headers, the manifest, folders."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        CheckpointError: it cannot be written, or a value is not finite; nothing is left behind.
    """
    from sfumato import streaming

    names = [f"{slot}.safetensors" for slot in modules]
    if clash := files.keys() & set(names):
        raise CheckpointError(f"two files are named {', '.join(clash)}", place=str(path))
    needed = MARGIN + sum(map(len, files.values())) + sum(map(streaming.size, modules.values()))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        _check_room(temporary, needed)
        hashes = {
            name: streaming.write(temporary / name, state)
            for name, state in zip(names, modules.values(), strict=True)
        }
        for name, content in files.items():
            _write_synced(temporary / name, content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        _write_synced(temporary / MANIFEST, sealed({**facts, "files": hashes}))
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        problem, remedy = f"cannot be written: {error.strerror}", ""
        if error.errno in FULL:
            problem += f" ({needed:,} bytes are needed)"
            remedy = "make room; the checkpoint before it is whole"
        raise CheckpointError(problem, place=str(path), remedy=remedy) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as its file has it, with its own SHA-256."""
    return json.dumps({**manifest, SEAL: _seal(manifest)}, indent=1).encode()


def verify(path: Path) -> None:
    """Reads every file back, from the disk where the system lets us, and compares it.

    Raises:
        CheckpointError: a file is missing, or differs from its hash.
    """
    for name, wanted in _manifest(path)[0].items():
        _checked(path, name, wanted, from_disk=True)


def remove(path: Path) -> None:
    """Removes a checkpoint; nobody sees one that is half there."""
    leaving = path.with_name(f".{path.name}.{os.getpid()}")
    path.rename(leaving)
    shutil.rmtree(leaving)


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed while they wrote or removed have left in a folder of
    checkpoints.
    """
    for unfinished in folder.glob(".*.*"):
        shutil.rmtree(unfinished)


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


def identity(path: Path) -> str:
    """A SHA-256 that stands for all of a checkpoint: that of its manifest, as it says itself.

    Raises:
        CheckpointError: there is no manifest, or it cannot be read.
    """
    hashes, facts = _manifest(path)
    return _seal({**facts, "files": hashes})


def read(
    path: Path, without: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensor]], dict[str, bytes]]:
    """State by slot, but for the slots that are not wanted, and further files by name.

    Raises:
        CheckpointError: a file is missing, differs from its hash, or is not what its name says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hashes, _ = _manifest(path)
    modules: dict[str, dict[str, Tensor]] = {}
    files: dict[str, bytes] = {}
    for name, wanted in hashes.items():
        slot = name.removesuffix(".safetensors")
        if slot in without:
            continue
        checked = _checked(path, name, wanted)
        if slot != name:
            try:
                modules[slot] = load_file(checked)
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
    from sfumato import streaming

    for name, tensor in state.items():
        if not streaming.finite(tensor):
            raise CheckpointError(f"{name} is not finite", place=place, remedy=remedy)


def _manifest(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The hash of each file, and the facts."""
    try:
        manifest = dict(json.loads((path / MANIFEST).read_bytes()))
        seal, whole = manifest.pop(SEAL), _seal(manifest)
        hashes = dict(manifest.pop("files"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"is not a checkpoint: its {MANIFEST} is missing or unreadable"
        raise CheckpointError(problem, place=str(path)) from error
    if seal != whole:
        raise CheckpointError(
            "differs from its own hash: it is damaged", place=f"{path / MANIFEST}"
        )
    return hashes, manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_room(folder: Path, needed: int) -> None:
    """Raises CheckpointError where the disk of a folder has fewer bytes than are needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"needs {needed:,} bytes, and the disk has {free:,} left",
            place=str(folder.parent),
            remedy="make room; the checkpoint before it is whole",
        )


def _hash(path: Path, from_disk: bool) -> str:
    with path.open("rb") as file:
        if from_disk and hasattr(os, "posix_fadvise"):  # forget what is kept in memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
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


def _checked(folder: Path, name: str, wanted: str, from_disk: bool = False) -> Path:
    """A file of a checkpoint, which is what the manifest says."""
    path = folder / name
    if Path(name).name != name or path.is_symlink():
        raise CheckpointError("the manifest names a path outside the checkpoint", place=str(path))
    try:
        found = _hash(path, from_disk)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", place=str(path)) from error
    if found != wanted:
        raise CheckpointError(
            "differs from its hash in the manifest: it is damaged", place=str(path)
        )
    return path
