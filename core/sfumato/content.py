"""What weights and files are, as a hash: equal where they are equal to the bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def digest(state: Mapping[str, Tensor], files: Mapping[str, bytes] | None = None) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, and over files by name."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for name, content in sorted((files or {}).items()):
        found.update(f"{name} {hashlib.sha256(content).hexdigest()}\0".encode())
    return found.hexdigest()
