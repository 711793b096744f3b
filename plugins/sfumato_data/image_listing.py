"""Which pictures a folder holds, and where their captions stand. Opens no picture.

What is wrong with the folder or its metadata is raised at once. What is wrong with one caption is
raised when that caption is read, so that the reader can decide to leave the example out.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import attrs

from sfumato import DataError
from sfumato_data.examples import LONGEST_CAPTION, bad_example, checked_caption
from sfumato_data.held_out import held_apart

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"})
METADATA = ("metadata.jsonl", "metadata.csv")
IGNORED = (".", "__")
"""How names begin that are passed over."""


@attrs.frozen
class ListedPicture:
    """A picture not yet opened: its path inside the folder, its file, how to read its caption."""

    name: str
    path: Path
    caption: Callable[[], str]

    @property
    def place(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def version(self) -> str:
        """Size and time of the file."""
        found = self.path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    def open(self) -> BinaryIO:
        """The file."""
        return self.path.open("rb")


def list_split(
    folder: Path, split: Literal["train", "test"], held_out: float
) -> list[ListedPicture]:
    """The pictures of one split, at least one, sorted by name.

    Raises:
        DataError: see `ImageFolder.split`.
    """
    if not folder.is_dir():
        remedy = f"relative folders start at {Path.cwd()}"
        raise DataError("there is no such folder", place=str(folder), remedy=remedy)
    split_folders = _split_folders(folder)
    if split_folders is not None:
        return list_pictures(split_folders[split])
    everything = list_pictures(folder / "train" if _holds_only_train(folder) else folder)
    return held_apart(everything, split, held_out, folder)


def _split_folders(folder: Path) -> Mapping[str, Path] | None:
    """The folders of the splits, if both are there; a picture beside them would be in neither."""
    test = next((n for n in ("test", "validation") if (folder / n).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        return None
    for entry in sorted(folder.iterdir()):
        if _is_picture_or_metadata(entry):
            problem = f"stands beside the folders train and {test}, so it belongs to neither split"
            raise DataError(problem, place=str(entry), remedy="move it into one of them")
    return {"train": folder / "train", "test": folder / test}


def _holds_only_train(folder: Path) -> bool:
    """Whether `train` is a split without its like; beside other content it is a class."""
    content = [
        entry.name
        for entry in folder.iterdir()
        if not entry.name.startswith(IGNORED) and (entry.is_dir() or _is_picture_or_metadata(entry))
    ]
    return content == ["train"] and not (folder / "train").is_symlink()


def _is_picture_or_metadata(entry: Path) -> bool:
    return entry.name in METADATA or entry.suffix.lower() in SUFFIXES


def list_pictures(folder: Path) -> list[ListedPicture]:
    """All pictures below a folder, at least one, sorted by name."""
    files = sorted(_files(folder))
    names = [name for name in files if PurePosixPath(name).suffix.lower() in SUFFIXES]
    for name in files:
        if name not in METADATA and PurePosixPath(name).name in METADATA:
            problem = f"is not read, since it stands below {folder}"
            remedy = "move its rows up to there, or name the folders of the splits train and test"
            raise DataError(problem, place=str(folder / name), remedy=remedy)
    metadata = [name for name in METADATA if name in files]
    if len(metadata) == 2:
        raise DataError(
            "holds both " + " and ".join(metadata), place=str(folder), remedy="keep one"
        )
    if metadata:
        pictures = _from_metadata(folder, metadata[0], files, names)
    elif not {os.path.splitext(name)[0] + ".txt" for name in names}.isdisjoint(files):
        pictures = [_listed(folder, name, _caption_beside) for name in names]
    else:
        pictures = [_listed(folder, name, _caption_of_class, name) for name in names]
    if not pictures:
        raise DataError("holds no PNG, JPEG, WebP, BMP or GIF pictures", place=str(folder))
    return pictures


def _listed(folder: Path, name: str, read: Callable[..., str], *arguments: object) -> ListedPicture:
    """The picture whose caption is `read(path, *arguments)`."""
    path = folder / name
    return ListedPicture(name, path, functools.partial(read, path, *arguments))


def _files(folder: Path, inside: str = "") -> Iterator[str]:
    """The paths of all regular files below `folder`, relative to it, with "/" between the parts."""
    try:
        entries = list(os.scandir(folder / inside))
    except OSError as error:
        problem = f"cannot be listed ({error.strerror})"
        raise DataError(problem, place=str(folder / inside)) from error
    for entry in entries:
        if entry.name.startswith(IGNORED):
            continue
        if entry.is_symlink() and not _leads_inside(folder, entry.path):
            remedy = "put the files themselves there"
            raise DataError(
                "is a link that leads out of the folder", place=entry.path, remedy=remedy
            )
        if entry.is_dir(follow_symlinks=False):
            yield from _files(folder, f"{inside}{entry.name}/")
        elif entry.is_file():
            yield inside + entry.name


def _leads_inside(folder: Path, link: str) -> bool:
    return Path(os.path.realpath(link)).is_relative_to(os.path.realpath(folder))


def _from_metadata(
    folder: Path, metadata: str, files: list[str], names: list[str]
) -> list[ListedPicture]:
    """A picture for each row of the metadata; pictures without a row are listed too, as bad."""
    path, known = folder / metadata, frozenset(files)
    pictures = []
    for line, row in _rows(path):
        place = f"{path}:{line}"
        for column in ("file_name", "text"):
            if column not in row:
                raise DataError(
                    f"has no {column}", place=place, remedy="it needs file_name and text"
                )
        name = PurePosixPath(str(row["file_name"]))
        if name.is_absolute() or ".." in name.parts:
            remedy = "write paths relative to the folder of the metadata"
            raise DataError(f"{str(name)!r} leads out of the folder", place=place, remedy=remedy)
        if str(name) in known:
            where = f"its caption in {metadata}, line {line},"
            pictures.append(_listed(folder, str(name), checked_caption, row["text"], where))
        else:
            missing = f"is missing, but {place} names it"
            pictures.append(_listed(folder, str(name), _refuse, missing))
    for unnamed in set(names).difference(picture.name for picture in pictures):
        problem = f"has no caption: {metadata} does not name it"
        pictures.append(_listed(folder, unnamed, _refuse, problem))
    return sorted(pictures, key=lambda picture: picture.name)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a metadata file, each with its line."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("is not UTF-8", place=f"{path}:{line}") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for record in reader:
                yield reader.line_num, record
        except csv.Error as error:
            raise DataError(
                f"is not CSV ({error})", place=f"{path}:{reader.reader.line_num}"
            ) from error
        return
    for number, json_text in enumerate(text.split("\n"), start=1):
        if json_text.strip():
            yield number, _json_object(json_text, f"{path}:{number}")


def _json_object(text: str, place: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})", place=place) from error
    if not isinstance(value, dict):
        raise DataError("is not a JSON object", place=place, remedy="it needs file_name and text")
    return value


def _caption_beside(path: Path) -> str:
    sidecar = path.with_suffix(".txt")
    if not sidecar.is_file():
        raise bad_example(path, f"has no caption: {sidecar.name} is missing")
    with sidecar.open("rb") as file:
        data = file.read(LONGEST_CAPTION + 1)
    return checked_caption(path, data, f"its caption {sidecar.name}")


def _caption_of_class(path: Path, name: str) -> str:
    parts = PurePosixPath(name).parts
    if len(parts) == 1:
        places = f"no metadata, no {path.stem}.txt beside it, no class folder around it"
        raise bad_example(path, f"has no caption: {places}")
    words = parts[-2].replace("_", " ").replace("-", " ")
    return checked_caption(path, words, "its class folder's name")


def _refuse(path: Path, problem: str) -> str:
    raise bad_example(path, problem)
