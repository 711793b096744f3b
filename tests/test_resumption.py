"""A run that was interrupted and went on is the run that never was, bit for bit."""

import json
import shutil
import signal
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file

from sfumato import CheckpointError, ConfigError, Pipeline, checkpoint, resumption
from sfumato.experiment import Checkpoints
from sfumato.interruption import Interruption, Preempted
from sfumato.runs import Run
from sfumato.training import train
from survival import STAGES, checkpoints, fingerprint, record, run

pytestmark = pytest.mark.filterwarnings("ignore:.* pictures are saturated")
DUE = "checkpoints.every=5"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, catalogue):
    from sfumato.registry import Registry
    from small import SMALL

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "registry.yaml").write_text(SMALL)
    run(Registry.load(folder / "registry.yaml", catalogue), folder / "run", DUE)
    return folder / "run"


@pytest.fixture
def halfway(undisturbed, tmp_path):
    """That run as it was after step 36, with checkpoints of 15, 30 and 35."""
    path = tmp_path / "halfway"
    shutil.copytree(undisturbed, path)
    shutil.rmtree(path / "checkpoints" / "step-00000040")
    (path / "run.json").write_text(json.dumps({**record(path), "status": "running"}))
    return path


def interrupted(registry, out, *segments, workers=0):
    """Trains in segments of so many steps, each ended by a signal but the last."""
    for number, steps in enumerate(segments):
        asked, count = Interruption(), 0
        overrides = [*STAGES, DUE, f"workers={workers}"]
        experiment = registry.experiment("small", overrides)
        try:
            for _ in train(experiment, out, resume=number > 0, interruption=asked):
                count += 1
                if count == steps - 1 and number < len(segments) - 1:
                    asked.ask(signal.SIGTERM)
        except Preempted:
            pass
        assert count == steps
        assert record(out)["status"] == (
            "completed" if number == len(segments) - 1 else "preempted"
        )


@pytest.mark.fault("resume")
@pytest.mark.parametrize(("segments", "workers"), [((17, 23), 2), ((11, 11, 18), 0)])
def test_segments_are_the_whole(undisturbed, registry, tmp_path, segments, workers):
    interrupted(registry, tmp_path / "run", *segments, workers=workers)
    assert fingerprint(tmp_path / "run") == fingerprint(undisturbed)
    assert len(fingerprint(undisturbed)["log"]) == 40
    assert record(tmp_path / "run")["resumed"][0]["step"] == segments[0]


