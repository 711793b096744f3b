"""A run measured again: the same numbers where nothing is changed, others beside it where it is."""

import hashlib
import json
import shutil

import pytest
from PIL import Image

import sfumato
from sfumato import ConfigError, Pipeline, measurements


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def evaluated(run, **arguments):
    return sfumato.evaluate(run, device="cpu", **arguments)


def test_a_run_evaluated_again_gives_its_own_numbers_and_stays_as_it_was(run):
    before = (run / "run.json").read_bytes()
    done = evaluated(run)
    assert done.results == json.loads(before)["results"] != {}
    assert (run / "run.json").read_bytes() == before
    assert done.path == run / "evaluations" / "as-trained"
    assert json.loads((done.path / "results.json").read_text()) == done.record
    assert done.record["settings"] == {} and done.record["seed"] == 3
    manifest = run / "checkpoints" / "step-00000010" / "manifest.json"
    assert done.record["checkpoint"] == {
        "name": "step-00000010", "files": json.loads(manifest.read_text())["files"],
    }  # fmt: skip
    with Image.open(done.path / "samples.png") as sheet:
        assert json.loads(sheet.text["sfumato"])["seed"] == 3
    assert evaluated(run).path.name == "as-trained-2"


def test_training_measures_at_the_precision_of_sampling(registry, small_run, tmp_path):
    overrides = ["sampling.precision=bfloat16", "evaluation.studies=[]"]
    list(sfumato.train(registry.experiment("small", overrides), tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    assert found == evaluated(tmp_path / "run").results != {}
    sheets = [one / "samples" / "step-00000010.png" for one in (tmp_path / "run", small_run)]
    half, whole = (Image.open(sheet).tobytes() for sheet in sheets)
    assert half != whole


def test_a_metric_without_a_number_is_said(run):
    said = "metric diversity finds no number in these 1 pictures; `sfumato describe metric div"
    with pytest.warns(UserWarning, match=said):
        assert evaluated(run, metrics=["diversity", "clip_similarity"], count=1).results.keys() == {
            "clip_similarity"
        }


def test_what_is_changed_is_in_the_record_and_the_rest_is_not(run):
    done = evaluated(run, overrides=["guidance.scale=1", "sampler=ddpm"], count=3, seed=8)
    assert done.path.name == "guidance-scale=1-sampler=ddpm"
    changes = done.record["settings"]
    assert changes["guidance.scale"] == 1.0 and changes["evaluation.count"] == 3
    assert changes["sampler"]["use"] == "ddpm"
    assert len(changes) == 3
    assert done.record["seed"] == 8
    assert all(one.n <= 3 for one in measurements.flat(done.results).values())


def test_what_is_named_is_all_that_is_measured(run):
    done = evaluated(run, studies=["clip_similarity"], overrides=["evaluation.studies.0.count=3"])
    assert done.results.keys() == {"clip_retrieval"}
    assert (done.path / "clip_similarity.png").exists()
    assert not (done.path / "samples.png").exists()
    done = evaluated(run, metrics=["diversity", "clip_similarity"], prompts=["a circle"], count=3)
    assert done.results.keys() == {"diversity", "clip_similarity"}


def test_prompts_of_a_file_are_drawn_in_their_order_each_with_its_own_noise(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  a blue square \na circle\n", encoding="utf-8")
    seen = []

    class Kept(sfumato.Scores):
        def update(self, images, prompts):
            seen.append((images, tuple(prompts)))
            self.add({"brightness": images.mean(dim=(1, 2, 3))})

    from sfumato_metrics import ClipSimilarity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipSimilarity, "build", lambda self, pipeline: Kept())
        done = evaluated(run, metrics=["clip_similarity"], prompts=file, count=6)
    prompts = ["a red circle", "a blue square", "a circle"] * 2
    assert [texts for _, texts in seen] == [tuple(prompts[:4]), tuple(prompts[4:])]
    pipeline = Pipeline.load(run)
    for k in range(6):  # alone, whatever the batch: to rounding, divided by alpha at t = 1
        alone = pipeline.sample(prompts, seed=3, rows=range(k, k + 1))[0]
        image = seen[k // 4][0][k % 4]
        assert (alone - image).abs().max() < 1e-4
    assert done.record["prompts"] == {
        "source": str(file),
        "count": 6,
        "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": []}, "evaluation: nothing is to be measured; name metrics or studies, such as --metrics clip_score"),
        ({"prompts": []}, "prompts: there is no prompt; give one a line"),
        ({"metrics": ["clip_similarty"]}, "--set: evaluation.metrics.0: no metric is named 'clip_similarty'; did you mean 'clip_similarity'?"),
        ({"overrides": ["seed=4"]}, "seed: has no effect on a run that is trained; give the seed to the command (--seed)"),
        ({"overrides": ["stages.clip.steps=4"], "out": "here"}, None),
        ({"overrides": ["loss=huber"]}, "loss: has no effect on a run that is trained; leave it"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused_and_nothing_is_written(run, arguments, message):
    if message is None:  # as it was trained: no change, so no fault, but a folder that is not empty
        (run / "here").mkdir()
        (run / "here" / "note").touch()
        arguments["out"] = run / "here"
        message = f"{run / 'here'}: is not empty; choose another --out"
    with pytest.raises(ConfigError) as error:
        evaluated(run, **arguments)
    assert str(error.value) == message
    assert not (run / "evaluations").exists()


def test_the_command_prints_each_number_with_its_interval(call, run):
    code, out, err = call("evaluate", str(run), "--metrics", "shape_attributes", "--count", "4")
    assert code == 0, err
    *numbers, path = out.splitlines()
    record = json.loads((run / "evaluations" / "as-trained" / "results.json").read_text())
    stated = measurements.flat(record["results"])
    assert [line.split(maxsplit=1) for line in numbers] == [
        [name, str(one)] for name, one in stated.items()
    ]
    assert path == str(run / "evaluations" / "as-trained")
    assert call("evaluate", str(run), "--set", "name=other")[0] == 2
