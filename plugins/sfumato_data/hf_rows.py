"""The rows of a table of Hugging Face's `datasets`, each a picture that is not yet read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

import attrs

from sfumato import DataError, suggestion
from sfumato_data.examples import bad_example, checked_caption
from sfumato_data.held_out import is_held_out

if TYPE_CHECKING:
    from sfumato_data.hf_dataset import HfDataset


@attrs.frozen
class Row:
    """One row: its picture is in a table, as bytes or as the path of a file."""

    table: Any
    captions: Sequence[Any]
    root: Path
    image: str
    number: int

    @property
    def place(self) -> str:
        """The source and the row."""
        return f"{self.root}: row {self.number}"

    @property
    def version(self) -> str:
        """That of the table, and of the file where the picture is one."""
        cell = self.table[self.number][self.image]
        if cell and cell.get("bytes") is None and cell.get("path"):
            found = Path(cell["path"]).stat()
            return f"{self.table._fingerprint} {found.st_size} {found.st_mtime_ns}"
        return str(self.table._fingerprint)

    def caption(self) -> str:
        """The caption."""
        return checked_caption(self.place, self.captions[self.number], "its caption")

    def open(self) -> BinaryIO:
        """The bytes, or the file, which has to be inside of the source's folder."""
        cell = self.table[self.number][self.image] or {}
        if cell.get("bytes") is not None:
            return io.BytesIO(cell["bytes"])
        if not cell.get("path"):
            raise bad_example(self.place, "has no picture")
        path = Path(cell["path"])
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise bad_example(self.place, f"names {path}, which leads out of the folder")
        return path.open("rb")


@attrs.frozen
class Rows(Sequence[Row]):
    """Some rows of a table."""

    table: Any
    captions: Sequence[Any]
    root: Path
    image: str
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return attrs.evolve(self, numbers=self.numbers[index])
        return Row(self.table, self.captions, self.root, self.image, self.numbers[index])


def list_rows(source: HfDataset, split: Literal["train", "test"]) -> Rows:
    """The rows of one split, at least one.

    Raises:
        DataError: see `HfDataset.split`.
    """
    datasets = _library()
    root = Path(source.path).expanduser()
    if not root.exists():
        raise DataError(
            "is no folder or file on this machine; a set on the hub could only be streamed or "
            "downloaded",
            place=source.path,
            remedy="download it, and name the folder",
        )
    tables = _tables(datasets, root, source.cache)
    apart = source.test in tables
    name = source.test if apart and split == "test" else source.train
    if name not in tables:
        raise DataError(f"has no split {name!r}", place=str(root), remedy=suggestion(name, tables))
    table = tables[name]
    for column in (source.image, source.caption):
        if column not in table.column_names:
            remedy = suggestion(column, table.column_names)
            raise DataError(f"has no column {column!r}", place=str(root), remedy=remedy)
    numbers: Sequence[int] = range(len(table))
    if not apart:
        test = split == "test"
        numbers = [n for n in numbers if is_held_out(f"row {n}", source.held_out) == test]
    if not numbers:
        problem = f"none of its {len(table)} rows falls into the {split} split"
        raise DataError(problem, place=str(root), remedy="change held_out, or name the splits")
    captions = table.select_columns([source.caption])[:][source.caption]
    pictures = table.select_columns([source.image])
    try:
        pictures = pictures.cast_column(source.image, datasets.Image(decode=False))
    except (TypeError, ValueError) as error:
        problem = f"its column {source.image!r} holds no pictures ({error})"
        raise DataError(problem, place=str(root), remedy="name another column") from error
    return Rows(pictures, captions, root, source.image, numbers)


def write_example(folder: Path) -> None:
    """Saves twenty rows, a color and its caption each."""
    from PIL import Image

    datasets = _library()
    rows = []
    for level in range(0, 240, 12):
        picture = io.BytesIO()
        Image.new("RGB", (20, 16), (level, 240 - level, 128)).save(picture, "PNG")
        rows.append({"image": {"bytes": picture.getvalue()}, "text": f"{level} of red"})
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "the package datasets is not installed",
            place="hf_dataset",
            remedy="pip install 'sfumato[hf-data]'",
        ) from error
    datasets.disable_progress_bars()
    return datasets


def _tables(datasets: Any, root: Path, cache: str | None) -> dict[str, Any]:
    """The tables of a source, by the name of the split.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if any((root / file).is_file() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(root))
        elif root.is_file():
            found = _loaded(datasets, "parquet", cache, data_files=str(root))
        elif any(root.rglob("*.parquet")):
            found = _loaded(datasets, "parquet", cache, data_dir=str(root))
        else:
            found = _loaded(datasets, "imagefolder", cache, data_dir=str(root))
    except Exception as error:  # whatever the readers of foreign files trip over
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "give a folder of save_to_disk, Parquet files, or an imagefolder"
        raise DataError(f"cannot be read ({text})", place=str(root), remedy=remedy) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _loaded(datasets: Any, builder: str, cache: str | None, **files: str) -> Any:
    """A table through one of the builders that `datasets` itself has; none comes from the hub."""
    local = datasets.DownloadConfig(local_files_only=True)
    return datasets.load_dataset(builder, cache_dir=cache, download_config=local, **files)
