"""Pictures of one's own, in the folder layouts that Hugging Face's `imagefolder` established."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import attrs

from sfumato import required
from sfumato_data.stored import StoredPictures

if TYPE_CHECKING:
    from sfumato import Split


@attrs.frozen(kw_only=True)
class ImageFolder(StoredPictures):
    """PNG, JPEG, WebP, BMP and GIF files below a folder, in the order of their names.

    Captions are the column `text` of `metadata.jsonl` or `metadata.csv`, whose `file_name` is a
    path inside the folder; else a text file beside each picture (`cat.txt` for `cat.png`); else the
    name of the folder that the picture is in (`big-cats/1.png` is captioned "big cats").

    Folders `train` and `test` (or `validation`) inside the folder are the splits, each with
    captions of its own. Without them a hash of its name decides where a picture belongs; a `train`
    that has nothing beside it is then divided as if it were the folder itself.

    The middle square of each picture is resized with a Lanczos filter. The EXIF rotation is
    applied, transparency is laid over white, and of an animation the first frame counts.

    Names that start with "." or "__" are ignored. Linked folders are not entered, and links that
    lead out of the folder are refused.
    """

    name = "image_folder"

    folder: str = required("where the pictures are; `~` is one's home")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Twenty PNG files of one color each, captioned by `metadata.jsonl`."""
        import json

        from PIL import Image

        rows = []
        for level in range(0, 240, 12):
            name, color = f"{level:03}.png", (level, 240 - level, 128)
            Image.new("RGB", (20, 16), color).save(folder / name)
            rows.append(json.dumps({"file_name": name, "text": f"{level} of red"}) + "\n")
        (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
        return cls(folder=str(folder), size=8, held_out=0.3)

    def split(self, name: Literal["train", "test"]) -> Split:
        """The pictures of one split, with their captions and headers already checked.

        Raises:
            DataError: there is no such folder or no picture for this split; the metadata is
                malformed, stands too far down or leads out of the folder; or, unless
                `on_bad_example` is "skip", an example is bad; or too many are.
        """
        from sfumato_data.image_listing import list_split

        pictures = list_split(Path(self.folder).expanduser(), name, self.held_out)
        return self.examples(pictures, check_headers=True)
