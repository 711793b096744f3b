"""Sweeps from the command line: one run a point, shared stages, tables; refused before any begins."""

import csv
import json
import shutil
import sys
import time

import pytest
import yaml

import processes
from sfumato.interruption import Interruption
from sfumato.jobs import Processes, Task
from sfumato.sweep_runner import Runner
from sfumato.sweep_targets import Evaluations, Planned, Trainings
from small import SMALL

QUICK = ["--set", "evaluation.count=4"]
NOTHING = ["--set", "evaluation.metrics=[]", "--set", "evaluation.studies=[]"]


def runs(out):
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/run.json")}


def weights(out):
    manifests = sorted(out.glob("*/checkpoints/*/manifest.json"))
    return {str(path.relative_to(out)): json.loads(path.read_text())["files"] for path in manifests}


def lines(out):
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def taken(record):
    return {name: stage["taken"] for name, stage in record["stages"].items() if "taken" in stage}


def test_every_wrong_point_is_told_before_anything_is_made(registry_file, call, tmp_path):
    arguments = ["--registry", registry_file, "sweep", "small", "--out", "swept"]
    code, out, err = call(
        *arguments, "--sweep", "guidance.scale=1,high", "noise_schedule=linear,cosin"
    )
    assert code == 2
    assert out == ""
    told = err.splitlines()
    assert len(told) == 4  # the point that is wrong in both ways has two lines
    assert told[0].startswith("error: scale=1,noise_schedule=cosin: ")
    assert "did you mean 'cosine'?" in told[0]
    assert not (tmp_path / "swept").exists()


def test_what_would_be_without_effect_is_refused(registry_file, call, tmp_path):
    start = ["--registry", registry_file, "sweep", "small", "--out", "swept", "--sweep", "seed=0,1"]
    assert call(*start, "--set", "seed=3")[::2] == (
        2, "error: --set seed=3: is swept over, and given for all points; leave one out\n"
    )  # fmt: skip
    assert call(*start, "--trials", "3")[::2] == (
        2, "error: --trials: there is no search to try; leave it, or give the sweep a `search`\n"
    )  # fmt: skip
    assert not (tmp_path / "swept").exists()


def test_a_folder_of_another_sweep_is_not_gone_on_with(registry_file, call, small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "swept" / "scale=9")
    assert call(
        *("--registry", registry_file, "sweep", "small", "--out", "swept"),
        *("--sweep", "seed=0,1", "--resume"),
    )[::2] == (
        2, "error: swept: holds points of another sweep: scale=9; name all points that it has, or "
        "choose another --out\n",
    )  # fmt: skip
    assert not (tmp_path / "swept" / "seed=0").exists()


def test_a_point_that_training_would_refuse_is_told_too(registry_file, call, tmp_path):
    code, _, err = call(
        *("--registry", registry_file, "sweep", "small", "--out", "swept"),
        *("--sweep", "stages.clip.batch=8,65"),
    )
    assert code == 2
    assert err.startswith("error: batch=65: ")
    assert not (tmp_path / "swept").exists()


def test_there_must_be_something_to_sweep_over(registry_file, call):
    code, _, err = call("--registry", registry_file, "sweep", "small")
    assert code == 2
    assert err == (
        "error: small: there is nothing to sweep over; give --sweep KEY=VALUE,VALUE, or the "
        "experiment a `sweep`\n"
    )


def test_a_folder_that_holds_something_is_left_alone(registry_file, call, tmp_path):
    (tmp_path / "swept").mkdir()
    (tmp_path / "swept" / "mine.txt").touch()
    code, _, err = call("--registry", registry_file, "sweep", "small", "seed=0,1", "--out", "swept")
    assert code == 2
    assert err == (
        "error: swept: is not empty; choose another --out, or go on with it with --resume\n"
    )


