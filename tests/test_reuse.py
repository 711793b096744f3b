"""A stage that another run finished is taken where it would end in the same bits, and nowhere else."""

import json
import shutil

import pytest
import torch
import yaml

from sfumato import Pipeline, runs, stage_keys
from sfumato.engine import Single
from sfumato.registry import Registry
from sfumato.reuse import Shelf
from sfumato.training import train
from sfumato_losses import Denoising
from small import SMALL

OTHERS = {
    "seed": "seed=4",
    "data": "data.count=63",
    "stage": "stages.clip.learning_rate=2e-3",
    "text encoder": "text_encoder.width=32",
    "denoiser": "denoiser.channels.0=8",
    "schedule": "noise_schedule=cosine",
    "loss": "loss=l1",
    "guidance": "guidance.scale=9",
    "steps of sampling": "sampling.steps=2",
}
SHARED = {  # which of the two stages, clip and denoiser, are taken where only this differs
    "seed": (),
    "data": (),
    "stage": (),
    "text encoder": (),
    "denoiser": ("clip",),
    "schedule": ("clip",),
    "loss": ("clip",),
    "guidance": ("clip", "denoiser"),
    "steps of sampling": ("clip", "denoiser"),
}


def run(registry, out, *overrides, **options):
    done = list(train(registry.experiment("small", overrides), out, **options))
    return [step.stage for step in done]


def record(out):
    return json.loads((out / "run.json").read_text())


def log(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def hashes(out):
    manifests = sorted((out / "checkpoints").glob("*/manifest.json"))
    return {path.parent.name: json.loads(path.read_text())["files"] for path in manifests}


def keys(registry, catalogue, *overrides):
    experiment = registry.experiment("small", overrides)
    split = experiment.data.split("train")
    captions = [split.caption(i) for i in range(len(split))]
    pipeline = Pipeline(experiment, experiment.text_encoder.fit(captions), experiment.seed)
    weights = stage_keys.initial(experiment, pipeline)
    return stage_keys.keys(experiment, catalogue, split, Single("cpu"), weights)


@pytest.mark.parametrize("other", OTHERS)
def test_a_stage_has_one_key_where_nothing_that_it_reads_differs(
    other, registry, catalogue, small_run
):
    mine = keys(registry, catalogue, OTHERS[other])
    trained = record(small_run)["stages"]
    assert tuple(name for name in mine if mine[name] == trained[name]["key"]) == SHARED[other]


def test_a_stage_whose_objective_does_not_say_what_it_reads_is_shared_by_no_other_settings(
    registry, catalogue, monkeypatch
):
    monkeypatch.setattr(Denoising, "reads", None)
    before = keys(registry, catalogue)
    assert keys(registry, catalogue) == before
    for override in ("guidance.scale=9", "sampling.steps=2", "sampler=ddpm"):
        assert keys(registry, catalogue, override)["clip"] == before["clip"]
        assert keys(registry, catalogue, override)["denoiser"] != before["denoiser"]


def test_other_software_is_another_key_and_so_is_another_processor(
    registry, catalogue, monkeypatch
):
    found = [keys(registry, catalogue)]
    monkeypatch.setattr(runs, "versions", lambda: {"torch": "0.1"})
    found.append(keys(registry, catalogue))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ELSE")
    found.append(keys(registry, catalogue))
    assert len({key for one in found for key in one.values()}) == 3 * len(found[0])


@pytest.mark.parametrize("override", ["noise_schedule=cosine", "guidance.scale=9"])
def test_a_taken_stage_ends_in_the_bits_of_a_trained_one(override, registry, small_run, tmp_path):
    trained = run(registry, tmp_path / "trained", override)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    shutil.copytree(small_run, shelf / "first")
    taken = run(registry, tmp_path / "taken", override, reuse=shelf)
    assert len(trained) == 10
    assert len(taken) < 10
    assert log(tmp_path / "taken") == log(tmp_path / "trained")
    assert hashes(tmp_path / "taken") == hashes(tmp_path / "trained")
    ours, theirs = record(tmp_path / "taken"), record(tmp_path / "trained")
    for fact in ("results", "parameters", "skipped", "initial", "examples", "dropped", "status"):
        assert ours[fact] == theirs[fact], fact
    assert ours["stages"]["clip"]["taken"] == f"{shelf / 'first'}@4"


def test_a_shelf_finds_by_key_alone_and_says_what_the_run_did(small_run):
    stages = record(small_run)["stages"]
    shelf = Shelf(small_run, {"mine": stages["denoiser"]["key"], "unknown": None})
    found = shelf.find("mine")
    assert (found.name, found.last, found.path.name) == ("denoiser", 10, "step-00000010")
    assert found.counts() == {"parameters": record(small_run)["parameters"]["denoiser"]}
    assert [line["step"] for line in found.lines(7)] == [2, 3, 4, 5, 6, 7]
    assert shelf.find("unknown") is shelf.find("other") is Shelf(None, shelf.keys).find("mine")


def test_steps_are_counted_anew_where_a_stage_stands_elsewhere(catalogue, small_run, tmp_path):
    tree = yaml.safe_load(SMALL)
    stages = tree["experiments"]["small"]["stages"]
    tree["experiments"]["small"]["stages"] = {
        "before": {"objective": "denoising", "steps": 3, "batch": 8},
        "clip": stages["clip"],
    }
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    registry = Registry.load(tmp_path / "registry.yaml", catalogue)
    plain = ["evaluation.metrics=[]"]
    run(registry, tmp_path / "trained", *plain)
    assert run(registry, tmp_path / "taken", *plain, reuse=small_run) == ["before"] * 3
    assert log(tmp_path / "taken") == log(tmp_path / "trained")
    assert hashes(tmp_path / "taken") == hashes(tmp_path / "trained")


def test_a_stage_whose_weights_are_damaged_is_trained(registry, small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "damaged")
    path = tmp_path / "damaged" / "checkpoints" / "step-00000010" / "denoiser.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="stage denoiser is trained again: .* it is damaged"):
        stages = run(registry, tmp_path / "run", reuse=tmp_path / "damaged")
    assert stages == ["denoiser"] * 6
    assert hashes(tmp_path / "run") == hashes(small_run)


def test_a_stage_that_is_not_finished_is_not_taken(registry, small_run, tmp_path):
    half = train(registry.experiment("small", ["checkpoints.every=7"]), tmp_path / "half")
    for _ in range(8):
        next(half)
    half.close()
    assert run(registry, tmp_path / "run", reuse=tmp_path / "half") == ["denoiser"] * 6
    assert hashes(tmp_path / "run") == hashes(small_run)


def test_a_resumed_stage_keeps_its_key_where_the_bits_stay_those_of_one(
    registry, small_run, tmp_path
):
    for name, went_on in (("same", []), ("other", ["stages.denoiser.accumulation=2"])):
        half = train(registry.experiment("small", ["checkpoints.every=7"]), tmp_path / name)
        for _ in range(8):
            next(half)
        half.close()
        run(registry, tmp_path / name, "checkpoints.every=7", *went_on, resume=True)
    whole = {name: stage["key"] for name, stage in record(small_run)["stages"].items()}
    keys = {
        name: {one: stage["key"] for one, stage in record(tmp_path / name)["stages"].items()}
        for name in ("same", "other")
    }
    assert keys["same"] == whole
    assert keys["other"] == {**whole, "denoiser": None}
