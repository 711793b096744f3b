"""The loop: a pure function of settings and seed, that checks before it moves and writes whole."""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sfumato import ConfigError, SfumatoError, batches
from sfumato import stage as stages
from sfumato.engine import Single
from sfumato.experiment import Stage
from sfumato.training import train
from sfumato_losses import Denoising


def stage(**options):
    return Stage(objective=Denoising(), steps=100, batch=4, **options)


def run(registry, out, *overrides):
    return list(train(registry.experiment("small", overrides), out))


def hashes(out):
    manifests = sorted((out / "checkpoints").glob("*/manifest.json"))
    return [json.loads(path.read_text())["files"] for path in manifests]


def test_the_same_settings_give_the_same_losses_and_weights(registry, small_run, tmp_path):
    steps = run(registry, tmp_path / "run")
    logged = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert [step.loss for step in steps] == [line["loss"] for line in logged]
    assert hashes(tmp_path / "run") == hashes(small_run)
    assert len(hashes(small_run)) == 2


def test_another_seed_gives_other_weights(registry, small_run, tmp_path):
    run(registry, tmp_path / "run", "seed=4", "stages.clip.steps=1", "evaluation.count=1")
    assert hashes(tmp_path / "run")[0] != hashes(small_run)[0]


def test_a_run_folder_says_what_the_run_is(small_run):
    record = json.loads((small_run / "run.json").read_text())
    assert record["status"] == "completed"
    assert record["origin"] == "trained"
    assert record["seed"] == 3
    assert record["guidance"]["scale"] == 4.0
    assert record["guidance"]["w"] == 3.0
    assert set(record["parameters"]) == {"clip", "denoiser"}
    assert record["results"]["shape_accuracy"].keys() == {"value", "low", "high", "n"}
    lines = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert {"accuracy", "logit_scale"} <= set(lines[0])
    assert all(0 <= line["text_dropout"] <= 1 for line in lines[4:])
    manifest = json.loads((small_run / "checkpoints/step-00000010/manifest.json").read_text())
    assert manifest["text_dropout"] == 0.2
    assert (small_run / "samples" / "step-00000010.png").is_file()


def test_a_stage_moves_its_own_weights_only(small_run):
    first, last = (small_run / "checkpoints" / f"step-000000{step}" for step in ("04", "10"))
    text = [load_file(path / "text_encoder.safetensors") for path in (first, last)]
    assert all(torch.equal(text[0][name], text[1][name]) for name in text[0])
    moved = [load_file(path / "denoiser.safetensors") for path in (first, last)]
    assert any(not torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_the_checkpoint_holds_the_averaged_weights(registry, tmp_path):
    plain = ["stages.denoiser.ema=null", "stages.clip.steps=1", "evaluation.metrics=[]"]
    run(registry, tmp_path / "plain", *plain)
    run(registry, tmp_path / "averaged", *plain, "stages.denoiser.ema=0.9")
    states = [
        load_file(tmp_path / name / "checkpoints" / "step-00000007" / "denoiser.safetensors")
        for name in ("plain", "averaged")
    ]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("plain", "averaged")
    ]
    assert losses[0] == losses[1]  # watching the weights does not change their course


def test_the_gradient_is_clipped_and_its_norm_before_is_told():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    engine = Single("cpu")
    assert engine.clip([parameter], None) == 5
    assert parameter.grad.norm() == 5
    assert engine.clip([parameter], 0.5) == 5
    assert parameter.grad.norm() == pytest.approx(0.5)


def test_bfloat16_is_another_arithmetic(registry, small_run, tmp_path):
    common = ["stages.denoiser.steps=2", "evaluation.metrics=[]"]
    logged = [json.loads(line) for line in (small_run / "metrics.jsonl").open()]
    half = run(registry, tmp_path / "half", *common, "stages.clip.precision=bfloat16")
    assert half[0].loss != logged[0]["loss"]
    assert half[0].loss == pytest.approx(logged[0]["loss"], rel=0.05)


def test_the_denoising_loss_is_its_formula(registry, parity):
    from sfumato import Draw, Pipeline
    from sfumato_losses import P2

    experiment = registry.experiment(
        "small", ["loss_weight=p2", "stages.denoiser.text_dropout=1.0"]
    )
    split = experiment.data.split("train")
    captions = [split.caption(i) for i in range(len(split))]
    pipeline = Pipeline(experiment, experiment.text_encoder.fit(captions))
    for parameter in pipeline.denoiser.parameters():
        parameter.normal_(std=0.15, generator=torch.Generator().manual_seed(parameter.numel()))
    batch = batches.batch_at(split, 0, "stage", 8, 0, torch.device("cpu"))
    draw = Draw(seed=0, stream="stage", examples=batch.rows, index=0)
    objective = experiment.stages["denoiser"].objective.build(pipeline)
    found = objective(batch, draw)

    t = (draw.uniform("time") * 1000).ceil() / 1000
    alpha, sigma = experiment.noise_schedule.alpha_sigma(t)
    eps = draw.normal("noise", (3, 16, 16))
    x_t = alpha.float().view(-1, 1, 1, 1) * batch.images + sigma.float().view(-1, 1, 1, 1) * eps
    with torch.no_grad():
        output = pipeline.denoiser(x_t, t, pipeline.text_encoder.null(8))
    squared = (output - eps).square().mean(dim=(1, 2, 3))
    weight = 1 / (1 + (alpha / sigma) ** 2)
    assert isinstance(experiment.loss_weight, P2)
    expected = squared * weight
    assert torch.allclose(found.values.double(), expected, rtol=1e-4)
    objective = experiment.stages["denoiser"].objective
    parity(objective, "the paper's formula", "losses, float32", found.values.double(), expected)
    assert found.numbers["text_dropout"].tolist() == [1.0] * 8


