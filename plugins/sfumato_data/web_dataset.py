"""Tars in the layout of WebDataset, read at random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import attrs

from sfumato import option, required
from sfumato_data.stored import StoredPictures

if TYPE_CHECKING:
    from sfumato import Split


@attrs.frozen(kw_only=True)
class WebDataset(StoredPictures):
    """Tar files whose members belong together where their names are the same up to the first dot:
    `000123.jpg` and `000123.txt` are picture and caption of one example.

    Each tar is read through once, for where its members are and for the captions. That is kept in a
    file, and used again while size and time of the tar are the same. So examples are read at random
    like those of a folder, a permutation of all is an epoch, and a resumed run needs no state.

    A hash of its key decides which split an example belongs to, unless `test_shards` names others.
    """

    name = "webdataset"

    shards: str = required('the tars: "data/*.tar", or "data/{0000..0099}.tar"')
    test_shards: str | None = option(None, "those of the test split; null: a share of all")
    caption: str = option("txt", 'the ending of captions; "json.text": a field of a JSON object')
    index: str | None = option(
        None, "the folder in which is kept where members are; null: ~/.cache/sfumato/shards"
    )

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two tars of ten PNG files of one color each."""
        import io
        import tarfile

        from PIL import Image

        for shard in range(2):
            with tarfile.open(folder / f"{shard}.tar", "w") as tar:
                for level in range(shard * 120, shard * 120 + 120, 12):
                    picture = io.BytesIO()
                    Image.new("RGB", (20, 16), (level, 240 - level, 128)).save(picture, "PNG")
                    members = (("png", picture.getvalue()), ("txt", f"{level} of red".encode()))
                    for ending, content in members:
                        member = tarfile.TarInfo(f"{level:03}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return cls(shards=f"{folder}/*.tar", size=8, held_out=0.3, index=str(folder / "index"))

    def split(self, name: Literal["train", "test"]) -> Split:
        """The examples of one split, in the order of the tars; no picture is opened.

        Raises:
            DataError: there is no such tar, it is compressed, damaged or can only be streamed, or
                nothing is in this split; or, unless `on_bad_example` is "skip", an example is bad.
        """
        from sfumato_data.held_out import held_apart
        from sfumato_data.tar_index import indexed

        index = Path(self.index or "~/.cache/sfumato/shards").expanduser()
        if self.test_shards is not None:
            named = self.shards if name == "train" else self.test_shards
            return self.examples(indexed(named, self.caption, index))
        members = indexed(self.shards, self.caption, index)
        return self.examples(held_apart(members, name, self.held_out, self.shards))
