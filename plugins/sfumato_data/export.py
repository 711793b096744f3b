"""Writes any data source as an image folder, which other tools read, and `image_folder` too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from sfumato import DataError
from sfumato_data.pictures import to_image

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Data


def export_image_folder(data: Data, folder: Path) -> None:
    """Writes PNG files and `metadata.jsonl` into the folders `train` and `test` of `folder`.

    `image_folder` at the same size then gives the same examples in the same order: bit for bit
    where the source has 256 levels in a channel, rounded to the nearest level elsewhere.

    Args:
        data: the source.
        folder: where to write; it is made, and must not hold either of the two folders.

    Raises:
        DataError: `folder` holds an earlier export, or `data` cannot be read.
    """
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for name in splits:
        if (folder / name).exists():
            raise DataError(
                "already exists", place=str(folder / name), remedy="choose another folder"
            )
    for name in splits:
        split = data.split(name)
        (folder / name).mkdir(parents=True)
        with (folder / name / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for index in range(len(split)):
                image, caption = split.example(index)
                file_name = f"{index:08}.png"
                to_image(image).save(folder / name / file_name)
                metadata.write(json.dumps({"file_name": file_name, "text": caption}) + "\n")
