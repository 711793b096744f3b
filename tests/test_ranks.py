"""Two ranks, started by torchrun on gloo, are one process to rounding; they stop and fail together."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import two_ranks
from sfumato import ConfigError, measurements, ranks
from sfumato.engine import Single
from sfumato.training import train

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
}
pytestmark = pytest.mark.filterwarnings("ignore:.* pictures are saturated")


def torchrun(*arguments, cwd=None, **environment):
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)],
        env=ENVIRONMENT | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


def program(name, folder, **environment):
    done = torchrun(two_ranks.__file__, name, folder, **environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run of one process."""
    folder = tmp_path_factory.mktemp("single")
    for _ in train(two_ranks.experiment(folder), folder / "run"):
        pass
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same on two ranks, and gradients."""
    folder = tmp_path_factory.mktemp("both")
    program("weights", folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same on two ranks that have shards of the weights."""
    folder = tmp_path_factory.mktemp("shards")
    program("shards", folder)
    return folder


def logged(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def record(path):
    return json.loads((path / "run.json").read_text())


def differences(first, second):
    """The relative one of each step's loss, by the step of its stage."""
    pairs = zip(logged(first), logged(second), strict=True)
    return [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs]


@pytest.mark.fault("world size")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", ["clip", "denoiser"])
def test_gradients_from_equal_weights_are_those_of_one_process(both, stage, parallel):
    expected = two_ranks.gradients(two_ranks.experiment(both), stage, Single("cpu"))
    found = load_file(both / f"gradients-{stage}-{parallel}.safetensors")
    assert found.keys() == expected.keys()
    assert len(found) > 40
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0.1
    for name, gradient in found.items():
        assert float((gradient - expected[name]).abs().max()) <= 1e-6 * max(1.0, largest), name


@pytest.mark.fault("world size")
def test_losses_of_twenty_steps_and_learning_rates_are_those_of_one_process(single, both):
    found = differences(single / "run", both / "run")
    assert len(found) == 2 * two_ranks.STEPS
    assert max(found) <= 1e-6
    rates = [[line["learning_rate"] for line in logged(one / "run")] for one in (single, both)]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) >= two_ranks.STEPS
    assert record(both / "run")["world_size"] == 2


@pytest.mark.fault("two ranks")
def test_each_example_is_seen_once_an_epoch_and_no_rank_runs_out(both):
    seen = [two_ranks.seen(both, rank) for rank in (0, 1)]
    assert [one[:2] for one in seen[0]] == [one[:2] for one in seen[1]]
    assert {(len(a), len(b)) for (*_, a), (*_, b) in zip(*seen, strict=True)} == {(4, 5)}
    for stage in ("clip", "denoiser"):
        order = [
            example
            for first, second in zip(*seen, strict=True)
            if first[0] == stage
            for example in first[2] + second[2]
        ]
        assert len(order) == two_ranks.STEPS * two_ranks.BATCH
        assert sorted(order[:64]) == sorted(order[64:128]) == list(range(64))


def check_metrics(first, second):
    """Shares of equally many samples, within the interval of their difference."""
    assert first.keys() == second.keys()
    assert len(first) == 3
    for key, one in first.items():
        other, count = second[key], one["n"]
        assert other["n"] == count
        pooled = (one["value"] + other["value"]) / 2
        error = math.sqrt(max(pooled * (1 - pooled), 1 / count) * 2 / count)
        assert abs(one["value"] - other["value"]) <= 1.96 * error, key


@pytest.mark.fault("world size")
def test_the_final_metrics_lie_within_their_intervals(single, both):
    check_metrics(record(single / "run")["results"], record(both / "run")["results"])


