"""Dashboards: what each wrote, read back by its own reader; a run that goes on; and what fails alone."""

import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import sfumato
from sfumato import PictureSaved, TrainEnd, TrainStep
from sfumato.testing.trackers import records
from sfumato.training import train
from sfumato.watchers import Watchers
from survival import fingerprint, record

NAMES = ["tensorboard", "wandb", "trackio"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run folder as training makes it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "demo"
    run.mkdir()
    (run / "run.json").write_text('{"status": "running"}')
    (run / "settings.yaml").write_text("seed: 3\nguidance: {use: cfg, scale: 4.0}\n")
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    return run


def step(number, loss):
    return TrainStep(
        stage="denoiser", step=number, stage_step=number, stage_steps=7, loss=loss,
        learning_rate=1e-3, gradient_norm=0.5, seconds=0.01, numbers={"text_dropout": 0.25},
    )  # fmt: skip


def follow(name, run, steps, *, ends, **options):
    """Tells a tracker these steps and, where the run ends, a picture and results."""
    watchers = Watchers()
    watchers.add(f"tracker {name}", lambda: sfumato.create("tracker", name, **options).build(run))
    for number in steps:
        watchers.notify("sfumato_on_train_step", step=step(number, 1 / number))
    saved = sfumato.CheckpointSaved(path=run / "checkpoints", step=steps[-1])
    watchers.notify("sfumato_on_checkpoint", checkpoint=saved)
    if ends:
        Image.new("RGB", (8, 4), (255, 0, 0)).save(run / "sheet.png")
        picture = PictureSaved(name="samples", path=run / "sheet.png", step=7)
        watchers.notify("sfumato_on_picture", picture=picture)
        results = {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 2}, "samples": "two"}
        watchers.notify("sfumato_on_train_end", end=TrainEnd(run=run, stage=None, results=results))


def resumed(run, at):
    (run / "run.json").write_text(json.dumps({"resumed": [{"step": at}]}))


# What each reader finds: scalars as {name: {step: value}}, settings, pictures as {name: (w, h)}


def in_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    found.Reload()
    scalars = {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }
    (text,) = {
        event.tensor_proto.string_val[0].decode()
        for event in found.Tensors("settings/text_summary")
    }
    images = {tag: found.Images(tag)[0] for tag in found.Tags()["images"]}
    return scalars, text, {tag: (image.width, image.height) for tag, image in images.items()}


def framed(content):
    """The records of a file in LevelDB's log format, which is what wandb writes: blocks of 32 KiB of
    records, each with checksum, length and whether it is whole, or the first, middle or last part.
    """
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def in_wandb(run):
    """The offline files of all parts, which have to be of one run."""
    from wandb.proto.wandb_internal_pb2 import Record

    def records():
        for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
            yield from map(Record.FromString, framed(path.read_bytes()))

    until = time.monotonic() + 20  # its own process writes, and may be behind
    while not any(one.HasField("exit") for one in records()) and time.monotonic() < until:
        time.sleep(0.1)
    scalars, config, images, ids = {}, {}, {}, set()
    for one in records():
        if one.HasField("run"):
            ids.add(one.run.run_id)
            config |= {item.key: item.value_json for item in one.run.config.update}
        row = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in one.history.item
        }
        for name, value in row.items():
            if name.endswith("/width"):
                topic = name.removesuffix("/width")
                images[topic] = (value, row[f"{topic}/height"])
            elif not name.startswith("_"):
                scalars.setdefault(name, {})[row["_step"]] = value
    (_,) = ids
    return scalars, json.dumps(config), images


def in_trackio(run):
    from trackio.sqlite_storage import SQLiteStorage

    name = f"{run.name}-{(run / 'tracker-id').read_text().strip()}"
    scalars, images = {}, {}
    for row in SQLiteStorage.get_logs("sfumato", name):
        for key, value in row.items():
            if isinstance(value, dict) and value.get("_type", "").startswith("trackio.image"):
                from trackio import utils

                with Image.open(
                    next(Path(utils.MEDIA_DIR).rglob(Path(value["file_path"]).name))
                ) as image:
                    images[key] = image.size
            elif key not in ("step", "timestamp"):
                scalars.setdefault(key, {})[row["step"]] = value
    return scalars, json.dumps(SQLiteStorage.get_run_config("sfumato", name)), images


READERS = {"tensorboard": in_tensorboard, "wandb": in_wandb, "trackio": in_trackio}


