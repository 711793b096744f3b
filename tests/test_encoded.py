"""What encoders say is kept under all that it depends on: never stale, and the same training."""

import json
from pathlib import Path

import attrs
import pytest
import torch
from PIL import Image

import sfumato
from sfumato import ConfigError, Data, DataError, Pipeline, Split, encoded, lock
from sfumato.encoded import Encoding
from sfumato.engine import Single
from sfumato.training import train

SHORT = (
    "stages.clip.steps=1",
    "stages.denoiser.steps=3",
    "evaluation={metrics: [], count: 1}",
    "sampling.steps=1",
)


def run(registry, out, *overrides):
    return list(train(registry.experiment("small", [*SHORT, *overrides]), out, device="cpu"))


def losses(steps):
    return [step.loss for step in steps]


@pytest.fixture
def cached(tmp_path):
    return f"stages.denoiser.cache={tmp_path / 'cache'}"


@pytest.fixture
def encodings(monkeypatch):
    """How many pictures were encoded."""
    counted, plain = [], Pipeline.encoded

    def encode(self, batch):
        if batch.latents is None:
            counted.append(len(batch.captions))
        return plain(self, batch)

    monkeypatch.setattr(Pipeline, "encoded", encode)
    return counted


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses_are_those_without_a_cache(registry, tmp_path, cached, encodings, precision):
    options = (
        f"stages.denoiser.precision={precision}",
        "autoencoder=patches",
        "denoiser.channels=[16,16]",
    )
    plain = losses(run(registry, tmp_path / "plain", *options))
    encodings.clear()
    first = losses(run(registry, tmp_path / "first", *options, cached))
    assert sum(encodings) == 64 + 1 + 3  # once each; one to see how large, three to compare
    encodings.clear()
    again = losses(run(registry, tmp_path / "again", *options, cached))
    assert sum(encodings) <= 1 + 3
    assert first == again
    assert first == pytest.approx(plain, rel=1e-6 if precision == "float32" else 1e-3)


def test_in_parts_too(registry, tmp_path, cached):
    """One row in each: what is cut wrongly would broadcast."""
    parts = ["stages.denoiser.batch=4", "stages.denoiser.accumulation=4"]
    plain = losses(run(registry, tmp_path / "plain", "stages.denoiser.batch=4"))
    assert losses(run(registry, tmp_path / "kept", *parts, cached)) == pytest.approx(
        plain, rel=1e-5
    )


def test_in_worker_processes_too(registry, tmp_path, cached):
    inside = losses(run(registry, tmp_path / "inside", cached))
    assert losses(run(registry, tmp_path / "workers", cached, "workers=2")) == inside


def folder_of(registry, cached, *overrides):
    """Where the answers belong, of an untrained pipeline."""
    experiment = registry.experiment("small", [cached, *overrides])
    split = experiment.data.split("train")
    captions = [split.caption(index) for index in range(len(split))]
    pipeline = Pipeline(experiment, experiment.text_encoder.fit(captions), experiment.seed)
    stage = experiment.stages["denoiser"]
    engine = Single("cpu")
    return Encoding(experiment, pipeline, split, stage, engine, registry.catalogue).folder


@pytest.mark.parametrize(
    "change",
    ["data.seed=7", "data.count=65", "seed=5", "autoencoder=patches", "text_encoder.heads=4",
     "stages.denoiser.precision=bfloat16", "stages.denoiser.batch=16"],
)  # fmt: skip
def test_whatever_they_depend_on_makes_another_folder(registry, cached, change):
    assert folder_of(registry, cached, change) != folder_of(registry, cached)


def source_of(registry, component):
    offers = registry.catalogue.offers
    return next(one.plugin.source for one in offers if one.component.name == component)


@pytest.mark.parametrize("what", ["core", "clip", "shapes", "unet", "instructions"])
def test_an_edited_encoder_or_another_processor_makes_another_folder(
    registry, cached, monkeypatch, what
):
    before, digest = folder_of(registry, cached), lock.digest
    if what == "instructions":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ELSE")
    else:
        path = Path(sfumato.__file__).parent if what == "core" else source_of(registry, what)
        monkeypatch.setattr(lock, "digest", lambda source: digest(source) + "e" * (source == path))
    assert (folder_of(registry, cached) == before) == (what == "unet")


@pytest.mark.parametrize(
    "change",
    ["stages.denoiser.learning_rate=1e-4", "noise_schedule=cosine", "denoiser.channels=[8,8]"],
)
def test_what_they_do_not_depend_on_does_not(registry, cached, change):
    assert folder_of(registry, cached, change) == folder_of(registry, cached)