@pytest.mark.slow
@pytest.mark.fault("world size")
def test_shards_train_as_whole_weights_do(single, both, shards):
    assert max(differences(both / "run", shards / "run")) <= 1e-5
    check_metrics(record(both / "run")["results"], record(shards / "run")["results"])
    for name in ("text_encoder", "denoiser"):
        whole, gathered = (
            load_file(max((one / "run/checkpoints").glob("step-*")) / f"{name}.safetensors")
            for one in (single, shards)
        )
        assert whole.keys() == gathered.keys()
        away = sum(float((whole[key] - gathered[key]).square().sum()) for key in whole)
        length = sum(float(one.square().sum()) for one in whole.values())
        assert (away / length) ** 0.5 <= 1e-3  # AdamW moves what has no gradient but rounding


@pytest.fixture(scope="module")
def measured(small_run, tmp_path_factory):
    """What the commands make in one process, and on two ranks."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(small_run, folder / "run")
    two_ranks.commands(folders[0])
    done = torchrun(two_ranks.__file__, "commands", folders[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results.json") == 0
    assert done.stdout.count(str(folders[1] / "sheet.png")) == 1  # one of the ranks says it
    return folders


@pytest.mark.slow
def test_pictures_and_numbers_of_two_ranks_are_those_of_one_process(measured):
    one, two = (np.asarray(Image.open(folder / "sheet.png"), dtype=int) for folder in measured)
    assert one.shape == two.shape
    assert abs(one - two).max() <= 1  # a rounding on the edge of two of 256 levels
    records = [json.loads((one / "evaluation" / "results.json").read_text()) for one in measured]
    assert [record.pop("world_size") for record in records] == [1, 2]
    numbers = [measurements.flat(record["results"]) for record in records]
    assert numbers[0].keys() == numbers[1].keys()
    assert {"shape_accuracy", "frechet_distance", "guidance.3.color_accuracy"} <= numbers[0].keys()
    for name, first in numbers[0].items():
        assert attrs.astuple(first) == pytest.approx(attrs.astuple(numbers[1][name]), rel=1e-4)
    same = ("checkpoint", "seed", "prompts", "settings")
    assert [records[0][key] for key in same] == [records[1][key] for key in same]
    for folder in measured:
        assert {path.name for path in (folder / "evaluation").iterdir()} == {
            "results.json", "samples.png", "guidance.png", "guidance.json",
        }  # fmt: skip


def test_parts_of_a_batch_make_the_step_of_the_whole(registry, tmp_path):
    losses = []
    for parts in (1, 3):
        few = ["stages.clip.steps=1", "evaluation.metrics=[]", "stages.denoiser.batch=10", "denoiser.dropout=0.4"]  # fmt: skip
        changed = [*few, f"stages.denoiser.accumulation={parts}"]
        steps = list(train(registry.experiment("small", changed), tmp_path / f"{parts}"))
        losses.append([step.loss for step in steps])
        assert all(0 <= step.numbers["text_dropout"] <= 1 for step in steps[1:])
    assert len(losses[0]) == 7
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_what_cannot_be_shared_out_is_refused(registry, tmp_path, monkeypatch):
    def message(*overrides):
        with pytest.raises(ConfigError) as error:
            next(train(registry.experiment("small", overrides), tmp_path / "run"))
        return str(error.value)

    assert message("stages.denoiser.accumulation=9") == (
        "stages.denoiser.batch: a batch of 8 cannot be shared out to 1 ranks in 9 parts each; "
        "use at least 9"
    )
    assert message("stages.clip.accumulation=2") == (
        "stages.clip.accumulation: the objective 'contrastive' compares all examples of a batch, "
        "which cannot be computed in parts; leave it at 1, and let more ranks share the batch out"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert message() == (
        "work on 2 ranks: accelerate is not installed; "
        "pip install 'sfumato[accelerate]', or start without torchrun"
    )
    assert not (tmp_path / "run").exists()


def test_in_one_process_gathered_is_what_it_was_given():
    rows = torch.ones(2, 3)
    assert ranks.gathered(rows) is rows


@pytest.mark.slow
@pytest.mark.fault("world size")
def test_two_ranks_resume_as_one_and_one_as_two(single, tmp_path):
    program("half_way", tmp_path)
    for parallel in ("ddp", "fsdp"):
        settings = two_ranks.experiment(tmp_path, "checkpoints.every=5")
        two_ranks.left_at(33, settings, tmp_path / parallel, resume=True)
    program("to_the_end", tmp_path)
    for parallel in ("ddp", "fsdp"):
        found = record(tmp_path / parallel)
        assert found["status"] == "completed"
        resumed = [(one["step"], one["world_size"]) for one in found["resumed"]]
        assert resumed == [(20, 1), (30, 2)]
        assert max(differences(single / "run", tmp_path / parallel)) <= 1e-5


LONG = ["stages.clip.steps=20000", "checkpoints.every=null"]


def started(tmp_path, *arguments, overrides=()):
    (tmp_path / "registry.yaml").write_text(two_ranks.SMALL)
    options = [part for override in overrides for part in ("--set", override)]
    command = [*arguments, "train", "small", "--out", "run", *options]
    output = (tmp_path / "output.txt").open("w")
    return subprocess.Popen(
        [*TORCHRUN, "-m", "sfumato.cli", *command],
        env=ENVIRONMENT, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT,
    )  # fmt: skip


def ranks_of(process):
    """The processes that torchrun started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


