"""Pictures with captions, wherever they are stored, as a split: what is bad is told or replaced.

Captions are checked when the split is made, so that its length is settled then; headers of pictures
too, where that is quick. What only decoding tells comes to light in `example`: a picture that turns
out to be broken is replaced by the next sound one, and no index moves. So an example depends on its
index alone, and not on who has asked for what before.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato import DataError, Split
from sfumato_data.pictures import to_rgb, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import BinaryIO

    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
LONGEST_CAPTION = 10_000
"""In bytes: far more than a text encoder reads, and less than a file that is no caption."""
TOLD = 10
"""Faults that are told one by one."""


class Picture(Protocol):
    """One picture that is not yet read."""

    @property
    def place(self) -> str:
        """Where it is, for a person."""

    @property
    def version(self) -> str:
        """Another one where its bytes are others."""

    def caption(self) -> str:
        """Its caption.

        Raises:
            DataError: it has none, or not one that is text.
        """

    def open(self) -> BinaryIO:
        """Its bytes.

        Raises:
            OSError: they cannot be had.
        """


def bad_example(place: object, problem: str) -> DataError:
    """The error about one example, which `on_bad_example` may turn into a gap."""
    remedy = "repair or remove it, or set on_bad_example: skip"
    return DataError(problem, place=str(place), remedy=remedy)


def checked_caption(place: object, caption: object, where: str) -> str:
    """The caption without the white space around it, if it can be one; `where` says what it is.

    Raises:
        DataError: it is no text, empty, or longer than `LONGEST_CAPTION`.
    """
    if not isinstance(caption, str | bytes):
        raise bad_example(place, f"{where} is not text")
    try:
        text = caption.decode("utf-8-sig") if isinstance(caption, bytes) else caption
    except UnicodeDecodeError as error:
        raise bad_example(place, f"{where} is not UTF-8") from error
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise bad_example(place, f"{where} is not Unicode text") from error
    if length > LONGEST_CAPTION:
        raise bad_example(place, f"{where} is longer than {LONGEST_CAPTION} bytes")
    if not text.strip():
        raise bad_example(place, f"{where} is empty")
    return text.strip()


def open_picture(file: BinaryIO, place: str) -> Image.Image:
    """Reads the header and not yet the pixels.

    Raises:
        DataError: the file is empty, no picture, or claims more pixels than Pillow deems safe.
    """
    try:
        if file.seek(0, 2) == 0:
            raise bad_example(place, "is empty (0 bytes)")
        file.seek(0)
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise bad_example(place, "is not a PNG, JPEG, WebP, BMP or GIF picture") from error
    except Image.DecompressionBombError as error:
        raise bad_example(place, "claims more pixels than are safe to decode") from error
    except (OSError, ValueError) as error:
        raise bad_example(place, f"cannot be opened ({error})") from error


def check_header(picture: Picture) -> None:
    """Raises DataError where a picture can be told to be bad without decoding it."""
    try:
        with picture.open() as file, open_picture(file, picture.place):
            pass
    except OSError as error:
        raise bad_example(picture.place, f"cannot be opened ({error})") from error


def read_picture(picture: Picture, size: int) -> Image.Image:
    """The middle square of the picture, resized to (size, size), 8-bit RGB.

    Raises:
        DataError: the picture cannot be decoded.
    """
    try:
        file = picture.open()
    except OSError as error:
        raise bad_example(picture.place, f"cannot be opened ({error})") from error
    with file, open_picture(file, picture.place) as image:
        try:
            return ImageOps.fit(to_rgb(image), (size, size), Image.Resampling.LANCZOS)
        except Exception as error:  # on broken files the decoders raise whatever they trip over
            raise bad_example(picture.place, f"cannot be decoded ({error})") from error


class Examples(Split):
    """Pictures with captions."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        size: int,
        *,
        skip: bool,
        bad_share: float = 1.0,
        check_headers: bool = False,
    ) -> None:
        """Reads all captions.

        Args:
            pictures: where they are, at least one.
            size: height and width in pixels.
            skip: whether bad ones are replaced, not raised.
            bad_share: how many of all may be left out, or be replaced in a run.
            check_headers: whether to open each picture, without decoding it.

        Raises:
            DataError: an example is bad, or too many are left out.
        """
        self._pictures, self._size, self._skip = pictures, size, skip
        self._bad_share = bad_share
        self._sound: list[int] = []
        self._captions: list[str] = []
        self._first: list[DataError] = []
        self._faults: dict[int, DataError] = {}
        for place, picture in enumerate(pictures):
            try:
                caption = picture.caption()
                if check_headers:
                    check_header(picture)
                self._sound.append(place)
                self._captions.append(caption)
            except DataError as fault:
                if not skip:
                    raise
                self.dropped += 1
                self._first = [*self._first, fault][:TOLD]
        self.faults = tuple(map(str, self._first))
        self.check_bad({})

    def __len__(self) -> int:
        return len(self._sound)

    def example(self, index: int) -> tuple[Tensor, str]:
        """Picture (3, size, size) and caption; if broken, those of the next sound example."""
        self.refuse_outside(index)
        for step in range(len(self)):
            place = (index + step) % len(self)
            if place in self._faults:
                continue
            try:
                image = read_picture(self._pictures[self._sound[place]], self._size)
                return to_tensor(image), self._captions[place]
            except DataError as fault:
                if not self._skip:
                    raise
                self._faults[place] = fault
        raise self._too_many("all", map(str, self._faults.values()))

    def caption(self, index: int) -> str:
        """The caption as listed, even if `example` finds the picture broken."""
        self.refuse_outside(index)
        return self._captions[index]

    def fault(self, index: int) -> str | None:
        """Why `example`, asked before, gave another one for this index; None where it did not."""
        found = self._faults.get(index)
        return None if found is None else str(found)

    def fingerprint(self) -> str:
        """A hash of captions, of where pictures are, and of the versions of their bytes."""
        digest = hashlib.sha256(super().fingerprint().encode())
        for place in self._sound:
            picture = self._pictures[place]
            digest.update(f"{picture.place}\0{picture.version}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()

    def check_bad(self, replaced: Mapping[int, str]) -> None:
        """Raises DataError where more than `bad_share` are left out or replaced."""
        bad = self.dropped + len(replaced)
        if bad == len(self._pictures):
            raise self._too_many("all", replaced.values())
        if bad > self._bad_share * len(self._pictures):
            raise self._too_many(f"{bad} of", replaced.values())

    def _too_many(self, how_many: str, replaced: Iterable[str]) -> DataError:
        first = next(iter([*self.faults, *replaced]))
        problem = f"{how_many} {len(self._pictures)} pictures are bad"
        if how_many != "all":
            problem += f", more than bad_share: {self._bad_share:g} allows"
        return DataError(problem, remedy=f"the first: {first}")
