"""A run of two stages that tests interrupt, and what has to be equal afterwards."""

import json

from sfumato.training import train

STAGES = [
    "stages.clip.steps=15",
    "stages.denoiser.steps=25",
    "evaluation.count=2",
    "denoiser.dropout=0.1",
]


def fingerprint(path):
    """Everything that numbers went into: the log but for times, all hashes, what was measured."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    manifests = sorted(path.glob("checkpoints/step-*/manifest.json"))
    return {
        "log": [{key: line[key] for key in line if key != "seconds"} for line in lines],
        "files": {one.parent.name: json.loads(one.read_text())["files"] for one in manifests},
        "results": record(path)["results"],
    }


def record(path):
    return json.loads((path / "run.json").read_text())


def checkpoints(path):
    """Names of all that is in the folder of checkpoints."""
    return sorted(one.name for one in (path / "checkpoints").iterdir())


def run(registry, out, *overrides, stop_before=None, **options):
    """Trains; left at once before a step, as by a kill, where that is asked for."""
    steps = train(registry.experiment("small", [*STAGES, *overrides]), out, **options)
    for step in steps:
        if step.step + 1 == stop_before:
            steps.close()
