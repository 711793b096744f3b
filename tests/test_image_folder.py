"""`image_folder`: listings, captions, conversions, splits and every fault with its message."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import DataError
from sfumato_data import ImageFolder, Shapes
from sfumato_data.export import export_image_folder
from sfumato_data.held_out import is_held_out
from sfumato_data.pictures import to_image, to_tensor

REMEDY = "; repair or remove it, or set on_bad_example: skip"
RED, GREEN, BLUE, BLACK, WHITE = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (0, 0, 0),
    (255, 255, 255),
)


def paint(path, color=RED, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


def captioned(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def train(folder, **options):
    return ImageFolder(
        **{"folder": str(folder), "size": 8, "held_out": 0.0, "bad_share": 1.0, **options}
    ).split("train")


def colors(split):
    """The colour of the top left pixel of each example."""
    return [tuple(to_image(split.example(i)[0]).getpixel((0, 0))) for i in range(len(split))]


def captions(split):
    return [split.caption(i) for i in range(len(split))]


def message(call):
    with pytest.raises(DataError) as error:
        call()
    return str(error.value)


# Captions


def test_metadata_jsonl(tmp_path):
    paint(tmp_path / "b.png", GREEN)
    paint(tmp_path / "sub" / "a.png", BLUE)
    paint(tmp_path / "a.png", RED)
    captioned(tmp_path, {"sub/a.png": " blue\n", "./b.png": "grün", "a.png": "red"})
    split = train(tmp_path)
    assert captions(split) == ["red", "grün", "blue"]
    assert colors(split) == [RED, GREEN, BLUE]
    assert split.example(1)[1] == "grün"


def test_metadata_csv_with_byte_order_mark_quotes_and_windows_lines(tmp_path):
    paint(tmp_path / "a.png", RED)
    paint(tmp_path / "b.png", GREEN)
    text = '\ufefffile_name,text,extra\r\nb.png,"green, plain",1\r\na.png,"two\nlines",2\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    assert captions(train(tmp_path)) == ["two\nlines", "green, plain"]


def test_one_picture_with_two_captions_is_two_examples(tmp_path):
    paint(tmp_path / "a.png")
    lines = ['{"file_name": "a.png", "text": "one"}', "", '{"file_name": "a.png", "text": "two"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert captions(train(tmp_path)) == ["one", "two"]


def test_sidecars_win_over_class_folders(tmp_path):
    paint(tmp_path / "cats" / "a.png")
    (tmp_path / "cats" / "a.txt").write_text("\ufeffa sleeping cat\n")
    (tmp_path / "readme.txt").write_text("no caption")
    assert captions(train(tmp_path)) == ["a sleeping cat"]


def test_class_folders(tmp_path):
    paint(tmp_path / "zebra" / "1.png")
    paint(tmp_path / "animals" / "big-cats_old" / "1.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("no sidecar")
    assert captions(train(tmp_path)) == ["big cats old", "zebra"]


def test_hidden_names_are_ignored(tmp_path):
    paint(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "._1.png").write_bytes(b"resource fork")
    paint(tmp_path / "__MACOSX" / "1.png")
    assert captions(train(tmp_path)) == ["cat"]


# Conversions


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize(
    ("file", "mode", "color", "expected"),
    [
        ("a.png", "L", 128, (128, 128, 128)),
        ("a.png", "1", 1, WHITE),
        ("a.png", "P", 0, BLACK),
        ("a.png", "LA", (0, 0), WHITE),
        ("a.png", "RGBA", (255, 0, 0, 0), WHITE),
        ("a.png", "RGBA", (255, 0, 0, 255), RED),
        ("a.png", "RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("a.png", "I;16", 65535, WHITE),
        ("a.png", "I;16", 0x8000, (128, 128, 128)),
        ("a.bmp", "RGB", BLUE, BLUE),
        ("a.gif", "RGB", BLUE, BLUE),
        ("a.jpg", "CMYK", (0, 0, 0, 255), BLACK),
        ("a.jpg", "CMYK", (0, 0, 0, 0), WHITE),
        ("a.jpeg", "L", 7, (7, 7, 7)),
    ],
)
def test_modes(tmp_path, file, mode, color, expected):
    paint(tmp_path / "x" / file, color, mode=mode)
    assert colors(train(tmp_path)) == [expected]


def test_webp(tmp_path):
    paint(tmp_path / "x" / "a.webp", GREEN, lossless=True)
    assert colors(train(tmp_path)) == [GREEN]


@pytest.mark.fault("bad pictures")
def test_a_palette_with_transparency_is_laid_on_white(tmp_path):
    paint(tmp_path / "x" / "a.png", 0, mode="P", transparency=0)
    assert colors(train(tmp_path)) == [WHITE]


@pytest.mark.fault("bad pictures")
def test_sixteen_bit_gray_and_sixteen_bit_rgb_agree(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "x").mkdir()
    for name, color_type, pixels in (("gray", 0, values), ("rgb", 2, np.stack([values] * 3, -1))):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        header = struct.pack(">IIBBBBB", 8, 8, 16, color_type, 0, 0, 0)
        (tmp_path / "x" / f"{name}.png").write_bytes(png(header, zlib.compress(rows)))
    gray, rgb = (train(tmp_path).example(i)[0] for i in range(2))
    assert torch.equal(gray, rgb)
    assert gray[0].flatten().tolist() == sorted(set(gray[0].flatten().tolist()))


def png(header, data):
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.fault("bad pictures")
def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (8, 8), BLUE)
    image.paste(RED, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the top becomes the right
    (tmp_path / "x").mkdir()
    image.save(tmp_path / "x" / "a.png", exif=exif)
    shown = to_image(train(tmp_path).example(0)[0])
    assert shown.getpixel((0, 0)) == shown.getpixel((0, 7)) == BLUE
    assert shown.getpixel((7, 0)) == shown.getpixel((7, 7)) == RED


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize("file", ["a.gif", "a.png", "a.webp"])
def test_the_first_frame_of_an_animation(tmp_path, file):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    (tmp_path / "x").mkdir()
    first.save(tmp_path / "x" / file, save_all=True, append_images=[second], lossless=True)
    assert colors(train(tmp_path)) == [RED]


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_square_is_taken_and_antialiased(tmp_path, wide):
    # Green left, a fine black-and-white chequerboard in the middle 64 x 64, green right.
    pixels = np.zeros((64, 192, 3), dtype=np.uint8)
    pixels[...] = GREEN
    board = np.indices((64, 64)).sum(0) % 2 * 255
    pixels[:, 64:128] = board[..., None]
    (tmp_path / "x").mkdir()
    whole = Image.fromarray(pixels if wide else pixels.swapaxes(0, 1))
    whole.save(tmp_path / "x" / "a.png")
    image, _ = train(tmp_path).example(0)
    assert image.shape == (3, 8, 8)
    assert image[:, 2:-2, 2:-2].abs().max() < 0.02
    shorter_side_first = whole.resize((24, 8) if wide else (8, 24), Image.Resampling.LANCZOS)
    cropped = shorter_side_first.crop((8, 0, 16, 8) if wide else (0, 8, 8, 16))
    assert (image - to_tensor(cropped)).abs().max() < 1.01 * 2 / 255


def test_values(tmp_path):
    paint(tmp_path / "x" / "a.png", (0, 51, 255))
    image, _ = train(tmp_path).example(0)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image[:, 0, 0].tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-7)


def test_every_level_survives_the_way_to_a_tensor_and_back():
    levels = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    assert to_image(to_tensor(levels)).tobytes() == levels.tobytes()


# Splits


HELD_OUT = [f"{i}.png" for i in (0, 3, 18, 29, 31, 32, 39)]


def test_split_by_hash_is_stable_and_has_its_share(tmp_path):
    names = [f"{i}.png" for i in range(10_000)]
    assert 0.08 < sum(is_held_out(name, 0.1) for name in names) / len(names) < 0.12
    assert [name for name in names[:40] if is_held_out(name, 0.1)] == HELD_OUT
    assert all(is_held_out(name, 0.3) for name in names if is_held_out(name, 0.1))

    for name in names[:20]:
        paint(tmp_path / "x" / name)
    data = ImageFolder(folder=str(tmp_path), size=8, held_out=0.5)
    before = {split: files(data.split(split)) for split in ("train", "test")}
    assert sorted(before["train"] + before["test"]) == sorted(f"x/{name}" for name in names[:20])
    for name in names[20:30]:
        paint(tmp_path / "x" / name)
    for split, examples in before.items():
        assert set(examples) < set(files(data.split(split)))


def files(split):
    paths = (split._pictures[place].path for place in split._sound)
    return [path.parent.name + "/" + path.name for path in paths]


@pytest.mark.parametrize("test", ["test", "validation"])
def test_split_folders(tmp_path, test):
    paint(tmp_path / "train" / "cat" / "1.png", RED)
    paint(tmp_path / "train" / "dog" / "1.png", GREEN)
    paint(tmp_path / test / "1.png", BLUE)
    captioned(tmp_path / test, {"1.png": "held out"})
    data = ImageFolder(folder=str(tmp_path), size=8)
    assert captions(data.split("train")) == ["cat", "dog"]
    assert captions(data.split("test")) == ["held out"]


def test_a_lone_train_folder_is_divided_and_its_metadata_read(tmp_path):
    rows = {f"{i}.png": f"caption {i}" for i in range(40)}
    for name in rows:
        paint(tmp_path / "train" / name)
    captioned(tmp_path / "train", rows)
    (tmp_path / "README.md").write_text("a data card")
    (tmp_path / ".cache").mkdir()
    data = ImageFolder(folder=str(tmp_path), size=8, held_out=0.1)
    assert captions(data.split("test")) == [rows[name] for name in sorted(HELD_OUT)]
    assert captions(data.split("train")) == [rows[n] for n in sorted(rows) if n not in HELD_OUT]


def test_a_lone_train_folder_without_a_picture_for_the_split(tmp_path):
    paint(tmp_path / "train" / "x" / "a.png")
    data = ImageFolder(folder=str(tmp_path), held_out=0.0)
    assert captions(data.split("train")) == ["x"]
    assert message(lambda: data.split("test")) == (
        f"{tmp_path}: none of its 1 pictures falls into the test split; "
        "change held_out, or name the pictures of each split"
    )


def test_a_train_among_other_classes_is_a_class(tmp_path):
    paint(tmp_path / "train" / "1.png")
    paint(tmp_path / "tram" / "1.png")
    assert captions(train(tmp_path)) == ["train", "tram"]


def test_metadata_above_a_lone_train_folder(tmp_path):
    paint(tmp_path / "train" / "1.png")
    captioned(tmp_path, {"train/1.png": "from above"})
    assert captions(train(tmp_path)) == ["from above"]


def test_export_gives_the_same_examples_bit_for_bit(tmp_path):
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        (tmp_path / "source" / f"class_{index % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "source" / f"class_{index % 3}" / f"{index}.png")
    source = ImageFolder(folder=str(tmp_path / "source"), size=16, held_out=0.4)
    export_image_folder(source, tmp_path / "copy")
    copy = ImageFolder(folder=str(tmp_path / "copy"), size=16)
    for name in ("train", "test"):
        assert_equal(source.split(name), copy.split(name), tolerance=0)
    assert message(lambda: export_image_folder(source, tmp_path / "copy")) == (
        f"{tmp_path}/copy/train: already exists; choose another folder"
    )


def test_export_of_other_values_is_the_nearest_level(tmp_path):
    source = Shapes(size=16, count=11, held_out=3)
    export_image_folder(source, tmp_path)
    copy = ImageFolder(folder=str(tmp_path), size=16)
    for name in ("train", "test"):
        assert_equal(source.split(name), copy.split(name), tolerance=1 / 255 + 1e-6)


def assert_equal(one, other, tolerance):
    assert len(one) == len(other)
    for index in range(len(one)):
        (image, caption), (copied, copied_caption) = one.example(index), other.example(index)
        assert (image - copied).abs().max() <= tolerance
        assert caption == copied_caption


# Faults of the folder and its metadata


def test_no_folder(tmp_path):
    assert message(lambda: train(tmp_path / "gone")) == (
        f"{tmp_path}/gone: there is no such folder; relative folders start at {Path.cwd()}"
    )


def test_no_pictures(tmp_path):
    (tmp_path / "a.txt").write_text("a caption without a picture")
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}: holds no PNG, JPEG, WebP, BMP or GIF pictures"
    )


def test_no_picture_in_the_split(tmp_path):
    paint(tmp_path / "x" / "a.png")
    data = ImageFolder(folder=str(tmp_path), held_out=0.0)
    assert message(lambda: data.split("test")) == (
        f"{tmp_path}: none of its 1 pictures falls into the test split; "
        "change held_out, or name the pictures of each split"
    )


def test_what_stands_beside_split_folders(tmp_path):
    paint(tmp_path / "train" / "x" / "a.png")
    paint(tmp_path / "test" / "x" / "a.png")
    captioned(tmp_path, {"train/x/a.png": "lost"})
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}/metadata.jsonl: stands beside the folders train and test, "
        "so it belongs to neither split; move it into one of them"
    )


@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize(
    ("pictures", "listed", "stray"),
    [
        (["cats/a.png", "dogs/a.png"], ".", "cats"),
        (["train/a.png", "val/a.png"], ".", "train"),
        (["train/cats/a.png"], "train", "train/cats"),
        (["train/cats/a.png", "test/a.png"], "train", "train/cats"),
    ],
)
def test_metadata_that_would_not_be_read(tmp_path, pictures, listed, stray, file):
    for name in pictures:
        paint(tmp_path / name)
    (tmp_path / stray / file).write_text("not looked into")
    (tmp_path / stray / "__MACOSX").mkdir()
    (tmp_path / stray / "__MACOSX" / file).write_text("passed over")
    listed = tmp_path / listed
    for on_bad_example in ("error", "skip"):
        assert message(lambda how=on_bad_example: train(tmp_path, on_bad_example=how)) == (
            f"{tmp_path}/{stray}/{file}: is not read, since it stands below {listed}; "
            "move its rows up to there, or name the folders of the splits train and test"
        )


def test_two_metadata_files(tmp_path):
    paint(tmp_path / "a.png")
    captioned(tmp_path, {"a.png": "one"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,two\n")
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}: holds both metadata.jsonl and metadata.csv; keep one"
    )


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../x.png", "../x.png"), ("/etc/x.png", "/etc/x.png"), ("a/../../x.png", "a/../../x.png")],
)
@pytest.mark.parametrize("on_bad_example", ["error", "skip"])
def test_metadata_that_leads_out_of_the_folder(tmp_path, name, shown, on_bad_example):
    paint(tmp_path / "x.png")
    paint(tmp_path / "in" / "a.png")
    captioned(tmp_path / "in", {"a.png": "fine", name: "stolen"})
    assert message(lambda: train(tmp_path / "in", on_bad_example=on_bad_example)) == (
        f"{tmp_path}/in/metadata.jsonl:2: {shown!r} leads out of the folder; "
        "write paths relative to the folder of the metadata"
    )


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "a.png"}',
            ":1: has no text; it needs file_name and text",
        ),
        ("metadata.jsonl", b'\n{"text": "x"}', ":2: has no file_name; it needs file_name and text"),
        ("metadata.jsonl", b"[1]", ":1: is not a JSON object; it needs file_name and text"),
        (
            "metadata.jsonl",
            b'{"file_name"',
            ":1: is not JSON (Expecting ':' delimiter: line 1 column 13 (char 12))",
        ),
        ("metadata.jsonl", b'{}\n{"file_name": "\xff"}', ":2: is not UTF-8"),
        ("metadata.csv", b"file_name,text\na.png,\xff\n", ":2: is not UTF-8"),
        (
            "metadata.csv",
            b"file,text\na.png,x\n",
            ":2: has no file_name; it needs file_name and text",
        ),
        (
            "metadata.csv",
            b'file_name,text\na.png,"' + b"x" * 200_000 + b'"\n',
            ":2: is not CSV (field larger than field limit (131072))",
        ),
    ],
)
def test_malformed_metadata(tmp_path, file, content, problem):
    paint(tmp_path / "a.png")
    (tmp_path / file).write_bytes(content)
    for on_bad_example in ("error", "skip"):
        error = message(lambda how=on_bad_example: train(tmp_path, on_bad_example=how))
        assert error == f"{tmp_path}/{file}{problem}"


def test_deeply_nested_json_is_an_error_not_a_crash(tmp_path):
    paint(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    assert "metadata.jsonl:1: is not JSON (" in message(lambda: train(tmp_path))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_lead_out(tmp_path, what):
    paint(tmp_path / "elsewhere" / "a.png")
    paint(tmp_path / "in" / "x" / "b.png")
    target = tmp_path / "elsewhere"
    os.symlink(target / "a.png" if what == "file" else target, tmp_path / "in" / "x" / "a.png")
    assert message(lambda: train(tmp_path / "in")) == (
        f"{tmp_path}/in/x/a.png: is a link that leads out of the folder; "
        "put the files themselves there"
    )


def test_links_within_the_folder(tmp_path):
    paint(tmp_path / "x" / "a.png")
    os.symlink("a.png", tmp_path / "x" / "b.png")
    os.symlink(tmp_path, tmp_path / "x" / "loop")
    assert captions(train(tmp_path)) == ["x", "x"]


# Faults of one example


def truncated_jpeg(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-600])


def bomb(path):
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path.write_bytes(png(header, zlib.compress(b"")))


BAD_AT_SPLIT = [
    (lambda p: p.write_bytes(b""), "is empty (0 bytes)"),
    (
        lambda p: p.write_text("<html>404</html>"),
        "is not a PNG, JPEG, WebP, BMP or GIF picture",
    ),
    (bomb, "claims more pixels than are safe to decode"),
    (lambda p: p.with_suffix(".txt").unlink(), "has no caption: b.txt is missing"),
    (lambda p: p.with_suffix(".txt").write_text(" \n"), "its caption b.txt is empty"),
    (
        lambda p: p.with_suffix(".txt").write_text("x" * 100_000),
        "its caption b.txt is longer than 10000 bytes",
    ),
    (lambda p: p.with_suffix(".txt").write_bytes(b"\xff"), "its caption b.txt is not UTF-8"),
]


@pytest.fixture
def three(tmp_path):
    for name, color in (("a", RED), ("b", GREEN), ("c", BLUE)):
        paint(tmp_path / f"{name}.png", color)
        (tmp_path / f"{name}.txt").write_text(f"caption {name}")
    return tmp_path


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize(("spoil", "problem"), BAD_AT_SPLIT)
def test_a_bad_example_stops_or_is_dropped(three, spoil, problem):
    spoil(three / "b.png")
    assert message(lambda: train(three)) == f"{three}/b.png: {problem}{REMEDY}"
    split = train(three, on_bad_example="skip")
    assert (len(split), split.dropped) == (2, 1)
    assert split.faults == (f"{three}/b.png: {problem}{REMEDY}",)
    assert captions(split) == ["caption a", "caption c"]
    assert colors(split) == [RED, BLUE]


def test_a_bad_example_of_the_other_split_does_not_count(tmp_path):
    for i in range(20):
        paint(tmp_path / "x" / f"{i}.png")
    data = ImageFolder(folder=str(tmp_path), held_out=0.5, on_bad_example="skip", bad_share=0.5)
    train_files = files(data.split("train"))
    (tmp_path / train_files[0]).write_bytes(b"")
    assert [data.split(name).dropped for name in ("train", "test")] == [1, 0]


@pytest.mark.fault("bad pictures")
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (None, "has no caption: metadata.jsonl does not name it"),
        ({"text": 7}, "its caption in metadata.jsonl, line 2, is not text"),
        ({"text": " "}, "its caption in metadata.jsonl, line 2, is empty"),
        ({"text": "\ud800"}, "its caption in metadata.jsonl, line 2, is not Unicode text"),
        (
            {"text": "é" * 5001},
            "its caption in metadata.jsonl, line 2, is longer than 10000 bytes",
        ),
    ],
)
def test_a_bad_caption_in_the_metadata(tmp_path, row, problem):
    rows = {"a.png": "fine"} | ({"b.png": row["text"]} if row else {})
    captioned(tmp_path, rows)
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    assert message(lambda: train(tmp_path)) == f"{tmp_path}/b.png: {problem}{REMEDY}"
    split = train(tmp_path, on_bad_example="skip")
    assert (captions(split), split.dropped) == (["fine"], 1)


def test_metadata_that_names_a_missing_file(tmp_path):
    paint(tmp_path / "a.png")
    captioned(tmp_path, {"a.png": "fine", "gone.png": "missing"})
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}/gone.png: is missing, but {tmp_path}/metadata.jsonl:2 names it{REMEDY}"
    )
    split = train(tmp_path, on_bad_example="skip")
    assert (captions(split), split.dropped) == (["fine"], 1)


def test_metadata_that_names_another_kind_of_file(tmp_path):
    paint(tmp_path / "a.tiff")
    captioned(tmp_path, {"a.tiff": "a photograph"})
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}/a.tiff: is not a PNG, JPEG, WebP, BMP or GIF picture{REMEDY}"
    )


def test_a_picture_without_any_caption(tmp_path):
    paint(tmp_path / "a.png")
    assert message(lambda: train(tmp_path)) == (
        f"{tmp_path}/a.png: has no caption: no metadata, no a.txt beside it, "
        f"no class folder around it{REMEDY}"
    )


def test_a_picture_that_cannot_be_decoded_stops_the_reader(three):
    (three / "b.png").unlink()
    truncated_jpeg(three / "b.jpg")
    split = train(three)
    assert len(split) == 3
    error = message(lambda: split.example(1))
    assert error.startswith(f"{three}/b.jpg: cannot be decoded (image file is truncated (")
    assert error.endswith(REMEDY)


@pytest.mark.fault("bad pictures")
def test_a_picture_that_cannot_be_decoded_is_replaced_by_the_next(three):
    (three / "c.png").unlink()
    truncated_jpeg(three / "c.jpg")
    split = train(three, on_bad_example="skip")
    assert (len(split), split.dropped) == (3, 0)
    for _ in range(2):
        image, caption = split.example(2)
        assert (to_image(image).getpixel((0, 0)), caption) == (RED, "caption a")
        assert split.fault(2).startswith(
            f"{three}/c.jpg: cannot be decoded (image file is truncated"
        )
        assert split.fault(0) is None
    assert colors(split) == [RED, GREEN, RED]
    with pytest.raises(IndexError):
        split.example(3)


@pytest.mark.fault("bad pictures")
def test_all_pictures_bad(tmp_path):
    (tmp_path / "x").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "x" / name).write_bytes(b"")
    assert message(lambda: train(tmp_path, on_bad_example="skip")) == (
        f"all 2 pictures are bad; the first: {tmp_path}/x/a.png: is empty (0 bytes){REMEDY}"
    )


def test_all_pictures_bad_on_decoding(tmp_path):
    (tmp_path / "x").mkdir()
    truncated_jpeg(tmp_path / "x" / "a.jpg")
    split = train(tmp_path, on_bad_example="skip")
    error = message(lambda: split.example(0))
    assert error.startswith(f"all 1 pictures are bad; the first: {tmp_path}/x/a.jpg: cannot be dec")


@pytest.mark.fault("bad pictures")
def test_more_than_a_share_of_bad_examples_stops(three):
    (three / "a.png").write_bytes(b"")
    truncated_jpeg(three / "c.jpg")
    (three / "c.png").unlink()
    split = train(three, on_bad_example="skip", bad_share=0.4)
    assert len(split) == 2
    split.example(1)
    split.check_bad({})
    assert message(lambda: split.check_bad({1: split.fault(1)})).startswith(
        f"2 of 3 pictures are bad, more than bad_share: 0.4 allows; the first: {three}/a.png: is empty"
    )
    assert message(lambda: train(three, on_bad_example="skip", bad_share=0.3)).startswith(
        "1 of 3 pictures are bad, more than bad_share: 0.3 allows; the first: "
    )


@pytest.mark.fault("bad pictures")
def test_the_first_ten_faults_are_told(tmp_path):
    for number in range(14):
        paint(tmp_path / "x" / f"{number:02}.png")
        if number:
            (tmp_path / "x" / f"{number:02}.png").write_bytes(b"")
    split = train(tmp_path, on_bad_example="skip")
    assert split.dropped == 13
    assert [fault.split(":")[0] for fault in split.faults] == [
        f"{tmp_path}/x/{number:02}.png" for number in range(1, 11)
    ]


def test_the_fingerprint_tells_a_changed_picture(three):
    before = train(three).fingerprint()
    assert train(three).fingerprint() == before
    paint(three / "b.png", BLUE, size=(9, 9))
    changed = train(three).fingerprint()
    (three / "b.txt").write_text("another caption")
    assert len({before, changed, train(three).fingerprint()}) == 3
