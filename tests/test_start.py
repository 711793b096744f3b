"""Training that starts from the weights of a run: what is taken, what may differ, what is recorded."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sfumato import ConfigError, Draw, Pipeline, batches, checkpoint, cli, train
from sfumato.registry import Registry
from small import SMALL

QUIET = ["evaluation.metrics=[]"]
ONE_STAGE = "stages: {denoiser: {objective: denoising, steps: 2, batch: 8}}"


def registry_with(folder, experiments):
    path = folder / "tuned.yaml"
    path.write_text(SMALL + "".join(f"  {line}\n" for line in experiments))
    return Registry.load(path)


def trained(experiment, folder):
    return list(train(experiment, folder))


def newest(run):
    return max((run / "checkpoints").iterdir())


def weights(run, slot):
    return load_file(newest(run) / f"{slot}.safetensors")


def manifest(run):
    return json.loads((newest(run) / "manifest.json").read_text())


@pytest.fixture
def tuned(small_run, tmp_path):
    """An experiment on the small run, with one stage."""
    return registry_with(tmp_path, [f"tuned: {{start: {small_run}, {ONE_STAGE}}}"])


def test_slots_come_from_the_run_and_stages_from_the_experiment(tuned, registry, small_run):
    found, before = tuned.experiment("tuned"), registry.experiment("small")
    assert found.denoiser == before.denoiser
    assert found.sampling == before.sampling
    assert found.start == str(small_run)
    assert list(found.stages) == ["denoiser"]
    assert (found.name, found.seed, found.evaluation.metrics) == ("tuned", 0, ())


def test_the_first_loss_is_that_of_the_trained_weights(tuned, small_run, tmp_path):
    (fresh, *_) = trained(tuned.experiment("tuned", ["start=null"]), tmp_path / "fresh")
    (first, *_) = trained(tuned.experiment("tuned"), tmp_path / "run")
    pipeline = Pipeline.load(small_run)
    experiment = tuned.experiment("tuned")
    batch = batches.batch_at(
        experiment.data.split("train"), 0, "denoiser", 8, 0, torch.device("cpu")
    )
    objective = experiment.stages["denoiser"].objective.build(pipeline)
    draw = Draw(seed=0, stream="denoiser", examples=batch.rows, index=0)
    assert first.loss == pytest.approx(objective(batch, draw).values.mean().item(), rel=1e-6)
    assert first.loss != pytest.approx(fresh.loss, rel=1e-3)


def test_a_slot_without_a_stage_keeps_its_weights_and_the_record_says_all(
    tuned, small_run, tmp_path
):
    out = tmp_path / "run"
    trained(tuned.experiment("tuned", ["stages.denoiser.text_dropout=0.3"]), out)
    before, after = weights(small_run, "text_encoder"), weights(out, "text_encoder")
    assert all(before[name].equal(after[name]) for name in before)
    assert not all(
        value.equal(weights(out, "denoiser")[name])
        for name, value in weights(small_run, "denoiser").items()
    )
    tokenizers = [newest(run) / "tokenizer.json" for run in (out, small_run)]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    assert manifest(out)["slots"] == ["denoiser", "text_encoder"]
    assert manifest(out)["text_dropout"] == 0.3
    record = json.loads((out / "run.json").read_text())["start"]
    assert record == {"checkpoint": str(newest(small_run)), "files": manifest(small_run)["files"]}
    assert f"start: {small_run}" in (out / "settings.yaml").read_text()
    assert Pipeline.load(out).sample(["a red circle"], steps=1).shape == (1, 3, 16, 16)


def test_what_no_stage_trains_keeps_its_dropout_and_its_schedule(small_run, tmp_path):
    registry = registry_with(tmp_path, [
        f"text: {{start: {small_run}, set: {{noise_schedule: cosine, time_grid: leading}}, "
        "stages: {clip: {objective: contrastive, steps: 1, batch: 8}}}"
    ])  # fmt: skip
    trained(registry.experiment("text"), tmp_path / "run")
    facts = manifest(tmp_path / "run")
    assert facts["text_dropout"] == 0.2
    assert facts["noise_schedule"]["use"] == "linear"
    assert Pipeline.load(tmp_path / "run").schedule.name == "linear"


def test_a_step_of_a_run_is_a_start_too(tuned, small_run, tmp_path):
    trained(tuned.experiment("tuned", [f"start={small_run}@4"]), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())["start"]
    assert record["checkpoint"] == str(small_run / "checkpoints" / "step-00000004")
    with pytest.raises(ConfigError) as error:
        trained(tuned.experiment("tuned", [f"start={small_run}@5"]), tmp_path / "none")
    assert (
        str(error.value) == f"--set: start: {small_run} has no checkpoint of step 5; it has: 4, 10"
    )


def test_a_run_stands_in_the_place_of_an_experiment(registry, small_run, tmp_path):
    experiment = registry.experiment(str(small_run), [*QUIET, "stages.clip.steps=1"])
    assert experiment.name == "small"
    assert experiment.start == str(small_run)
    assert list(experiment.stages) == ["clip", "denoiser"]
    steps = trained(experiment, tmp_path / "run")
    assert len(steps) == 7
    again = registry.experiment(str(tmp_path / "run"))
    assert again.start == str(tmp_path / "run")


@pytest.fixture
def imported(small_run, tmp_path):
    """The small run as if it had been imported: no data, no stages, a size, an unknown dropout."""
    run = shutil.copytree(small_run, tmp_path / "imported")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    del settings["start"]
    settings |= {"data": None, "stages": {}, "evaluation": {}, "trackers": []}
    settings["sampling"] |= {"size": [32, 32], "steps": 2}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    path = newest(run) / "manifest.json"
    stated = {**json.loads(path.read_text()), "text_dropout": None}
    del stated["sha256"]
    path.write_bytes(checkpoint.sealed(stated))
    return run


def test_an_imported_run_is_trained_on_once_data_and_stages_are_said(imported, registry, tmp_path):
    stage = "stages.denoiser={objective: denoising, steps: 2, batch: 4, learning_rate: 1e-4}"
    for missing, message in (
        ([stage], "data: captioned pictures are needed here; name some, such as --set data=shapes"),
        (["data=shapes"], "experiment 'small' has no stages; add `stages`"),
    ):
        with pytest.raises(ConfigError) as error:
            trained(registry.experiment(str(imported), missing), tmp_path / "none")
        assert message in str(error.value)
    experiment = registry.experiment(str(imported), ["data=shapes", stage])
    assert experiment.picture_size == (16, 16)
    trained(experiment, tmp_path / "run")
    assert manifest(tmp_path / "run")["text_dropout"] == 0.1
    assert Pipeline.load(imported).text_dropout is None
    clip = "stages.clip={objective: contrastive, steps: 1, batch: 8}"
    trained(registry.experiment(str(imported), ["data=shapes", clip]), tmp_path / "clip")
    assert manifest(tmp_path / "clip")["text_dropout"] is None


def test_the_nearer_of_pipeline_and_start_gives_the_slots(small_run, tmp_path):
    registry = registry_with(tmp_path, [
        f"child: {{from: cosine, start: {small_run}}}",
        f"both: {{pipeline: shapes, start: {small_run}, set: {{noise_schedule: cosine}}, {ONE_STAGE}}}",
        "fresh: {from: both, start: null}",
    ])  # fmt: skip
    child = registry.experiment("child")
    assert child.noise_schedule.name == "cosine"
    assert list(child.stages) == ["clip", "denoiser"]
    assert registry.experiment("both").start == str(small_run)
    assert registry.experiment("fresh").start is None


def test_a_run_that_is_gone_is_an_error_of_whoever_starts_from_it(tmp_path):
    registry = registry_with(tmp_path, ["gone: {start: runs/gone}"])
    assert registry.experiment("small").start is None
    with pytest.raises(ConfigError) as error:
        registry.experiment("gone")
    line = SMALL.count("\n") + 1
    assert str(error.value) == (
        f"{tmp_path / 'tuned.yaml'}:{line}: experiments.gone.start: 'runs/gone' is not a run folder: it "
        "has no settings.yaml; train or import it first, or name another"
    )
    with pytest.raises(ConfigError, match=r"\.wrong\.start: expected RUN or RUN@STEP$"):
        registry_with(tmp_path, ["wrong: {start: 3}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("denoiser.channels=[8, 8]",
         "denoiser.channels: the weights to start from were trained with [16, 16] and do not go with "
         "[8, 8]; leave it as it is, or train without `start`"),
        ("text_encoder.width=32",
         "text_encoder.width: the weights to start from were trained with 16 and do not go with 32; "
         "leave it as it is, or train without `start`"),
        ("denoiser={use: edm}",
         "denoiser: the weights to start from were trained with 'unet' and do not go with 'edm'; leave "
         "it as it is, or train without `start`"),
    ],
)  # fmt: skip
def test_components_that_the_weights_do_not_go_with_are_refused(tuned, tmp_path, change, message):
    with pytest.raises(ConfigError) as error:
        trained(tuned.experiment("tuned", [change]), tmp_path / "run")
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


def test_what_no_shape_depends_on_may_differ_in_a_slot_that_is_trained(tuned, small_run, tmp_path):
    changes = [
        "denoiser.prediction=v", "denoiser.dropout=0.1", "denoiser.blur=2.0", "loss=huber",
        "noise_schedule={use: zero_terminal_snr}", "time_grid=leading",
    ]  # fmt: skip
    trained(tuned.experiment("tuned", changes), tmp_path / "run")
    facts = manifest(tmp_path / "run")
    assert facts["denoiser"]["prediction"] == "v"
    assert facts["noise_schedule"]["schedule"]["use"] == "linear"
    registry = registry_with(tmp_path, [
        f"text: {{start: {small_run}, stages: {{clip: {{objective: contrastive, steps: 1, batch: 8}}}}}}"
    ])  # fmt: skip
    with pytest.raises(ConfigError, match=r"^denoiser\.prediction: the weights to start from"):
        trained(registry.experiment("text", ["denoiser.prediction=v"]), tmp_path / "other")


def test_a_start_that_was_trained_may_be_measured(small_run, tmp_path):
    registry = registry_with(tmp_path, [
        f"text: {{start: {small_run}, stages: {{clip: {{objective: contrastive, steps: 1, batch: 8}}}}, "
        "evaluation: {metrics: [shape_attributes], count: 2}}"
    ])  # fmt: skip
    trained(registry.experiment("text"), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "step-00000001.png").is_file()


def test_the_command_trains_a_run_further(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ["stages.clip.steps=1", "stages.denoiser.steps=1", "evaluation.metrics=[]"]
    with pytest.raises(SystemExit) as end:
        cli.main(["train", str(small_run), *(f"--set={change}" for change in changes)])
    assert not end.value.code
    record = json.loads((tmp_path / "runs" / "small" / "run.json").read_text())
    assert record["start"]["checkpoint"] == str(newest(small_run))