def test_the_realised_dropout_rate_is_the_one_asked_for(registry, tmp_path):
    settings = ["stages.denoiser.steps=30", "stages.denoiser.batch=32", "evaluation.metrics=[]"]
    steps = run(registry, tmp_path / "run", *settings)[4:]
    rate = sum(step.numbers["text_dropout"] for step in steps) / len(steps)
    assert abs(rate - 0.2) < 4 * math.sqrt(0.2 * 0.8 / (30 * 32))


def test_each_epoch_visits_every_example_once(registry):
    split = registry.experiment("small").data.split("train")
    examples = []
    for step in range(16):
        batch = batches.batch_at(split, 0, "stage", 8, step, torch.device("cpu"))
        examples += batch.examples.tolist()
        assert batch.captions == tuple(split.caption(i) for i in batch.examples.tolist())
    assert sorted(examples[:64]) == sorted(examples[64:]) == list(range(64))
    assert examples[:64] != examples[64:]


def test_the_learning_rate_rises_and_falls():
    settings = stage(learning_rate=2.0, warmup=10)
    rates = [stages.learning_rate(settings, step) for step in range(101)]
    assert rates[0] == 0.2
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    constant = stage(learning_rate=2.0, decay="constant")
    assert {stages.learning_rate(constant, step) for step in range(101)} == {2.0}


def test_the_average_follows_its_formula():
    module = torch.nn.Linear(2, 2)
    averaged = stages.average(module, 0.9)
    expected = None
    for n in range(30):
        with torch.no_grad():
            module.weight += 1
        averaged.update_parameters(module)
        decay = min(0.9, (1 + n) / (10 + n))
        now = module.weight.detach().double()
        # the first update takes the weights as they are
        expected = now if expected is None else decay * expected + (1 - decay) * now
        assert torch.allclose(averaged.module.weight.double(), expected, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_before_a_weight_moves(registry, tmp_path):
    with pytest.raises(SfumatoError) as error:
        run(
            registry,
            tmp_path / "run",
            "stages.denoiser.learning_rate=1e30",
            "evaluation.metrics=[]",
        )
    text = str(error.value)
    assert text.startswith("stage denoiser, step 2: loss ")
    assert "at learning rate" in text
    assert "examples [" in text
    assert "no weight was moved" in text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == text


def test_nothing_is_written_over(registry, small_run):
    with pytest.raises(ConfigError) as error:
        run(registry, small_run)
    assert (
        str(error.value)
        == f"{small_run}: is not empty; choose another --out, remove it, or go on: sfumato train {small_run} --resume"
    )


def test_bad_settings_write_nothing(registry, tmp_path):
    with pytest.raises(ConfigError, match="has no stages"):
        list(train(_without_stages(registry), tmp_path / "run"))
    with pytest.raises(ConfigError, match="^pictures are 17 x 17, but the autoencoder 'pixels'"):
        run(registry, tmp_path / "run", "data.size=17")
    assert not (tmp_path / "run").exists()


def test_what_could_not_be_measured_is_refused_before_training(registry, tmp_path):
    for change, text in (
        ("evaluation.studies=[guidance]", "the guidance 'none' has no option 'scale' to vary"),
        ("evaluation.studies=[{use: negative_prompt, guidance: negative, negative: large}]",
         "the metric 'shape_attributes' finds no color in 'large'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=text):
            run(registry, tmp_path / "run", "guidance=none", change, "data.held_out=200")
    assert not (tmp_path / "run").exists()


def _without_stages(registry):
    import attrs

    return attrs.evolve(registry.experiment("small"), stages={})


def test_a_run_that_is_left_half_way_says_so(registry, tmp_path):
    steps = train(registry.experiment("small"), tmp_path / "run")
    next(steps)
    steps.close()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "preempted"


def test_a_script_that_stops_half_way_ends_though_workers_prepare_examples(registry_file, tmp_path):
    # A generator in a global name is closed by nobody before the interpreter waits for children.
    script = tmp_path / "half.py"
    script.write_text(
        "import sfumato\n"
        f"registry = sfumato.Registry.load({str(registry_file)!r})\n"
        "experiment = registry.experiment('small', overrides=['workers=2'])\n"
        "steps = sfumato.train(experiment, out='run')\n"
        "print(next(steps).step)\n"
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