@pytest.mark.slow
def test_points_share_the_stages_that_they_have_in_common(registry_file, call, tmp_path):
    arguments = [
        "--registry",
        registry_file,
        "sweep",
        "small",
        "--jobs",
        2,
        "--out",
        "swept",
        *QUICK,
    ]
    grid = ["--sweep", "noise_schedule=linear,cosine", "guidance.scale=1,4"]
    code, out, _ = call(*arguments, *grid)
    assert code == 0
    found = runs(tmp_path / "swept")
    assert set(found) == {
        f"noise_schedule={name},scale={scale}" for name in ("linear", "cosine") for scale in (1, 4)
    }
    trained = [
        name for record in found.values() for name in {"clip", "denoiser"} - set(taken(record))
    ]
    assert sorted(trained) == ["clip", "denoiser", "denoiser"]
    assert [line["status"] for line in lines(tmp_path / "swept")] == ["completed"] * 4
    assert "## shape_accuracy" in out

    alone = tmp_path / "alone"
    swapped = ["--set", "noise_schedule=cosine", "--set", "guidance.scale=4", *QUICK]
    assert call("--registry", registry_file, "train", "small", *swapped, "--out", alone)[0] == 0
    name = "noise_schedule=cosine,scale=4"
    assert found[name]["results"] == json.loads((alone / "run.json").read_text())["results"]
    assert weights(tmp_path / "swept" / name) == weights(alone)

    table, before = lines(tmp_path / "swept"), weights(tmp_path / "swept")
    code, out, _ = call(*arguments, *grid, "--resume")
    assert code == 0
    assert out.startswith("4 points in swept, 2 at once")
    assert "4 of 4 points are complete already" in out
    assert lines(tmp_path / "swept") == table
    assert runs(tmp_path / "swept") == found
    assert weights(tmp_path / "swept") == before
    code, _, err = call(*arguments, *grid, "--resume", "--set", "stages.clip.batch=4")
    assert code == 2
    assert "stages.clip.batch: 8 in the run, 4 now" in err


@pytest.mark.slow
def test_a_point_that_fails_stops_no_other_and_stands_in_the_table(registry_file, call, tmp_path):
    code, out, err = call(
        *("--registry", registry_file, "sweep", "small", "--out", "swept", *NOTHING),
        *("--sweep", "stages.denoiser.learning_rate=1e30,1e-3"),
    )
    assert code == 1
    assert "1 of 2 points failed" in err
    failed, fine = lines(tmp_path / "swept")
    assert failed["status"].startswith("error: stage denoiser, step ")
    assert fine["status"] == "completed"
    assert "- `learning_rate=1e+30`: error: stage denoiser" in out
    assert "# small: 1 of 2 runs" in out  # one that measures nothing is a run too


class Failing(Trainings):
    """Each attempt adds a character to a file and fails; the first says why."""

    PROGRAM = (
        "import sys\n"
        "file = open(sys.argv[1], 'a')\n"
        "print('error: boom' if file.tell() == 0 else 'Killed')\n"
        "file.write('x')\n"
        "sys.exit(1)\n"
    )

    def _planned(self, point, name):
        command = (sys.executable, "-S", "-c", self.PROGRAM, str(self.out / "attempts"))
        task = Task(name=name, arguments=command, log=self.out / "logs" / f"{name}.txt")
        return Planned(settings=point, seed=0, task=task, folder=self.out / name)


def test_why_a_point_has_failed_is_told_of_its_last_attempt(registry, tmp_path):
    target = Failing(name="small", registry=registry, out=tmp_path)
    for said in ("error: boom", "Killed"):
        runner = Runner(
            target=target,
            executor=Processes(1),
            jobs=1,
            interruption=Interruption(),
            told=lambda line: None,
        )
        (row,) = runner.run(target.planned([{"seed": 0}]))
        assert (row.status, row.complete) == (said, False)
    assert "error: boom" in (tmp_path / "logs" / "seed=0.txt").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_asked_to_end_leaves_checkpoints_and_goes_on(registry_file, tmp_path):
    steps = ["--set", "stages.denoiser.steps=80", *QUICK]
    arguments = ["--registry", registry_file, "sweep", "small", "--sweep", "seed=0,1"]
    arguments += ["--jobs", 2, "--out", "swept", *steps]
    sweep = processes.start(tmp_path, *arguments)
    deadline = time.monotonic() + 120
    logs = [tmp_path / "swept" / f"seed={seed}" / "metrics.jsonl" for seed in (0, 1)]
    while time.monotonic() < deadline:
        if all(log.is_file() and log.read_text().count("\n") > 20 for log in logs):
            break
        time.sleep(0.05)
    sweep.terminate()
    sweep.join(60)
    assert sweep.exitcode == 143
    assert {record["status"] for record in runs(tmp_path / "swept").values()} == {"preempted"}
    again = processes.start(tmp_path, *arguments, "--resume")
    again.join(240)
    assert again.exitcode == 0
    found = runs(tmp_path / "swept")
    assert all(record["status"] == "completed" for record in found.values())
    assert all(len(record["resumed"]) == 1 for record in found.values())
    arguments = ["--registry", registry_file, "train", "small", "--set", "seed=1", *steps]
    whole = processes.start(tmp_path, *arguments, "--out", "whole")
    whole.join(240)
    assert weights(tmp_path / "whole").items() <= weights(tmp_path / "swept" / "seed=1").items()


