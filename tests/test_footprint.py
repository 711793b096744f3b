"""What a plan says, beside what the allocator saw and what a run holds; and that nothing is left behind."""

import gc
import json

import attrs
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sfumato import ConfigError, Denoiser, DenoiserModule, Registry, footprint
from sfumato.cli import main
from sfumato.training import train
from sfumato_clip import PretrainedClip

FIXED = ("weights", "optimizer", "average")


def held():
    """The bytes of each storage that a tensor in Python's hands has, by its address."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}


def most_allocated(work):
    """The most bytes that torch's allocator gave out at once during `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def check(experiment, out):
    """Second steps are looked at: the moments of the optimiser are there from the first on."""
    planned = footprint.measure(experiment)
    before = held().keys()
    steps = train(experiment, out, device="cpu")
    for name, stage in planned.stages.items():
        assert next(steps).stage == name
        fixed = sum(getattr(stage, part) for part in FIXED)
        assert sum(size for place, size in held().items() if place not in before) == pytest.approx(
            fixed, rel=0.15
        )
        most = most_allocated(lambda: next(steps))
        assert stage.peak - fixed == pytest.approx(most, rel=0.15)
        assert 0.7 * most < stage.activations <= most
    steps.close()
    record = json.loads((out / "run.json").read_text())
    assert record["parameters"] == {name: s.parameters for name, s in planned.stages.items()}
    return planned


SHORT = ("stages.clip.steps=2", "stages.denoiser.steps=3", "evaluation.metrics=[]", "trackers=[]")


def test_the_plan_of_the_small_experiment_is_what_its_run_holds(registry, tmp_path):
    planned = check(registry.experiment("small", SHORT), tmp_path / "run")
    assert planned.examples == 64
    assert planned.stages["denoiser"].epochs == 3 * 8 / 64


def test_a_batch_in_parts_needs_the_memory_of_one_of_them(registry, tmp_path):
    settings = ("stages.denoiser.batch=16", *SHORT)
    whole = footprint.measure(registry.experiment("small", settings)).stages["denoiser"]
    parts = registry.experiment("small", (*settings, "stages.denoiser.accumulation=4"))
    found = check(parts, tmp_path / "run").stages["denoiser"]
    assert 0.2 * whole.activations < found.activations < 0.35 * whole.activations
    assert whole.gradients == found.gradients
    assert found.peak < whole.peak
    assert found.flops == pytest.approx(whole.flops, rel=1e-3)


@pytest.mark.slow
def test_with_a_cache_encoders_compute_nothing(registry, tmp_path):
    kl = "autoencoder={use: kl, widths: [32, 32], groups: 8, layers: 1}"
    settings = (kl, "denoiser.channels=[16,16]", *SHORT)
    plain = footprint.measure(registry.experiment("small", settings)).stages["denoiser"]
    cached = registry.experiment("small", (*settings, f"stages.denoiser.cache={tmp_path / 'kept'}"))
    found = check(cached, tmp_path / "run").stages["denoiser"]
    assert found.flops < plain.flops
    assert found.peak < plain.peak
    assert (found.weights, found.optimizer) == (plain.weights, plain.optimizer)


@pytest.mark.slow
def test_the_plan_of_demo_is_what_its_run_holds_under_autocast_too(catalogue, tmp_path):
    changed = (
        *SHORT,
        "evaluation.studies=[]",
        "data.count=256",
        "stages.denoiser.precision=bfloat16",
    )
    check(Registry.load(catalogue=catalogue).experiment("demo", changed), tmp_path / "run")


def test_the_checkpoint_is_as_large_as_planned(registry, small_run):
    planned = footprint.measure(registry.experiment("small"))
    folder = small_run / "checkpoints" / "step-00000010"
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert planned.checkpoint == pytest.approx(size, rel=0.1)  # names and shapes stand in it too


class Convolution(DenoiserModule):
    def __init__(self, side):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, side, padding=side // 2)

    def forward(self, x_t, t, condition, variant=None):
        return self.layer(x_t)


