"""Tensors to a safetensors file, hashed on the way.

The format is 8 bytes with the length of a header, the header (JSON: dtype, shape and place of each
tensor), and the bytes of the tensors. Writing it in pieces lets a second thread hash what the first
hands over, and a third let the disk begin, so that a hash costs next to no time; nothing is held in
memory twice. What comes out is, to the byte, what safetensors itself writes.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
PART = 1 << 25
"""Bytes that are handed over at once. Two parts are held at most, where they are copies, as of a
GPU's tensors.
"""


def write(path: Path, state: Mapping[str, Tensor]) -> str:
    """Writes a file, synced, with the mode that the umask gives, and returns its SHA-256.

    Raises:
        CheckpointError: a value is not finite, or of a dtype that is not kept; nothing is written
            over, but the file is left.
        OSError: the disk refuses.
    """
    digest = hashlib.sha256()
    header, names = _header(state, str(path))
    digest.update(header)
    looking: Future[None] | None = None
    syncing: Future[None] | None = None
    with ThreadPoolExecutor(2) as beside, path.open("wb", buffering=1 << 20) as file:
        file.write(header)
        for part in _parts(state, names):
            if looking is not None:
                looking.result()
            looking = beside.submit(_look, digest, part, str(path))
            for tensor in part.values():
                file.write(_bytes(tensor))
            if syncing is None or syncing.done():  # the disk need not wait for the last part
                syncing = beside.submit(os.fsync, file.fileno())
        file.flush()
        os.fsync(file.fileno())
        for future in (looking, syncing):
            if future is not None:
                future.result()
    return digest.hexdigest()


def size(state: Mapping[str, Tensor]) -> int:
    """The bytes that `write` will need, without the header: a few dozen for each tensor."""
    return sum(tensor.nbytes for tensor in state.values())


def finite(tensor: Tensor) -> bool:
    """Whether all values are. The sum is quicker to look at; only one that is not asks twice."""
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _parts(state: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The tensors on the CPU, some at a time."""
    part: dict[str, Tensor] = {}
    held = 0
    for name in names:
        tensor = state[name].detach().cpu().contiguous()
        part[name], held = tensor, held + tensor.nbytes
        if held >= PART:
            yield part
            part, held = {}, 0
    yield part


def _look(digest: hashlib._Hash, part: Mapping[str, Tensor], place: str) -> None:
    for name, tensor in part.items():
        digest.update(_bytes(tensor))
        if not finite(tensor):
            remedy = "no checkpoint is made of it; the one before is whole"
            raise CheckpointError(f"{name} is not finite", place=place, remedy=remedy)


def _header(state: Mapping[str, Tensor], place: str) -> tuple[bytes, list[str]]:
    """The head of the file, and the names in the order of their bytes: the widest dtype first, so
    that each tensor is aligned.
    """
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"{name} is of dtype {tensor.dtype}", place=place)
    order = list(DTYPES)
    names = sorted(state, key=lambda name: (order.index(state[name].dtype), name))
    entries, end = {}, 0
    for name in names:
        tensor, start = state[name], end
        end += tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
