"""Where the members of tars are, found once and kept in files.

An index file holds, for each example, its key, the place and size of its picture, and its caption
or what is wrong with it. It is used while size and time of the tar are those that it states;
whatever else is in its place is made anew.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from sfumato import DataError
from sfumato_data.examples import LONGEST_CAPTION, bad_example, checked_caption

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 1
PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
STREAMED = re.compile(r"\w+:(?!\\)")
"""How pipes and addresses begin, and no path."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@attrs.frozen
class Member:
    """A picture inside a tar: its bytes are `size` from `start`."""

    tar: str
    version: str
    key: str
    start: int
    size: int
    text: str | None
    problem: str | None

    @property
    def name(self) -> str:
        """Of the example, wherever the tars are: the tar's own name, and its key."""
        return f"{Path(self.tar).name}/{self.key}"

    @property
    def place(self) -> str:
        """The tar and the key."""
        return f"{self.tar}: {self.key}"

    def caption(self) -> str:
        """The caption, as it was when the tar was read."""
        if self.problem is not None:
            raise bad_example(self.place, self.problem)
        return checked_caption(self.place, self.text, "its caption")

    def open(self) -> BinaryIO:
        """The bytes, alone."""
        with open(self.tar, "rb") as file:
            return io.BytesIO(os.pread(file.fileno(), self.size, self.start))


def indexed(pattern: str, caption: str, folder: Path) -> list[Member]:
    """The examples of all tars that a pattern names, at least one.

    Args:
        pattern: a path with `*`, `?` or a range in braces.
        caption: the ending of captions, after a dot the field of a JSON object.
        folder: of the index files.

    Raises:
        DataError: see `WebDataset.split`.
    """
    paths = shards(pattern)
    members = [member for path in paths for member in _members(path, caption, folder)]
    if not members:
        raise DataError("holds no PNG, JPEG, WebP, BMP or GIF pictures", place=pattern)
    return members


def shards(pattern: str) -> list[Path]:
    """The files that a pattern names, sorted.

    Raises:
        DataError: it names a stream, or no file.
    """
    if STREAMED.match(pattern):
        raise DataError(
            "can only be streamed, which gives neither a random order nor a resume without state",
            place=pattern,
            remedy="copy the tars to a disk and name them there",
        )
    found = {
        path
        for one in _spelt_out(str(Path(pattern).expanduser()))
        for path in (glob.glob(one) if glob.has_magic(one) else [one])
    }
    missing = sorted(path for path in found if not Path(path).is_file())
    if missing or not found:
        place = missing[0] if missing else pattern
        raise DataError("there is no such file", place=place, remedy='write "FOLDER/*.tar"')
    return [Path(path) for path in sorted(found)]


def _spelt_out(pattern: str) -> Iterator[str]:
    """`{08..11}` as each of its numbers, as wide as the first."""
    found = RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _spelt_out(
            f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}"
        )


def _members(path: Path, caption: str, folder: Path) -> Iterator[Member]:
    """What the index file of a tar says; it is made where there is none for this tar."""
    path = path.resolve()
    status = path.stat()
    version = f"{status.st_size} {status.st_mtime_ns}"
    about = {"format": FORMAT, "tar": str(path), "version": version, "caption": caption}
    name = hashlib.blake2b(f"{path}\0{caption}".encode(), digest_size=16).hexdigest()
    kept = folder / f"{name}.json"
    rows = _kept(kept, about)
    if rows is None:
        rows = list(_read(path, caption))
        _keep(kept, {**about, "examples": rows})
    return (Member(str(path), version, *row) for row in rows)


def _kept(path: Path, about: dict[str, Any]) -> list[Any] | None:
    """The rows of an index file, where it is one, and about this tar as it is now."""
    try:
        found = json.loads(path.read_bytes())
        digest = found.pop("sha256")
        rows = found.pop("examples")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return rows if found == about and digest == _digest(rows) else None


def _keep(path: Path, index: dict[str, Any]) -> None:
    """Writes an index file, whole or not at all; where that is forbidden it will be made again."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**index, "sha256": _digest(index["examples"])}))
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _read(path: Path, caption: str) -> Iterator[tuple[str, int, int, str | None, str | None]]:
    """Reads a tar through: a row of `Member` for each picture."""
    ending, _, field = caption.partition(".")
    try:
        with tarfile.open(path, "r:") as tar:
            files = (member for member in tar if member.isreg() and not _hidden(member.name))
            for key, group in itertools.groupby(files, lambda member: _key(member.name)[0]):
                parts = {_key(member.name)[1].lower(): member for member in group}
                picture = next((parts[one] for one in PICTURES if one in parts), None)
                if picture is None:
                    continue
                text, problem = _caption(tar, parts.get(ending), f"{key}.{ending}", field)
                yield key, picture.offset_data, picture.size, text, problem
            # Where a tar was cut between two members, tarfile ends without a word.
            with path.open("rb") as file:
                if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(
                    tarfile.BLOCKSIZE
                ):
                    raise tarfile.ReadError("it has no end")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"is no tar that can be read at random ({error})",
            place=str(path),
            remedy="unpack it where it is compressed, and copy it again where it is damaged",
        ) from error


def _caption(
    tar: tarfile.TarFile, member: tarfile.TarInfo | None, name: str, field: str
) -> tuple[str | None, str | None]:
    """The caption in a member, or what is wrong with it."""
    file = tar.extractfile(member) if member is not None else None
    if file is None:
        return None, f"has no caption: {name} is missing"
    where, longest = f"its caption {name}", LONGEST_CAPTION * (100 if field else 1)
    content: Any = file.read(longest + 1)
    if len(content) > longest:
        return None, f"{where} is longer than {longest} bytes"
    if field:
        try:
            content = json.loads(content)[field]
        except (ValueError, RecursionError, LookupError, TypeError):
            return None, f"{where} is no JSON object with {field!r}"
    try:
        return checked_caption("", content, where), None
    except DataError as error:
        return None, error.problem


def _key(name: str) -> tuple[str, str]:
    """The key and the ending: what stands before and after the first dot of the last part."""
    folder, _, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ending


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__")) for part in name.removeprefix("./").split("/"))
