"""`webdataset`: tars read at random through an index that is never stale, and what is refused."""

import io
import json
import os
import tarfile
from collections import Counter

import pytest
import torch
from PIL import Image

from sfumato import DataError
from sfumato.batches import Batches, examples_at
from sfumato_data import ImageFolder, WebDataset
from sfumato_data.pictures import to_image

REMEDY = "; repair or remove it, or set on_bad_example: skip"


def png(color, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def pack(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def source(folder, shards="*.tar", **options):
    given = {
        "size": 8,
        "held_out": 0.0,
        "bad_share": 1.0,
        "index": str(folder / "index"),
        **options,
    }
    return WebDataset(shards=f"{folder}/{shards}", **given)


def message(call):
    with pytest.raises(DataError) as error:
        call()
    return str(error.value)


@pytest.fixture
def tars(tmp_path):
    """Two tars of three examples, whose red is 10 times their number."""
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members[f"a/{number:02}.png"] = png((10 * number, 0, 0))
            members[f"a/{number:02}.txt"] = f"number {number}\n"
        pack(tmp_path / f"{shard:03}.tar", members)
    return tmp_path


def seen(split):
    reds = [to_image(split.example(i)[0]).getpixel((0, 0))[0] for i in range(len(split))]
    return list(zip(reds, [split.caption(i) for i in range(len(split))], strict=True))


NUMBERS = [(10 * number, f"number {number}") for number in range(6)]


@pytest.mark.parametrize("shards", ["*.tar", "{000..001}.tar", "00?.tar"])
def test_examples_stand_in_the_order_of_the_tars(tars, shards):
    assert seen(source(tars, shards).split("train")) == NUMBERS


def test_pictures_are_those_of_a_folder_with_the_same_files(tars, tmp_path):
    for shard in sorted(tars.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path / "files", filter="data")
    folder = ImageFolder(folder=str(tmp_path / "files"), size=8, held_out=0.0).split("train")
    split = source(tars).split("train")
    for index in range(6):
        (image, caption), (other, same) = split.example(index), folder.example(index)
        assert torch.equal(image, other) and caption == same


def test_a_tar_is_read_through_once(tars, monkeypatch):
    assert seen(source(tars).split("train")) == NUMBERS
    monkeypatch.setattr(tarfile, "open", None)
    assert seen(source(tars).split("train")) == NUMBERS
    kept = sorted((tars / "index").iterdir())
    assert [path.suffix for path in kept] == [".json", ".json"]
    assert seen(source(tars).split("train")) == NUMBERS


def test_a_tar_that_has_changed_is_read_again(tars):
    before = source(tars).split("train")
    pack(tars / "001.tar", {"x.png": png((9, 0, 0)), "x.txt": "new"})
    split = source(tars).split("train")
    assert seen(split) == [*NUMBERS[:3], (9, "new")]
    assert split.fingerprint() != before.fingerprint()


@pytest.mark.parametrize("spoil", ["cut", "flip", "other", "empty"])
def test_a_damaged_index_is_made_again(tars, spoil):
    source(tars).split("train")
    for path in (tars / "index").iterdir():
        found = json.loads(path.read_bytes())
        found["examples"][0][1] += 1
        path.write_text(
            {"cut": path.read_text()[:50], "flip": json.dumps(found), "other": "[]", "empty": ""}[
                spoil
            ]
        )
    assert seen(source(tars).split("train")) == NUMBERS


def test_where_no_index_can_be_kept_it_is_made_each_time(tars):
    (tars / "file").write_text("not a folder")
    split = source(tars, index=str(tars / "file" / "index")).split("train")
    assert seen(split) == NUMBERS


def test_splits(tars, tmp_path):
    data = source(tars, held_out=0.5)
    both = [seen(data.split(name)) for name in ("train", "test")]
    assert sorted(both[0] + both[1]) == NUMBERS
    assert all(both)
    named = source(tars, "000.tar", test_shards=f"{tars}/001.tar")
    assert seen(named.split("train")) == NUMBERS[:3]
    assert seen(named.split("test")) == NUMBERS[3:]
    assert message(lambda: source(tars).split("test")) == (
        f"{tars}/*.tar: none of its 6 pictures falls into the test split; "
        "change held_out, or name the pictures of each split"
    )


def test_captions_in_json(tmp_path):
    pack(tmp_path / "a.tar", {
        "1.jpg": png((1, 0, 0)), "1.json": '{"text": "one", "width": 8}', "1.cls": "3",
        "2.JSON": '{"text": "two"}', "2.PNG": png((2, 0, 0)), "__x/3.png": b"", "._4.png": b"",
    })  # fmt: skip
    split = source(tmp_path, caption="json.text").split("train")
    assert seen(split) == [(1, "one"), (2, "two")]


BAD = [
    ({"b.png": b""}, "is empty (0 bytes)", 1),
    ({"b.png": "<html>404</html>"}, "is not a PNG, JPEG, WebP, BMP or GIF picture", 1),
    ({"b.txt": " \n"}, "its caption b.txt is empty", 0),
    ({"b.txt": b"\xff"}, "its caption b.txt is not UTF-8", 0),
    ({"b.txt": "x" * 100_000}, "its caption b.txt is longer than 10000 bytes", 0),
    ({"b.txt": None}, "has no caption: b.txt is missing", 0),
]


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize(("change", "problem", "late"), BAD)
def test_a_bad_example_stops_or_is_replaced(tmp_path, change, problem, late):
    good = {"a.png": png((1, 0, 0)), "a.txt": "a", "b.png": png((2, 0, 0)), "b.txt": "b",
            "c.png": png((3, 0, 0)), "c.txt": "c"}  # fmt: skip
    members = {name: content for name, content in {**good, **change}.items() if content is not None}
    pack(tmp_path / "s.tar", members)
    told = f"{tmp_path}/s.tar: b: {problem}{REMEDY}"
    assert message(lambda: seen(source(tmp_path).split("train"))) == told
    split = source(tmp_path, on_bad_example="skip").split("train")
    assert [red for red, _ in seen(split)] == [1, *[3] * late, 3]
    assert split.faults == (() if late else (told,))
    assert split.fault(1) == (told if late else None)


def test_bad_json(tmp_path):
    pack(tmp_path / "a.tar", {"1.png": png((1, 0, 0)), "1.json": '{"txt": 1}'})
    assert message(lambda: source(tmp_path, caption="json.text").split("train")) == (
        f"{tmp_path}/a.tar: 1: its caption 1.json is no JSON object with 'text'{REMEDY}"
    )


@pytest.mark.parametrize(
    "address", ["pipe:cat x.tar", "https://host/{0..9}.tar", "s3://bucket/x.tar"]
)
def test_what_can_only_be_streamed_is_refused(address):
    assert message(lambda: WebDataset(shards=address).split("train")) == (
        f"{address}: can only be streamed, which gives neither a random order nor a resume without "
        "state; copy the tars to a disk and name them there"
    )


def test_no_tar(tmp_path):
    assert message(lambda: source(tmp_path).split("train")) == (
        f'{tmp_path}/*.tar: there is no such file; write "FOLDER/*.tar"'
    )
    pack(tmp_path / "a.tar", {"a.txt": "no picture"})
    assert message(lambda: source(tmp_path).split("train")) == (
        f"{tmp_path}/*.tar: holds no PNG, JPEG, WebP, BMP or GIF pictures"
    )


@pytest.mark.parametrize("how", ["compressed", "cut"])
def test_a_tar_that_cannot_be_read_at_random(tars, how):
    path = tars / "000.tar"
    if how == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tars / "001.tar", "x.png")
    else:
        os.truncate(path, 1100)
    told = message(lambda: source(tars).split("train"))
    assert told.startswith(f"{path}: is no tar that can be read at random (")
    assert told.endswith("unpack it where it is compressed, and copy it again where it is damaged")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_rank_and_worker_together_see_each_example_once_an_epoch(tars, workers):
    """Examples are chosen by number, so their rows of the batch are all that ranks have to know."""
    split = source(tars).split("train")
    batches = Batches(split=split, seed=0, stage="denoiser", size=3, rows=range(3))
    cpu = torch.device("cpu")
    for epoch in range(2):
        steps = range(2 * epoch, 2 * epoch + 2)
        captions = Counter()
        for step, batch in zip(steps, batches.of(steps, cpu, workers), strict=True):
            captions.update(batch.captions)
            assert batch.examples.tolist() == examples_at(6, 0, "denoiser", 3, step)
        assert captions == Counter(dict.fromkeys((text for _, text in NUMBERS), 1))