@attrs.frozen(kw_only=True)
class OneLayer(Denoiser):
    name = "one_layer"
    prediction = "epsilon"
    side: int

    def build(self, space):
        return Convolution(self.side)


def test_the_flops_are_two_for_each_multiply_add_of_both_passes(registry):
    """The layer has no gradient to pass on, so its backward pass costs as much as its forward pass."""
    experiment = registry.experiment("small")
    experiment = attrs.evolve(experiment, stages={"denoiser": experiment.stages["denoiser"]})
    small, large = (
        footprint.measure(attrs.evolve(experiment, denoiser=OneLayer(side=side))).stages["denoiser"]
        for side in (1, 3)
    )
    assert large.parameters - small.parameters == 3 * 3 * (9 - 1)
    assert large.flops - small.flops == 2 * 2 * (8 * 16 * 16) * 3 * 3 * (9 - 1)
    assert large.peak - small.peak >= 4 * 4 * 3 * 3 * (9 - 1)


@pytest.mark.slow
def test_the_size_of_stable_diffusion_is_known_without_its_weights(registry):
    unet = (
        "denoiser={use: unet, channels: [320, 640, 1280, 1280], layers: 2, heads: [8], "
        "attention: [true, true, true, false]}"
    )
    changes = [
        unet,
        "autoencoder=kl",
        "text_encoder.width=768",
        "data.size=512",
        "sampling.size=null",
    ]
    experiment = registry.experiment("small", changes)
    stages = {"denoiser": attrs.evolve(experiment.stages["denoiser"], batch=1)}
    found = footprint.measure(attrs.evolve(experiment, stages=stages))
    assert found.parameters["denoiser"] == found.stages["denoiser"].parameters == 859_520_964
    assert found.parameters["autoencoder"] == 83_653_863
    assert found.stages["denoiser"].optimizer == pytest.approx(8 * 859_520_964, rel=1e-3)


def test_an_encoder_that_comes_with_weights(registry, tmp_path):
    (tmp_path / "clip").mkdir()
    encoder = PretrainedClip.example(tmp_path / "clip")
    experiment = registry.experiment("small")
    stages = {"denoiser": experiment.stages["denoiser"]}
    found = footprint.measure(attrs.evolve(experiment, text_encoder=encoder, stages=stages))
    weights = encoder.build({}).parameters()
    assert found.parameters["text_encoder"] == sum(one.numel() for one in weights)


def test_activations_that_are_computed_again_are_not_held(registry, small_run):
    """Here in a run that starts from another, whose vocabulary it takes."""
    start = f"start={small_run}"
    held, again = (
        footprint.measure(
            registry.experiment(
                "small", [f"stages.denoiser.activation_checkpointing={flag}", start]
            )
        ).stages["denoiser"]
        for flag in ("false", "true")
    )
    assert again.activations < 0.7 * held.activations
    assert again.peak < held.peak
    assert again.parameters == 92_083
    assert again.flops > 1.2 * held.flops


def test_the_command(registry_file, tmp_path, monkeypatch, capsys):
    def told(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["plan", "small", *arguments])
        assert end.value.code == 0
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    lines = told("--set", "stages.clip.steps=1000").splitlines()
    assert lines[0] == "small: 64 examples an epoch"
    assert lines[1:3] == [
        "  text_encoder            15,777 parameters",
        "  denoiser                92,083 parameters",
    ]
    assert "stage clip: 1,000 steps of 8, 125.00 epochs" in lines
    assert "  weights                  432 kB" in lines
    assert json.loads(told("--json"))["stages"]["denoiser"]["trains"] == "denoiser"
    assert [path.name for path in tmp_path.iterdir()] == ["registry.yaml"]


def test_what_cannot_be_trained_is_not_planned(registry):
    with pytest.raises(ConfigError) as error:
        footprint.measure(registry.experiment("small", ["stages.denoiser.batch=65"]))
    assert str(error.value) == (
        "stages.denoiser.batch: a batch of 65 is more than the 64 examples of the data; "
        "use at most 64"
    )
