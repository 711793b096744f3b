"""What newcomers stumbled over: each is told with its place and the way out, to the letter."""

import json
import shutil

import pytest

from sfumato import exchange, registry
from sfumato.errors import CheckpointError
from small import SMALL


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run at `runs/other`, whose experiment is called `small`."""
    (tmp_path / "registry.yaml").write_text(SMALL)
    return shutil.copytree(small_run, tmp_path / "runs" / "other")


LORA = "denoiser={use: lora, rank: 17}"
REFUSED = [
    (["sample", "runs/other", "a", "--set", "data={use: shapes, size: 16, count: 32}"],
     "data: has no effect on what is drawn; prompts come from the command; `sfumato train RUN --set data=...` "
     "trains on with it"),
    (["train", "runs/other", "--set", LORA],
     "lora.rank: is 17, and the matrix of down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q, which it "
     "goes around, has at most 16; use 16 or less: more only repeats itself"),
    (["train", "runs/other", "--resume", "--set", "workers=1"],
     "--resume: what trains on from runs/other has a run folder of its own; name it with --out; without --set, "
     "the run itself goes on"),
    (["train", "small", "--out", "runs/other"],
     "runs/other: is not empty; choose another --out, remove it, or go on: sfumato train runs/other --resume"),
    (["train", "runs/nosuch"],
     "runs/nosuch: is neither an experiment nor a run folder: it has no settings.yaml; train or import it first"),
    (["train", "small", "--out", "registry.yaml"],
     "registry.yaml: is a file, or is in one; a run is a folder; choose another --out"),
    (["train", "small", "--out", "registry.yaml/run"],
     "registry.yaml/run: is a file, or is in one; a run is a folder; choose another --out"),
    (["train", "small", "--set", "start=runs/other@99"],
     "--set: start: runs/other has no checkpoint of step 99; it has: 4, 10"),
    (["train", "small", "--set", "stages.nope.steps=3"],
     "--set: stages.nope: there is no such stage; stages: clip, denoiser; a new one is given whole: --set "
     "'stages.nope={objective: ..., ...}'"),
    (["train", "small", "--set", "stages.clip.steps=3", "--set", "stages.clip.steps=4"],
     "--set stages.clip.steps=4: is given twice, first as stages.clip.steps=3; give one of them"),
    (["train", "small", "--set", "guidance={use: cfg"], "--set: expected ',' or '}', but got the end"),
    (["train", "small", "--set", "guidance={use: cfg, scale: [}"], "--set: expected a value, but found '}'"),
    (["sample", "runs/other", "a", "--set", "sampling.size=[17]"],
     "--set: sampling.size: expected each >= 1 and exactly 2 of them, got [17]"),
    (["sample", "runs/other", "a", "--set", "sampling.size=[17,30]"],
     "pictures are 17 x 30, but the autoencoder 'pixels' (factor 1) and the denoiser 'unet' (latents in multiples "
     "of 2) need multiples of 2; draw 16 x 30 (of a run: --set sampling.size=[16,30]), or change these two"),
    (["sample", "runs/other", "a", "--image", "none.png"], "none.png: cannot be read: No such file or directory"),
    (["sample", "runs/other@5", "a"], "runs/other has no checkpoint of step 5; it has: 4, 10"),
    (["import", "runs"],
     "runs: no layout recognises it: there is no model_index.json (diffusers); give the folder that holds it, or "
     "name a layout with --layout: diffusers"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda one: None)
def test_refused_with_the_way_out(call, run, arguments, message):
    def seen():
        found = (path for path in run.parent.parent.rglob("*") if path.name != ".lock")
        return {path: path.stat().st_mtime_ns for path in found}

    before = seen()
    assert call(*arguments) == (2, "", f"error: {message}\n")
    assert seen() == before


def test_an_experiment_without_stages_shows_one(call, run, tmp_path):
    (tmp_path / "registry.yaml").write_text(SMALL + "  bare: {pipeline: shapes}\n")
    assert call("train", "bare") == (
        2, "", "error: experiment 'bare' has no stages; add `stages`, such as --set 'stages.denoiser={objective: "
        "denoising, steps: 1000, batch: 16}'\n",
    )  # fmt: skip


def test_a_start_in_a_file_has_its_line(call, run, tmp_path):
    (tmp_path / "registry.yaml").write_text(
        SMALL + "  tuned: {from: small, start: runs/other@99}\n"
    )
    line = SMALL.count("\n") + 1
    assert call("train", "tuned") == (
        2, "", f"error: registry.yaml:{line}: experiments.tuned.start: runs/other has no checkpoint of step 99; "
        "it has: 4, 10\n",
    )  # fmt: skip


def test_an_adapter_around_weights_that_nothing_trained_is_said(call, run):
    stage = ["--set", "stages.denoiser.steps=1", "--set", "evaluation.metrics=[]"]
    said = (
        "denoiser 'lora' trains beside weights that nothing has trained, and which stay as they were drawn; name "
        "a run: sfumato train RUN --set 'denoiser={use: lora}'"
    )
    with pytest.warns(UserWarning) as warned:
        assert call("train", "small", "--set", "denoiser={use: lora}", *stage)[0] == 0
    assert [str(one.message) for one in warned] == [said]
    code, _, err = call(
        "train", "runs/other", "--set", "denoiser={use: lora}", *stage, "--out", "on"
    )
    assert (code, err) == (0, "")


def test_a_run_itself_goes_on_by_its_folder(call, run):
    """The log is cut, as by a kill after the checkpoint of the first stage."""
    shutil.rmtree(run / "checkpoints/step-00000010")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    code, out, _ = call("train", "runs/other", "--resume")
    assert code == 0
    assert "All of it is in runs/other" in out
    assert json.loads((run / "run.json").read_text())["resumed"][0]["step"] == 4
    assert (run / "checkpoints/step-00000010").is_dir()
    assert not (run.parent / "small").exists()


def test_an_earlier_checkpoint_is_drawn_from(call, run):
    # the denoiser of step 4 is as it was drawn: its stage came after
    assert call("sample", "runs/other@4", "a")[::2] == (
        2, "error: the denoiser of this run was never trained; finish the run before drawing from it\n"
    )  # fmt: skip
    code, out, err = call("sample", "runs/other@10", "a", "--count", "1", "--steps", "1")
    assert (code, out, err) == (0, "runs/other/samples/a-0.png\n", "")


def test_debug_may_stand_behind_the_command_and_its_help_says_so(call, run):
    from sfumato.cli import main
    from sfumato.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["sample", "runs/none", "a", "--debug"])
    assert "Anywhere: --debug, for the" in call("sample", "--help")[1]


def test_an_import_that_fails_names_the_folder_that_was_asked_for(tmp_path):
    with pytest.raises(CheckpointError) as error, exchange._whole(tmp_path / "run") as draft:
        raise CheckpointError(
            "cannot be written", place=str(draft / "checkpoints"), remedy="make room"
        )
    assert str(error.value) == f"{tmp_path / 'run' / 'checkpoints'}: cannot be written; make room"
    assert list(tmp_path.iterdir()) == []


def test_a_stage_may_still_be_added_option_by_option(registry_file):
    added = ["stages.more.objective=denoising", "stages.more.steps=2", "stages.more.batch=4"]
    found = registry.Registry.load(registry_file).experiment("small", added)
    assert list(found.stages) == ["clip", "denoiser", "more"]
