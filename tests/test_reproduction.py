"""A run made again from its record is the run, bit for bit; where it is not, that is told."""

import json
import shutil

import pytest

from sfumato import ConfigError, reproduction
from sfumato.runs import Run


@pytest.fixture
def copy(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "first")


def change(path, **facts):
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_run_is_reproduced(copy, call):
    code, out, _ = call("reproduce", copy, "--out", "again")
    lines = dict(line.rsplit("  equal", 1) for line in out.splitlines()[:-1])
    assert code == 0
    assert {
        "plugins",
        "versions",
        "first weights",
        "log of 10 steps",
        "results",
        "weights of step 10",
    } <= {line.strip() for line in lines}
    assert out.splitlines()[-1] == f"{copy} is reproduced by again, bit for bit"
    assert json.loads((copy.parent / "again" / "run.json").read_text())["seed"] == 3


def test_a_tampered_log_and_another_seed_are_told(copy, small_run, call):
    log = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    before, lines[6]["loss"] = lines[6]["loss"], 0.5
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {one.what: one for one in reproduction.compare(Run(copy), Run(small_run))}
    assert found["log of 10 steps"].said == f"from step 7 on: loss 0.5 then, {before!r} now"
    assert [what for what, one in found.items() if not one.equal] == ["log of 10 steps"]

    settings = copy / "settings.yaml"
    settings.write_text(settings.read_text().replace("seed: 3", "seed: 4"))
    code, out, _ = call("reproduce", copy, "--out", "other")
    assert code == 1
    told = {line.partition("  ")[0]: line for line in out.splitlines()}
    for what in ("first weights", "log of 10 steps", "weights of step 4", "weights of step 10"):
        assert "DIFFERS" in told[what], what
    assert out.splitlines()[-1] == f"{copy} is not reproduced by other"


def test_a_log_that_is_cut_is_not_equal(copy, small_run):
    log = copy / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:9]))
    found = {one.what: one for one in reproduction.compare(Run(copy), Run(small_run))}
    assert found["log of 9 steps"].said == "9 lines then, 10 now"


def test_a_last_checkpoint_that_is_gone_and_other_results_are_not_equal(copy, small_run):
    shutil.rmtree(copy / "checkpoints" / "step-00000010")
    results = json.loads((copy / "run.json").read_text())["results"]
    results["shape_accuracy"]["value"] = 2.0
    change(copy / "run.json", results=results)
    found = reproduction.compare(Run(copy), Run(small_run))
    told = {one.what: one.said for one in found if not one.equal and one.decides}
    assert told.keys() == {"results", "weights of step 10"}
    assert told["results"].startswith("shape_accuracy 2.0 then, ")
    assert told["weights of step 10"] == f"{copy} has that checkpoint no more"


def test_other_plugins_are_a_line_or_refused(copy, registry):
    lock = json.loads((copy / "plugins.lock").read_text())
    lock["plugins"][0]["sha256"] = "0"
    (copy / "plugins.lock").write_text(json.dumps(lock))
    told = reproduction.facts(Run(copy), registry, 1, locked=False)[0]
    assert not told.equal
    assert told.said.endswith("source changed")
    with pytest.raises(ConfigError, match="source changed"):
        reproduction.facts(Run(copy), registry, 1, locked=True)


def test_other_software_is_told(copy, registry):
    versions = json.loads((copy / "run.json").read_text())["versions"]
    change(copy / "run.json", versions={**versions, "torch": "1.0"})
    told = {one.what: one for one in reproduction.facts(Run(copy), registry, 1, locked=False)}
    assert told["versions"].said == f"torch 1.0 then, {versions['torch'][:12]} now"


def test_what_cannot_be_repeated_is_refused(copy, registry):
    change(copy / "run.json", world_size=2)
    with pytest.raises(ConfigError) as error:
        reproduction.facts(Run(copy), registry, 1, locked=False)
    assert str(error.value) == (
        f"{copy}: was trained on 2 ranks, and there are 1; start it with torchrun "
        "--nproc-per-node 2 -m sfumato.cli"
    )
    change(copy / "run.json", status="preempted")
    with pytest.raises(ConfigError) as error:
        reproduction.experiment(Run(copy), registry)
    assert str(error.value) == (
        f"{copy}: cannot be repeated: it is trained, preempted; name a run that sfumato has "
        "trained to its end"
    )
