"""Tables of pictures and captions, read with Hugging Face's `datasets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import attrs

from sfumato import option, required
from sfumato_data.stored import StoredPictures

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Split


@attrs.frozen(kw_only=True)
class HfDataset(StoredPictures):
    """What Hugging Face's `datasets` reads on this machine (`pip install 'sfumato[hf-data]'`).

    A folder that `save_to_disk` wrote, a folder with Parquet files or one such file, or an
    `imagefolder`. Nothing is downloaded, and no code of a data set runs. `datasets` keeps Parquet
    files as memory-mapped Arrow, once, so that rows are read at random.

    Where there is no split of the name `test`, a hash of its row decides where an example belongs.
    """

    name = "hf_dataset"

    path: str = required("the folder or the Parquet file; `~` is one's home")
    image: str = option("image", "the column of pictures")
    caption: str = option("text", "the column of captions")
    train: str = option("train", "the split to train on")
    test: str = option("test", "the split that is held out")
    cache: str | None = option(None, "the folder for Arrow files; null: that of datasets")

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Twenty rows of one color each, saved as Arrow.

        Raises:
            DataError: `datasets` is not installed.
        """
        from sfumato_data.hf_rows import write_example

        write_example(folder)
        return cls(path=str(folder), size=8, held_out=0.3)

    def split(self, name: Literal["train", "test"]) -> Split:
        """The rows of one split, in their order; no picture is opened.

        Raises:
            DataError: `datasets` is not installed, there is no such folder, split or column, the
                source is not on this machine, or no row is in this split; or, unless
                `on_bad_example` is "skip", an example is bad.
        """
        from sfumato_data.hf_rows import list_rows

        return self.examples(list_rows(self, name))
