"""A number that is not finite moves no weight: the run stops, leaves the step out, or goes back."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sfumato import CheckpointError, SfumatoError, checkpoint
from sfumato.stage import MOST_SKIPPED
from sfumato_losses.denoising import DenoisingModule
from survival import fingerprint, record, run

pytestmark = pytest.mark.filterwarnings("ignore:.* pictures are saturated")
SHORT = ["stages.clip.steps=1", "stages.denoiser.steps=12", "evaluation.metrics=[]"]


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the pictures of some steps of the denoiser NaN, in row 3."""

    def poison(*steps):
        losses = DenoisingModule.losses

        def poisonous(self, batch, draw):
            if draw.index + 1 in steps:
                batch.images[3] = torch.nan
            return losses(self, batch, draw)

        monkeypatch.setattr(DenoisingModule, "losses", poisonous)

    return poison


@pytest.mark.fault("not finite")
def test_nan_in_a_batch_stops_and_names_step_rate_example_and_time(registry, tmp_path, poisoned):
    poisoned(3)
    with pytest.raises(SfumatoError) as error:
        run(registry, tmp_path / "run", *SHORT)
    assert str(error.value) == (
        "stage denoiser, step 3: loss nan with gradient norm nan at learning rate 0.000933013; "
        "examples [26] at t [0.201]; no weight was moved; lower the learning rate, or look at "
        "these examples"
    )
    assert record(tmp_path / "run")["status"] == "failed"
    assert len(fingerprint(tmp_path / "run")["log"]) == 3


@pytest.mark.fault("not finite")
@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("1e10", "loss 1.66362e+22 with gradient norm inf at learning rate 9.82963e+09"),
        ("1e30", "loss inf with gradient norm nan at learning rate 9.82963e+29"),
    ],
)
def test_a_learning_rate_that_is_too_large(registry, tmp_path, rate, said):
    with pytest.raises(SfumatoError) as error:
        run(registry, tmp_path / "run", *SHORT, f"stages.denoiser.learning_rate={rate}")
    start = f"stage denoiser, step 2: {said}; examples [34, 5, 54, 33, 44, 47, "
    assert str(error.value).startswith(start)


@pytest.mark.fault("not finite")
def test_overflow_of_the_gradient_alone_is_seen(registry, tmp_path, monkeypatch):
    """The loss is finite, its gradient is not."""
    losses = DenoisingModule.losses

    def steep(self, batch, draw):
        import attrs

        found = losses(self, batch, draw)
        flat = (found.values * 0).sqrt() if draw.index == 1 else 0  # slope infinite at 0
        return attrs.evolve(found, values=found.values + flat)

    monkeypatch.setattr(DenoisingModule, "losses", steep)
    with pytest.raises(SfumatoError) as error:
        run(registry, tmp_path / "run", *SHORT)
    text = str(error.value)
    assert text.startswith("stage denoiser, step 2: loss ")
    assert " with gradient norm nan at learning rate " in text
    assert text.count(",") > 14  # no example is to blame: all eight are listed


@pytest.mark.fault("not finite")
def test_skipped_steps_move_nothing_and_are_counted(registry, tmp_path, poisoned):
    poisoned(3, 4, 7)
    out, skip = tmp_path / "run", "stages.denoiser.nonfinite=skip"
    run(registry, out, *SHORT, skip, "checkpoints={every: 1, keep_every: 1}")
    assert record(out)["skipped"] == {"denoiser": 3}
    log = fingerprint(out)["log"]
    assert [line["step"] for line in log if line.get("skipped")] == [4, 5, 8]
    assert (log[3]["loss"], log[3]["gradient_norm"]) == (None, None)
    before, after = (
        load_file(out / "checkpoints" / f"step-{step:08d}" / "training.safetensors")
        for step in (3, 5)
    )
    assert before.pop("counts").tolist() == [2, 0]
    assert after.pop("counts").tolist() == [2, 2]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.fault("not finite")
@pytest.mark.parametrize("way", ["skip", "rollback"])
def test_going_on_after_a_kill_is_the_same_run(registry, tmp_path, poisoned, way):
    poisoned(6, 9)
    settings = [*SHORT, f"stages.denoiser.nonfinite={way}", "checkpoints.every=4"]
    run(registry, tmp_path / "whole", *settings)
    run(registry, tmp_path / "run", *settings, stop_before=8)  # has skipped one, at step 7
    run(registry, tmp_path / "run", *settings, resume=True)
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")
    assert record(tmp_path / "run")["skipped"] == {"denoiser": 2}


@pytest.mark.fault("not finite")
def test_rollback_takes_the_weights_of_the_last_checkpoint_that_was_due(
    registry, tmp_path, poisoned
):
    """Step 6 of the stage is the 7th of the run; 4 was due, and the batches since are passed over."""
    poisoned(6)
    rollback = "stages.denoiser.nonfinite=rollback"
    out = tmp_path / "run"
    run(registry, out, *SHORT, rollback, "checkpoints={every: 4, keep_every: 1}", stop_before=9)
    whole = load_file(out / "checkpoints" / "step-00000004" / "training.safetensors")
    assert whole["counts"].tolist() == [3, 0]
    again = load_file(out / "checkpoints" / "step-00000008" / "training.safetensors")
    assert again["counts"].tolist() == [4, 0]  # three, and one more after the step left out
    assert record(out)["skipped"] == {"denoiser": 1}
    with pytest.raises(SfumatoError) as error:
        run(registry, tmp_path / "early", *SHORT, rollback, "checkpoints.every=10")
    assert str(error.value) == (
        "stage denoiser, step 6: the loss or its gradient is not finite, and there is no "
        "checkpoint to go back to; no weight was moved; set checkpoints.every to a smaller number"
    )


@pytest.mark.fault("not finite")
def test_a_run_that_only_skips_is_ended(registry, tmp_path, poisoned):
    poisoned(*range(2, 100))
    settings = [*SHORT[:1], "stages.denoiser.steps=100", "stages.denoiser.nonfinite=skip"]
    with pytest.raises(SfumatoError, match=r" \(as in 20 steps before\); ") as error:
        run(registry, tmp_path / "run", *settings)
    assert str(error.value).startswith(f"stage denoiser, step {MOST_SKIPPED + 2}: loss nan")


@pytest.mark.fault("not finite")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nothing_that_is_not_finite_reaches_a_checkpoint(tmp_path, value):
    state = {"net": {"weight": torch.zeros(1000), "bias": torch.zeros(3)}}
    state["net"]["bias"][1] = value
    with pytest.raises(CheckpointError) as error:
        checkpoint.write(tmp_path / "step-1", state, {}, {})
    assert str(error.value).endswith(
        "net.safetensors: bias is not finite; no checkpoint is made of it; the one before is whole"
    )
    assert list(tmp_path.iterdir()) == []
    state["net"]["bias"] = torch.full((3,), 3e38)  # finite, though their sum is not
    checkpoint.write(tmp_path / "step-1", state, {}, {})
    assert json.loads((tmp_path / "step-1" / "manifest.json").read_text())["files"]