def wait_for_steps(path, count=10, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (path / "metrics.jsonl").exists() and len(logged_so_far(path)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError((path.parent / "output.txt").read_text())


def logged_so_far(path):
    return (path / "metrics.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.fault("two ranks")
@pytest.mark.parametrize("whom", ["first", "second", "torchrun", "all"])
def test_sigterm_stops_all_at_the_same_step(tmp_path, whom):
    process = started(tmp_path, overrides=LONG)
    wait_for_steps(tmp_path / "run")
    children = ranks_of(process)
    assert len(children) == 2
    named = {"first": children[:1], "second": children[1:], "torchrun": [process.pid]}
    for told in named.get(whom, [*children, process.pid]):  # of which the last passes it on
        os.kill(told, signal.SIGTERM)
    assert process.wait(60) != 0
    steps = logged(tmp_path / "run")
    assert record(tmp_path / "run")["status"] == "preempted"
    last = steps[-1]["step"]
    said = f"run, step {last}: ended by SIGTERM; continue with --resume"
    assert (tmp_path / "output.txt").read_text().count(said) == 2
    saved = [one.name for one in (tmp_path / "run/checkpoints").iterdir()]
    assert saved == [f"step-{last:08d}"]


FLAWED = """
import os

import attrs

from sfumato import DataError, Split, hookimpl
from sfumato_data.shapes import Shapes


class OfOne(Split):
    def __init__(self, inside):
        self.inside = inside

    def __len__(self):
        return len(self.inside)

    def caption(self, index):
        return self.inside.caption(index)

    def example(self, index):
        if os.environ.get("RANK") == "1" and index == 40:
            raise DataError("cannot be read", place="example 40")
        return self.inside.example(index)


@attrs.frozen(kw_only=True)
class Flawed(Shapes):
    'Shapes, of which the second rank cannot read one.'

    name = "flawed"

    def split(self, name):
        return OfOne(Shapes.split(self, name))


@hookimpl
def sfumato_components():
    return [Flawed]
"""


@pytest.mark.slow
@pytest.mark.fault("two ranks")
def test_a_rank_that_raises_ends_the_job_with_its_error(tmp_path):
    (tmp_path / "flawed.py").write_text(FLAWED)
    data = "data={use: flawed, size: 16, count: 64, held_out: 16}"
    process = started(tmp_path, "--plugin", "flawed.py", overrides=[*LONG, data])
    assert process.wait(90) != 0
    output = (tmp_path / "output.txt").read_text()
    assert "error: example 40: cannot be read" in output
    assert "error: ended, because another rank failed: rank 1: example 40: cannot be read" in output
    found = record(tmp_path / "run")
    assert found["status"] == "failed"
    assert found["error"].endswith("rank 1: example 40: cannot be read")