@pytest.mark.slow
def test_a_search_runs_its_trials(tmp_path, call):
    pytest.importorskip("optuna")
    tree = yaml.safe_load(SMALL)
    tree["experiments"]["small"]["sweep"] = {
        "search": {"guidance.scale": {"low": 1.0, "high": 9.0}},
        "trials": 1,
        "maximize": "shape_accuracy",
    }
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(tree))
    code, out, _ = call("sweep", "small", "--out", "swept", *QUICK)
    assert code == 0
    assert "best is trial " in out
    assert {line["label"] for line in lines(tmp_path / "swept")} == {"trial-0"}
    code, out, _ = call("sweep", "small", "--out", "swept", "--resume", "--trials", 2, *QUICK)
    assert code == 0
    assert out.count("begins ") == 1
    assert len(lines(tmp_path / "swept")) == 2


@pytest.mark.slow
def test_a_run_is_swept_over_without_training(small_run, call, tmp_path):
    before = (small_run / "run.json").read_bytes()
    arguments = ["sweep", small_run, "--sweep", "guidance.scale=1,9", "--out", "swept", *QUICK]
    code, _, _ = call(*arguments)
    assert code == 0
    assert (small_run / "run.json").read_bytes() == before
    assert not (small_run / "evaluations").exists()
    one, nine = lines(tmp_path / "swept")
    assert (one["scale"], nine["scale"], one["status"]) == ("1", "9", "completed")
    code, out, _ = call(*arguments, "--resume")
    assert code == 0
    assert "2 of 2 points are complete already" in out
    code, _, err = call(*arguments, "--resume", "--set", "sampling.steps=2")
    assert code == 2
    assert "scale=1: swept/scale=1: was measured with other settings; choose another --out" in err
    assert (
        (tmp_path / "swept" / "table.md").read_text().startswith(f"# {small_run}@10: 2 of 2 runs")
    )
    half = tmp_path / "swept" / "scale=9"
    (half / "results.json").unlink()  # as a kill leaves it
    assert call(*arguments, "--resume")[0] == 0
    assert lines(tmp_path / "swept") == [one, nine]


def test_a_wrong_point_of_a_run_is_told_before_anything_is_drawn(small_run, call, tmp_path):
    code, _, err = call("sweep", small_run, "--sweep", "guidance.scale=1,high", "--out", "swept")
    assert code == 2
    assert err.startswith("error: scale=high: --set: guidance.scale: expected number, got the text")
    assert not (tmp_path / "swept").exists()


def test_all_points_draw_from_one_checkpoint(small_run, registry, tmp_path):
    """RUN is RUN@STEP from the start, and an earlier one may be named."""
    points = [{"guidance.scale": 1}, {"guidance.scale": 2}]
    for name, step in ((str(small_run), 10), (f"{small_run}@4", 4)):
        target = Evaluations(name=name, registry=registry, out=tmp_path / "swept")
        drawn = {point.task.arguments[4] for point in target.planned(points)}
        assert drawn == {f"{small_run}@{step}"}


def test_what_an_evaluation_has_not_written_is_never_removed(small_run, call, tmp_path):
    """Neither in its own folder, nor in that of a sweep of trainings, which is another."""
    for out in ("runs/run-evaluations", "runs/run-sweep"):
        trained = shutil.copytree(small_run, tmp_path / out / "scale=1")
        given = ["--out", out] if out == "runs/run-sweep" else []
        for _ in range(2):
            code, _, err = call("sweep", small_run, "guidance.scale=1,2", "--resume", *given)
            said = "holds what no evaluation has written; choose another --out"
            assert (code, err) == (2, f"error: scale=1: {out}/scale=1: {said}\n")
            assert (trained / "checkpoints" / "step-00000010" / "manifest.json").is_file()
            (trained / "run.json").unlink(missing_ok=True)  # then it is no run, and still not ours


def test_a_run_with_nothing_to_measure_is_told_before_anything_is_drawn(small_run, call):
    code, _, err = call(
        *("sweep", small_run, "--sweep", "guidance.scale=1,2", "--out", "swept"),
        *NOTHING,
    )
    assert code == 2
    assert err.splitlines()[0] == (
        "error: scale=1: evaluation: nothing is to be measured; name metrics or studies, such as "
        "--set evaluation.metrics=[shape_accuracy]"
    )
