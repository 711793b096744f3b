"""Reads the pictures of an image folder.

What the header of a file tells is checked when the split is made, so that its length is settled
then. What only decoding tells comes to light in `example`: a picture that turns out to be broken is
replaced by the next sound one, and no index moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato import DataError, Split
from sfumato_data.image_listing import bad_example
from sfumato_data.pictures import to_rgb, to_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from sfumato_data.image_listing import ListedPicture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def open_picture(path: Path) -> Image.Image:
    """Reads the header and not yet the pixels.

    Raises:
        DataError: the file is empty, no picture, or claims more pixels than Pillow deems safe.
    """
    try:
        if path.stat().st_size == 0:
            raise bad_example(path, "is empty (0 bytes)")
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise bad_example(path, "is not a PNG, JPEG, WebP, BMP or GIF picture") from error
    except Image.DecompressionBombError as error:
        raise bad_example(path, "claims more pixels than are safe to decode") from error
    except (OSError, ValueError) as error:
        raise bad_example(path, f"cannot be opened ({error})") from error


def read_picture(path: Path, size: int) -> Image.Image:
    """The middle square of the picture, resized to (size, size), 8-bit RGB.

    Raises:
        DataError: the picture cannot be decoded.
    """
    with open_picture(path) as image:
        try:
            return ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.LANCZOS)
        except Exception as error:  # on broken files the decoders raise whatever they trip over
            raise bad_example(path, f"cannot be decoded ({error})") from error


class ImageFiles(Split):
    """Picture files with captions. `dropped` grows as decoding finds pictures broken."""

    def __init__(self, pictures: Sequence[ListedPicture], size: int, *, skip: bool) -> None:
        self._size, self._skip = size, skip
        self._examples: list[tuple[Path, str]] = []
        self._faults: dict[Path, DataError] = {}
        for picture in pictures:
            try:
                caption = picture.caption()
                with open_picture(picture.path):
                    self._examples.append((picture.path, caption))
            except DataError as fault:
                self._drop(picture.path, fault)
        if not self._examples:
            raise self._nothing_left()

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture (3, size, size) and caption; if broken, those of the next sound example."""
        self.refuse_outside(index)
        for place in range(index, index + len(self)):
            path, caption = self._examples[place % len(self)]
            if path in self._faults:
                continue
            try:
                return to_tensor(read_picture(path, self._size)), caption
            except DataError as fault:
                self._drop(path, fault)
        raise self._nothing_left()

    def caption(self, index: int) -> str:
        """The caption as listed, even if `example` finds the picture broken."""
        self.refuse_outside(index)
        return self._examples[index][1]

    def _drop(self, path: Path, fault: DataError) -> None:
        if not self._skip:
            raise fault
        self._faults[path] = fault
        self.dropped = len(self._faults)

    def _nothing_left(self) -> DataError:
        first = next(iter(self._faults.values()))
        return DataError(f"all {len(self._faults)} pictures are bad", remedy=f"the first: {first}")
