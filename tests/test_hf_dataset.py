"""`hf_dataset`: tables of this machine alone, read at random; each fault with its message."""

import io
import json
import sys

import datasets
import pytest
from PIL import Image

from sfumato import DataError
from sfumato_data import HfDataset
from sfumato_data.pictures import to_image

REMEDY = "; repair or remove it, or set on_bad_example: skip"


def png(red):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(numbers, **columns):
    rows = {"image": [png(10 * n) for n in numbers], "text": [f"number {n}" for n in numbers]}
    return datasets.Dataset.from_dict({**rows, **columns})


def source(path, **options):
    given = {"size": 8, "held_out": 0.0, "bad_share": 1.0, **options}
    return HfDataset(path=str(path), **given)


def seen(split):
    reds = [to_image(split.example(i)[0]).getpixel((0, 0))[0] for i in range(len(split))]
    return list(zip(reds, [split.caption(i) for i in range(len(split))], strict=True))


def message(call):
    with pytest.raises(DataError) as error:
        call()
    return str(error.value)


NUMBERS = [(10 * number, f"number {number}") for number in range(6)]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def test_parquet_files_and_their_splits(tmp_path):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    table(range(4)).to_parquet(folder / "train-00000-of-00002.parquet")
    table(range(4, 6)).to_parquet(folder / "train-00001-of-00002.parquet")
    table(range(6, 8)).to_parquet(folder / "test-00000-of-00001.parquet")
    data = source(tmp_path / "set", cache=str(tmp_path / "cache"))
    assert seen(data.split("train")) == NUMBERS
    assert seen(data.split("test")) == [(60, "number 6"), (70, "number 7")]
    alone = source(folder / "train-00000-of-00002.parquet", cache=str(tmp_path / "cache"))
    assert seen(alone.split("train")) == NUMBERS[:4]


def test_other_columns_and_pictures_as_the_library_stores_them(tmp_path):
    stored = table(range(6)).cast_column("image", datasets.Image())
    stored.rename_columns({"image": "jpg", "text": "caption"}).save_to_disk(tmp_path)
    data = source(tmp_path, image="jpg", caption="caption", held_out=0.5)
    both = [seen(data.split(name)) for name in ("train", "test")]
    assert sorted(both[0] + both[1]) == NUMBERS
    assert all(both)


def test_named_splits_of_a_saved_dictionary(tmp_path):
    saved = datasets.DatasetDict({"big": table(range(4)), "held": table(range(4, 6))})
    saved.save_to_disk(tmp_path)
    data = source(tmp_path, train="big", test="held")
    assert seen(data.split("train")) + seen(data.split("test")) == NUMBERS
    assert message(lambda: source(tmp_path, train="bigg").split("train")) == (
        f"{tmp_path}: has no split 'bigg'; did you mean 'big'?"
    )


def test_an_imagefolder_tells_changed_pictures(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    rows = [{"file_name": f"{n}.png", "text": f"number {n}"} for n in range(6)]
    for n in range(6):
        (folder / f"{n}.png").write_bytes(png(10 * n))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = source(tmp_path / "set", cache=str(tmp_path / "cache"))
    split = data.split("train")
    assert seen(split) == NUMBERS
    before = split.fingerprint()
    assert data.split("train").fingerprint() == before
    (folder / "3.png").write_bytes(png(99) + b"more")
    assert data.split("train").fingerprint() != before


@pytest.mark.fault("bad pictures")
def test_bad_examples(tmp_path):
    cells = [
        {"bytes": png(0)},
        {"bytes": b""},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": png(30)},
        None,
    ]
    stored = datasets.Dataset.from_dict({"image": cells, "text": ["0", "1", "2", "  ", "4"]})
    stored.save_to_disk(tmp_path)
    assert message(lambda: source(tmp_path).split("train")) == (
        f"{tmp_path}: row 3: its caption is empty{REMEDY}"
    )
    split = source(tmp_path, on_bad_example="skip").split("train")
    assert [red for red, _ in seen(split)] == [0] * 4
    assert split.faults == (f"{tmp_path}: row 3: its caption is empty{REMEDY}",)
    assert [split.fault(i) for i in range(4)] == [
        None,
        f"{tmp_path}: row 1: is empty (0 bytes){REMEDY}",
        f"{tmp_path}: row 2: names /etc/passwd, which leads out of the folder{REMEDY}",
        f"{tmp_path}: row 4: has no picture{REMEDY}",
    ]


def test_captions_that_are_no_text(tmp_path):
    table(range(2), text=[1, 2]).save_to_disk(tmp_path)
    assert message(lambda: source(tmp_path).split("train")) == (
        f"{tmp_path}: row 0: its caption is not text{REMEDY}"
    )


@pytest.mark.parametrize(
    "path", ["nobody/nothing", "hf://datasets/nobody/nothing", "https://host/x.parquet"]
)
def test_what_is_not_on_this_machine_is_refused(path):
    assert message(lambda: source(path).split("train")) == (
        f"{path}: is no folder or file on this machine; a set on the hub could only be streamed or "
        "downloaded; download it, and name the folder"
    )


def test_what_does_not_fit(tmp_path):
    table(range(2)).save_to_disk(tmp_path / "a")
    assert message(lambda: source(tmp_path / "a", image="picture").split("train")) == (
        f"{tmp_path}/a: has no column 'picture'; known: image, text"
    )
    told = message(lambda: source(tmp_path / "a", image="text").split("train").example(0))
    assert told.startswith(f"{tmp_path}/a: row 0: ")
    (tmp_path / "b.parquet").write_bytes(b"no table")
    told = message(lambda: source(tmp_path / "b.parquet", cache=str(tmp_path)).split("train"))
    assert told.startswith(f"{tmp_path}/b.parquet: cannot be read (")
    assert told.endswith("give a folder of save_to_disk, Parquet files, or an imagefolder")


def test_without_the_extra_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message(lambda: source(tmp_path).split("train")) == (
        "hf_dataset: the package datasets is not installed; pip install 'sfumato[hf-data]'"
    )
