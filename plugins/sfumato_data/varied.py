"""Splits around a split: with smaller pictures, and with a training example that varies."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from sfumato import Split
from sfumato_data.kept import Kept, Pixels
from sfumato_data.mirroring import may_mirror
from sfumato_data.pictures import to_image, to_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sfumato_data.augmented import Augmented

Box = tuple[float, float, float, float]


class Reduced(Split):
    """The same examples with pictures of another size."""

    def __init__(self, inner: Split, size: tuple[int, int]) -> None:
        """`size` is height and width in pixels."""
        self._inner = inner
        self._height, self._width = size
        self.dropped, self.faults = inner.dropped, inner.faults

    def __len__(self) -> int:
        return len(self._inner)

    def example(self, index: int) -> tuple[Tensor, str]:
        """The whole picture, reduced where it is larger."""
        picture, caption = self._inner.example(index)
        if picture.shape[1:] == (self._height, self._width):
            return picture, caption
        image = to_image(picture)
        return self._shown(image, (0, 0, *image.size)), caption

    def caption(self, index: int) -> str:
        """That of the split inside, as all that is no picture."""
        return self._inner.caption(index)

    def phrasings(self, index: int) -> tuple[str, ...]:
        """Those of the split inside."""
        return self._inner.phrasings(index)

    def fault(self, index: int) -> str | None:
        """That of the split inside."""
        return self._inner.fault(index)

    def check_bad(self, replaced: Mapping[int, str]) -> None:
        """As the split inside does."""
        self._inner.check_bad(replaced)

    def fingerprint(self) -> str:
        """That of the split inside, all of its phrasings too, as the settings say the rest."""
        return self._inner.fingerprint()

    def _shown(self, image: Image.Image, box: Box) -> Tensor:
        size = (self._width, self._height)
        return to_tensor(image.resize(size, Image.Resampling.LANCZOS, box))


class Varied(Reduced):
    """Examples that training sees cropped, mirrored and said otherwise."""

    varies = True

    def __init__(self, inner: Split, settings: Augmented) -> None:
        """Around a training split, as the settings say."""
        super().__init__(inner, settings.picture_size)
        self._settings = settings
        self._kept = Kept(len(inner), *settings.data.picture_size) if settings.keep else None

    def phrasings(self, index: int) -> tuple[str, ...]:
        """The caption, then each phrasing in each template."""
        inner, templates = self._inner.phrasings(index), self._settings.templates
        if not self._settings.captions:
            return inner[:1]
        others = (one.replace("{}", text) for text in inner for one in templates)
        return tuple(dict.fromkeys((inner[0], *others)))

    def variation(self, index: int, word: int) -> tuple[Tensor, str]:
        """A crop, perhaps mirrored, and a phrasing, all drawn from `word`."""
        self.refuse_outside(index)
        # Of `random`, only this method gives the same numbers in every version of Python. All are
        # drawn whether used or not, so that one option leaves the others' draws alone.
        area, left, top, mirrored, said, phrasing, template = _uniform(word, 7)
        image, caption = self._picture(index)
        # A broken picture is replaced by another one, of which the caption alone is known.
        phrasings = (caption,) if self._inner.fault(index) else self._inner.phrasings(index)
        if self._settings.flip and mirrored < 0.5 and may_mirror(phrasings):
            image = ImageOps.mirror(image)
        if said < self._settings.captions:
            sentence = _one_of(self._settings.templates, template)
            caption = sentence.replace("{}", _one_of(phrasings, phrasing))
        crop = self._settings.crop
        share = (crop + (1 - crop) * area) ** 0.5
        x, y = (image.width * (1 - share) * left, image.height * (1 - share) * top)
        box = (x, y, x + image.width * share, y + image.height * share)
        return self._shown(image, box), caption

    def _picture(self, index: int) -> tuple[Image.Image, str]:
        """As large as the data has it."""
        if self._kept is None:
            picture, caption = self._inner.example(index)
            return to_image(picture), caption
        pixels = self._kept.picture(index, lambda: self._decoded(index))
        if pixels is not None:
            return Image.fromarray(pixels), self._inner.caption(index)
        picture, caption = self._inner.example(index)
        return to_image(picture), caption

    def _decoded(self, index: int) -> Pixels | None:
        """None where the picture is another's: each process has to find that out, and to say it."""
        picture, _ = self._inner.example(index)
        return None if self._inner.fault(index) else np.asarray(to_image(picture))


def _uniform(word: int, count: int) -> list[float]:
    """Numbers in [0, 1)."""
    source = random.Random(word)
    return [source.random() for _ in range(count)]


def _one_of(texts: tuple[str, ...], u: float) -> str:
    return texts[int(u * len(texts))]