@pytest.mark.fault("damaged checkpoint")
def test_a_complete_run_whose_last_checkpoint_is_damaged_is_completed_again(
    undisturbed, registry, tmp_path
):
    path = shutil.copytree(undisturbed, tmp_path / "run")
    experiment = registry.experiment("small", [*STAGES, DUE])
    assert list(train(experiment, path, resume=True)) == []
    with (path / "checkpoints" / "step-00000040" / "denoiser.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.warns(UserWarning, match="it is set aside as damaged-step-00000040"):
        steps = list(train(experiment, path, resume=True))
    assert [step.step for step in steps] == [36, 37, 38, 39, 40]
    shutil.rmtree(path / "checkpoints" / "damaged-step-00000040")
    assert fingerprint(path) == fingerprint(undisturbed)


@pytest.mark.fault("resume")
def test_what_changes_no_number_may_be_another(undisturbed, registry, tmp_path):
    path = shutil.copytree(undisturbed, tmp_path / "run")
    free_ones = (
        "stages.denoiser.activation_checkpointing=true",
        "workers=1",
        f"stages.denoiser.cache={tmp_path / 'kept'}",
    )
    for free in free_ones:
        experiment = registry.experiment("small", [*STAGES, DUE, free])
        assert list(train(experiment, path, resume=True)) == []
    experiment = registry.experiment("small", [*STAGES, DUE, "stages.denoiser.warmup=3"])
    with pytest.raises(ConfigError, match="stages.denoiser.warmup: .* in the run, 3 now"):
        list(train(experiment, path, resume=True))


@pytest.mark.fault("resume")
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(undisturbed, registry, tmp_path):
    """Killed in the first stage, in the second, and between two steps that were due."""
    out = tmp_path / "run"
    run(registry, out, DUE, stop_before=9)
    assert checkpoints(out) == ["step-00000005"]
    run(registry, out, DUE, stop_before=24, resume=True)
    assert checkpoints(out) == ["step-00000015", "step-00000020"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 23
    run(registry, out, DUE, resume=True)
    assert fingerprint(out) == fingerprint(undisturbed)
    assert [one["step"] for one in record(out)["resumed"]] == [5, 20]


@pytest.mark.fault("resume")
def test_a_run_that_was_killed_while_measuring_measures_again(
    undisturbed, registry, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    asked = Interruption()
    sample = Pipeline.sample

    def interrupted_sample(*arguments, **options):
        asked.ask(signal.SIGTERM)
        return sample(*arguments, **options)

    monkeypatch.setattr(Pipeline, "sample", interrupted_sample)
    with pytest.raises(Preempted, match="^evaluation: ended by SIGTERM; continue with --resume$"):
        run(registry, out, DUE, interruption=asked)
    assert (record(out)["status"], record(out)["results"]) == ("preempted", {})
    monkeypatch.undo()
    run(registry, out, DUE, resume=True)
    assert fingerprint(out) == fingerprint(undisturbed)


def test_a_run_that_is_complete_stays_as_it_is(undisturbed, registry, catalogue):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.*")}
    experiment = registry.experiment("small", [*STAGES, DUE])
    assert list(train(experiment, undisturbed, resume=True, catalogue=catalogue)) == []
    after = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.*")}
    assert {path for path in before if before[path] != after[path]} <= {undisturbed / ".lock"}


def test_resume_begins_a_run_where_there_is_none(registry, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.yaml").write_text("left by a run that was killed as it began")
    run(registry, tmp_path / "run", stop_before=3, resume=True)
    run(registry, tmp_path / "run", stop_before=5, resume=True)  # no checkpoint yet
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    assert record(tmp_path / "run")["resumed"][0]["step"] == 0


def test_a_checkpoint_within_a_stage_can_be_drawn_from(halfway):
    path = halfway / "checkpoints" / "step-00000035"
    state = load_file(path / "training.safetensors")
    drawn = load_file(path / "denoiser.safetensors")
    assert any(not torch.equal(state[f"weights.{name}"], drawn[name]) for name in drawn)  # averages
    assert state["counts"].tolist() == [20, 0]
    pipeline = Pipeline.load(halfway)
    loaded = pipeline.denoiser.state_dict()
    assert all(torch.equal(loaded[name], drawn[name]) for name in drawn)
    assert pipeline.sample(["a red circle"], steps=2).isfinite().all()
    assert "training.safetensors" not in fingerprint(halfway)["files"]["step-00000015"]


def test_settings_that_change_numbers_are_those_of_the_run(halfway, registry):
    before = fingerprint(halfway)
    with pytest.raises(ConfigError) as error:
        run(registry, halfway, DUE, "stages.clip.batch=4", "seed=4", "sampler=ddpm", resume=True)
    assert str(error.value) == (
        f"{halfway}: has other settings:\n"
        "  sampler.use: 'ddim' in the run, 'ddpm' now\n"
        "  sampler.clip_x0: 1.0 in the run, None now\n"
        "  sampler.eta: 0.0 in the run, None now\n"
        "  sampler.variance: None in the run, 'small' now\n"
        "  seed: 3 in the run, 4 now\n"
        "  stages.clip.batch: 8 in the run, 4 now; leave them as they are, or choose another --out"
    )
    assert fingerprint(halfway) == before
    assert "resumed" not in record(halfway)


def test_settings_that_change_no_number_may_change(undisturbed, halfway, registry):
    run(registry, halfway, "checkpoints.every=7", "workers=1", "trackers=[]", resume=True)
    assert fingerprint(halfway)["log"] == fingerprint(undisturbed)["log"]
    assert "every: 7" in (halfway / "settings.yaml").read_text()
    with pytest.raises(
        ConfigError, match="stages.denoiser.nonfinite: 'stop' in the run, 'rollback' now"
    ):
        run(registry, halfway, "stages.denoiser.nonfinite=rollback", resume=True)


def test_settings_are_free_by_their_path_and_not_by_their_last_name():
    def free(*path):
        return any(resumption._is_at_or_below(path, one) for one in resumption.FREE)

    assert free("checkpoints", "every")
    assert free("stages", "workers", "cache")
    assert not free("stages", "clip", "workers")
    assert not free("stages", "clip", "objective", "cache")
    assert not free("data", "workers")
    assert not free("stages")


def test_other_software_is_said(halfway, registry):
    stated = record(halfway)
    stated["versions"]["torch"] = "1.0"
    (halfway / "run.json").write_text(json.dumps(stated))
    with pytest.warns(UserWarning, match=f"^not bit for bit: {halfway} began with torch 1.0 -> "):
        run(registry, halfway, DUE, resume=True)


def truncated(path):
    content = (path / "denoiser.safetensors").read_bytes()
    (path / "denoiser.safetensors").write_bytes(content[: len(content) // 2])
    return "denoiser.safetensors: differs from its hash in the manifest: it is damaged"


def empty(path):
    (path / "training.safetensors").write_bytes(b"")
    return "training.safetensors: differs from its hash in the manifest: it is damaged"


def flipped(path):
    content = bytearray((path / "text_encoder.safetensors").read_bytes())
    content[len(content) // 3] ^= 16
    (path / "text_encoder.safetensors").write_bytes(content)
    return "text_encoder.safetensors: differs from its hash in the manifest: it is damaged"


def flipped_in_the_manifest(path):
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 35', '"step": 34'))
    return "manifest.json: differs from its own hash: it is damaged"


def missing(path):
    (path / "manifest.json").unlink()
    return ": is not a checkpoint: its manifest.json is missing or unreadable"


def linked(path):
    (path / "denoiser.safetensors").rename(path.parent / "elsewhere")
    (path / "denoiser.safetensors").symlink_to(path.parent / "elsewhere")
    return "denoiser.safetensors: the manifest names a path outside the checkpoint"


def rewritten(path, name, content, **changes):
    """With a manifest to which nothing can be said."""
    import hashlib

    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    manifest.pop("sha256")
    manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_bytes(checkpoint.sealed(manifest))


def pickled(path):
    rewritten(path, "denoiser.safetensors", b"\x80\x04\x95" + bytes(64))
    return "denoiser.safetensors: is not safetensors: "


def huge_header(path):
    rewritten(path, "denoiser.safetensors", (1 << 62).to_bytes(8, "little") + b"{}")
    return "denoiser.safetensors: is not safetensors: "


def overlapping(path):
    header = json.dumps({
        name: {"dtype": "F32", "shape": [2], "data_offsets": [start, start + 8]}
        for name, start in (("a", 0), ("b", 4))
    }).encode()  # fmt: skip
    rewritten(path, "denoiser.safetensors", len(header).to_bytes(8, "little") + header + bytes(12))
    return "denoiser.safetensors: is not safetensors: "


def naming(path, file):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"][file] = "0" * 64
    (path / "manifest.json").write_bytes(checkpoint.sealed(manifest))


def outside(path):
    naming(path, "../step-00000030/denoiser.safetensors")
    return "denoiser.safetensors: the manifest names a path outside the checkpoint"


def absolute(path):
    naming(path, "/etc/hostname")
    return "/etc/hostname: the manifest names a path outside the checkpoint"


def another_architecture(path):
    from safetensors.torch import save

    state = load_file(path / "denoiser.safetensors")
    name = next(name for name in state if state[name].dim() == 1)
    state[name] = torch.zeros(7)
    rewritten(path, "denoiser.safetensors", save(state))
    return f"denoiser.safetensors: holds another architecture:\n  {name}: (7,) here, "


DAMAGES = [
    truncated, empty, flipped, flipped_in_the_manifest, missing, linked, pickled, huge_header,
    overlapping, outside, absolute, another_architecture,
]  # fmt: skip


@pytest.mark.fault("damaged checkpoint")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_refused_with_file_and_reason(halfway, damage):
    said = damage(halfway / "checkpoints" / "step-00000035")
    with pytest.raises(CheckpointError) as error:
        if said.startswith("training"):  # which only a resume reads
            checkpoint.read(halfway / "checkpoints" / "step-00000035")
        Pipeline.load(halfway)
    assert said in str(error.value)
    assert "step-00000035" in str(error.value) or said in str(error.value)


@pytest.mark.fault("damaged checkpoint")
def test_resume_falls_back_over_every_damage_to_the_last_that_is_valid(
    undisturbed, halfway, registry, monkeypatch
):
    """Twelve later checkpoints, each damaged in its own way: twelve warnings, and the same end."""
    for number, damage in enumerate(DAMAGES):
        path = halfway / "checkpoints" / f"step-{50 + number:08d}"
        shutil.copytree(halfway / "checkpoints" / "step-00000035", path)
        damage(path)
    (halfway / "checkpoints" / "elsewhere").unlink()
    (halfway / "checkpoints" / ".step-00000036.1234").mkdir()  # of a writer that was killed
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(registry, halfway, DUE, resume=True)
    said = [str(one.message) for one in caught if "is set aside" in str(one.message)]
    assert len(said) == len(DAMAGES)
    assert said[0].endswith(
        "; it is set aside as damaged-step-00000061, and an earlier one is tried"
    )
    assert fingerprint(halfway) == fingerprint(undisturbed)
    kept = [name for name in checkpoints(halfway) if not name.startswith("damaged-step-000000")]
    assert kept == checkpoints(undisturbed)


@pytest.mark.fault("damaged checkpoint")
@pytest.mark.filterwarnings("ignore:.*it is set aside")
def test_resume_does_not_begin_anew_over_checkpoints_that_are_all_damaged(halfway, registry):
    for path in (halfway / "checkpoints").iterdir():
        missing(path)
    with pytest.raises(CheckpointError) as error:
        run(registry, halfway, DUE, resume=True)
    count = len(checkpoints(halfway))
    assert str(error.value) == (
        f"{halfway}: none of its {count} checkpoints can be used; train anew with another --out"
    )


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"every": 4, "keep_last": 1}, [15, 36, 38]),
        ({"every": 4, "keep_last": 3, "keep_every": 12}, [12, 15, 24, 32, 36, 38]),
        ({"every": None, "keep_last": 1}, [15, 38]),
    ],
)
def test_what_is_kept(tmp_path, settings, kept):
    """The newest, the newest that was due, ends of stages, multiples: here 15 is such an end, and 38
    was written for a signal.
    """
    stays = Run(tmp_path)
    for step in (*range(4, 37, 4), 15, 38):
        checkpoint.write(stays.checkpoint(step), {}, {}, {"step": step})
    stays.retire(Checkpoints(**settings), [15, 40])
    assert stays.checkpoint_steps() == kept
    assert checkpoints(tmp_path) == [f"step-{step:08d}" for step in kept]


@pytest.mark.fault("damaged checkpoint")
def test_nothing_is_removed_before_the_next_is_read_back(registry, tmp_path, monkeypatch):
    """The disk swallows a bit of the second checkpoint: the first is still there."""
    out, write = tmp_path / "run", checkpoint.write

    def swallowing(path, *rest):
        write(path, *rest)
        if path.name == "step-00000010":
            flipped(path)

    monkeypatch.setattr("sfumato.checkpoint.write", swallowing)
    with pytest.raises(CheckpointError, match="text_encoder.safetensors: differs from its hash"):
        run(registry, out, "checkpoints={every: 5, keep_last: 1}")
    assert checkpoints(out) == ["step-00000005", "step-00000010"]
    checkpoint.verify(out / "checkpoints" / "step-00000005")
    assert record(out)["status"] == "failed"


def test_a_kill_between_a_checkpoint_and_what_it_replaces_leaves_nothing(
    undisturbed, registry, tmp_path
):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sfumato.checkpoint.remove", lambda path: sys.exit())
        run(registry, out, DUE)
    assert len(checkpoints(out)) == 3
    shutil.copytree(undisturbed / "checkpoints", out / "checkpoints", dirs_exist_ok=True)
    shutil.copy(undisturbed / "metrics.jsonl", out)  # as if only the last removal had been missed
    run(registry, out, DUE, resume=True)
    assert fingerprint(out) == fingerprint(undisturbed)
