"""Decoded pictures in memory that worker processes share, each decoded by whoever asks first."""

from __future__ import annotations

import mmap
import multiprocessing
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.synchronize import Lock

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Kept:
    """Pictures (H, W, 3) by number.

    Memory is anonymous and mapped as shared, so that processes forked later see what any of them
    puts in, with no limit but the memory itself; what has not been asked for takes none. A copy
    that is pickled begins empty.
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        """For `count` pictures of one size."""
        self._shape = (count, height, width, 3)
        size = count * height * width * 3
        self._pixels = np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(self._shape)
        self._there = np.frombuffer(mmap.mmap(-1, count), np.uint8)
        # Nobody may see the mark of a picture before its pixels, whatever order a processor likes.
        self._order: Lock = multiprocessing.get_context("fork").Lock()

    def picture(self, number: int, decode: Callable[[], Pixels | None]) -> Pixels | None:
        """The picture, (H, W, 3), read-only in spirit; what `decode` says is kept unless None."""
        with self._order:
            there = bool(self._there[number])
        if there:
            found: Pixels = self._pixels[number]
            return found
        pixels = decode()
        if pixels is not None:
            self._pixels[number] = pixels
            with self._order:
                self._there[number] = 1
        return pixels

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew."""
        return Kept, self._shape[:3]