def paint(folder, reds):
    folder.mkdir(exist_ok=True)
    for number, red in enumerate(reds):
        Image.new("RGB", (16, 16), (red, 0, 0)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("a red square")


def test_a_changed_picture_makes_another_folder(registry, tmp_path, cached):
    data = f"data={{use: image_folder, folder: {tmp_path / 'set'}, size: 16, held_out: 0.0}}"
    paint(tmp_path / "set", range(0, 80, 10))
    before = folder_of(registry, cached, data)
    assert folder_of(registry, cached, data) == before
    paint(tmp_path / "set", [255, *range(10, 80, 10)])
    assert folder_of(registry, cached, data) != before


def test_a_changed_picture_is_encoded_anew(registry, tmp_path, cached):
    data = f"data={{use: image_folder, folder: {tmp_path / 'set'}, size: 16, held_out: 0.0}}"
    paint(tmp_path / "set", range(0, 80, 10))
    one = losses(run(registry, tmp_path / "one", data, cached))
    paint(tmp_path / "set", [255] * 8)
    other = losses(run(registry, tmp_path / "other", data, cached))
    assert other == pytest.approx(losses(run(registry, tmp_path / "plain", data)), rel=1e-6)
    assert other != one


def test_a_file_that_is_missing_or_cut_is_made_again(registry, tmp_path, cached, monkeypatch):
    monkeypatch.setattr(encoded, "SHARD", 16)
    first = losses(run(registry, tmp_path / "first", cached))
    (folder,) = (tmp_path / "cache").iterdir()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(files) >= 4 + 2
    (folder / "latents-00001.safetensors").unlink()
    (folder / "latents-00002.safetensors").write_bytes(files["latents-00002.safetensors"][:900])
    (folder / "texts-00000.safetensors").write_bytes(b"")
    encoded._open.cache_clear()
    assert losses(run(registry, tmp_path / "again", cached)) == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.fault("bad pictures")
def test_bad_examples_are_told_with_a_cache_as_without(registry, tmp_path, cached):
    paint(tmp_path / "set", range(0, 80, 10))
    broken = (tmp_path / "set" / "03.png").read_bytes()
    (tmp_path / "set" / "03.png").write_bytes(broken[:45])
    (tmp_path / "set" / "05.txt").write_text(" ")
    data = (f"data={{use: image_folder, folder: {tmp_path / 'set'}, size: 16, held_out: 0.0}}",
            "data.on_bad_example=skip", "data.bad_share=0.3", "stages.clip.batch=7", "stages.denoiser.batch=7")  # fmt: skip
    records = []
    for name, options in (
        ("plain", data), ("workers", (*data, "workers=2")), ("cached", (*data, cached)), ("again", (*data, cached)),
    ):  # fmt: skip
        run(registry, tmp_path / name, *options)
        records.append(json.loads((tmp_path / name / "run.json").read_text()))
    assert [record["dropped"] for record in records] == [2, 2, 2, 2]
    assert [fault.split(": ")[0][-6:] for fault in records[0]["bad_examples"]] == [
        "05.png",
        "03.png",
    ]
    assert all(record["bad_examples"] == records[0]["bad_examples"] for record in records)


@attrs.frozen
class Flipping(Split):
    """Says something else each time, against its contract."""

    calls: list = attrs.field(factory=list)

    def __len__(self):
        return 8

    def caption(self, index):
        return "noise"

    def example(self, index):
        self.calls.append(index)
        return torch.full((3, 16, 16), (len(self.calls) * 37 % 64) / 32 - 1), "noise"


@attrs.frozen(kw_only=True)
class Random(Data):
    name = "random"
    picture_size = (16, 16)

    def split(self, name):
        return Flipping()


def test_data_that_vary_are_found_out(registry, tmp_path, cached):
    experiment = attrs.evolve(registry.experiment("small", [*SHORT, cached]), data=Random())
    with pytest.raises(ConfigError) as error:
        list(train(experiment, tmp_path / "run", device="cpu"))
    assert "latents computed anew differ from those that are kept, by " in str(error.value)
    assert str(error.value).endswith(
        "of their largest value: data or encoders say something else each time; "
        "leave `cache` out, or what is random in them"
    )


def test_a_stage_whose_encoders_move_is_refused(registry, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(registry, tmp_path / "run", f"stages.clip.cache={tmp_path}")
    assert str(error.value) == (
        "stages.clip.cache: the objective 'contrastive' trains the text encoder, so that what it says "
        "changes at each step; leave it out"
    )
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_told_before(registry, tmp_path, cached, monkeypatch):
    monkeypatch.setattr(encoded, "_free", lambda folder: 1000)
    with pytest.raises(
        ConfigError, match=r"needs up to .*B, and the disk has 1 kB left; make room"
    ):
        run(registry, tmp_path / "run", cached)


@pytest.mark.fault("bad pictures")
def test_a_source_stops_where_too_much_is_bad(registry, tmp_path):
    paint(tmp_path / "set", range(0, 80, 10))
    for number in range(2):
        path = tmp_path / "set" / f"0{number}.png"
        path.write_bytes(path.read_bytes()[:45])
    data = (f"data={{use: image_folder, folder: {tmp_path / 'set'}, size: 16, held_out: 0.0}}",
            "data.on_bad_example=skip", "data.bad_share=0.2")  # fmt: skip
    with pytest.raises(
        DataError, match=r"^2 of 8 pictures are bad, more than bad_share: 0.2 allows"
    ):
        run(registry, tmp_path / "run", *data)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