@pytest.mark.parametrize("name", NAMES)
def test_settings_numbers_pictures_and_results_are_there(folder, name):
    follow(name, folder, range(1, 8), ends=True, every=3)
    scalars, settings, images = READERS[name](folder)
    assert scalars["denoiser/loss"] == {n: pytest.approx(1 / n) for n in (3, 6, 7)}
    assert set(scalars["denoiser/text_dropout"].values()) == {0.25}
    measured = {key: value for key, value in scalars.items() if key.startswith("results/")}
    assert measured == {
        "results/accuracy/value": {7: 0.5}, "results/accuracy/low": {7: 0.25},
        "results/accuracy/high": {7: 0.75}, "results/accuracy/n": {7: 2},
    }  # fmt: skip
    assert images == {"samples": (8, 4)}
    assert "cfg" in settings
    assert "seed" in settings


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_goes_on_goes_on_in_the_same_place(folder, name):
    """Killed after step 5, it went on from the checkpoint of step 3."""
    follow(name, folder, range(1, 6), ends=False, every=1)
    resumed(folder, 3)
    time.sleep(1.1 if name == "wandb" else 0)  # the second of its start is in a folder's name
    follow(name, folder, range(4, 8), ends=True, every=1)
    scalars, _, _ = READERS[name](folder)
    assert scalars["denoiser/loss"] == {n: pytest.approx(1 / n) for n in range(1, 8)}


@pytest.mark.parametrize("name", NAMES)
def test_a_library_that_is_missing_is_named_with_its_extra(folder, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning) as said:
        follow(name, folder, [1], ends=True)
    assert [str(one.message) for one in said] == [
        f"tracker {name} failed to start and is left out: {name} is not installed; "
        f"pip install 'sfumato[{name}]'"
    ]


@pytest.mark.fault("trackers")
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_folder_that_cannot_be_made_costs_the_tracker_alone(
    registry, small_run, tmp_path, name, monkeypatch
):
    """A file stands where the tracker wants its folder."""
    begun = train(registry.experiment("small", [f"trackers=[{name}]"]), tmp_path / "run")
    from sfumato import runs

    create = runs.Run.create

    def planted(path, *arguments):
        made = create(path, *arguments)
        (path / name).write_text("in the way")
        return made

    monkeypatch.setattr(runs.Run, "create", planted)
    with pytest.warns(UserWarning, match=f"^tracker {name} failed"):
        list(begun)
    assert record(tmp_path / "run")["status"] == "completed"
    assert fingerprint(tmp_path / "run") == fingerprint(small_run)


@pytest.mark.fault("trackers")
@pytest.mark.parametrize("name", NAMES)
def test_one_that_raises_in_the_middle_is_switched_off_and_the_run_is_the_same(
    registry, small_run, tmp_path, name, monkeypatch
):
    import importlib

    module = importlib.import_module(f"sfumato_trackers.{name}")
    (sink,) = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and one.__module__ == module.__name__
    ]
    numbers = sink.numbers

    def failing(self, values, step):
        if step >= 5:
            raise OSError("the server hung up")
        numbers(self, values, step)

    monkeypatch.setattr(sink, "numbers", failing)
    change = f"trackers=[{{use: {name}, every: 1}}]"
    with pytest.warns(UserWarning) as said:
        list(train(registry.experiment("small", [change]), tmp_path / "run"))
    assert [str(one.message) for one in said if "tracker" in str(one.message)] == [
        f"tracker {name} failed in sfumato_on_train_step and is switched off: OSError: the server hung up"
    ]
    assert fingerprint(tmp_path / "run") == fingerprint(small_run)


def test_a_run_of_its_own_is_followed_to_its_pictures_and_intervals(registry, tmp_path):
    """The whole way: training tells, and the event files say what `run.json` says."""
    changes = [
        "trackers=[{use: tensorboard, every: 2}]",
        "evaluation.studies=[{use: clip_similarity, count: 4}]",
    ]
    list(train(registry.experiment("small", changes), tmp_path / "run"))
    scalars, _, images = in_tensorboard(tmp_path / "run")
    logged = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert scalars["denoiser/loss"] == {
        line["step"]: pytest.approx(line["loss"]) for line in logged if line["step"] in (6, 8, 10)
    }
    assert list(images) == ["samples", "clip_similarity"]
    from sfumato_trackers.following import flat

    results = flat(record(tmp_path / "run")["results"], "results")
    assert results
    assert {name: scalars[name][10] for name in results} == pytest.approx(results)


def test_each_record_of_a_run_is_taken_by_every_tracker(folder):
    """Beside the laws, which look at each alone: three dashboards in one process."""
    watchers = Watchers()
    for name in NAMES:
        watchers.add(name, lambda name=name: sfumato.create("tracker", name).build(folder))
    state = torch.random.get_rng_state()
    for hook, argument, one in records(folder):
        watchers.notify(hook, **{argument: one})
    assert torch.random.get_rng_state().equal(state)
    assert {"tensorboard", "wandb", "tracker-id"} <= set(os.listdir(folder))
