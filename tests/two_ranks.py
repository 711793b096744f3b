"""What tests ask of two ranks, which torchrun starts: gradients from given weights, whole runs, a run left half-way."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato import DataError, Pipeline, batches, cli, plugins, ranks
from sfumato.registry import Registry
from sfumato.stage import StageRun
from sfumato.training import train
from small import ROOT, SMALL

BATCH = 9  # of 64 examples: shares of ranks differ by one, and epochs end inside of a batch
STEPS = 20
DROPOUT = "denoiser.dropout=0.1"
DUE = ["checkpoints.every=5"]
STAGES = [
    f"stages.{stage}.{option}"
    for stage in ("clip", "denoiser")
    for option in (f"steps={STEPS}", f"batch={BATCH}", "warmup=20")
]
DEMO = [
    "stages.clip.steps=20", "stages.denoiser.steps=20", "data.count=256", "trackers=[]",
    "evaluation={metrics: [shape_attributes], studies: [], count: 32}",
]  # fmt: skip
"""The shipped experiment, its first steps, on so few pictures that there are epochs."""


def experiment(folder, *overrides):
    """The small one, or that of the environment's EXPERIMENT."""
    if os.environ.get("EXPERIMENT") == "demo":
        registry = Registry.load(ROOT / "registry.yaml", plugins.load())
        return registry.experiment("demo", [*DEMO, *overrides])
    path = folder / "registry.yaml"
    path.write_text(SMALL)
    registry = Registry.load(path, plugins.load())
    return registry.experiment("small", [*STAGES, DROPOUT, "evaluation.count=32", *overrides])


def gradients(settings, stage, engine):
    """Of one step from weights that are drawn, so that none is zero: whole, by parameter, and their norm."""
    split = settings.data.split("train")
    captions = [split.caption(i) for i in range(len(split))]
    pipeline = Pipeline(settings, settings.text_encoder.fit(captions))
    drawing = torch.Generator().manual_seed(1)
    for parameter in pipeline.denoiser.parameters():
        parameter.data.normal_(std=0.1, generator=drawing)
    loop = settings.stages[stage]
    objective = loop.objective.build(pipeline)
    slot = getattr(pipeline, loop.objective.trains)
    under_way = StageRun(stage, loop, slot, objective, engine, settings.seed)
    rows = engine.rows(loop.batch)
    batch = batches.batch_at(split, 0, stage, loop.batch, 3, torch.device("cpu"), rows)
    under_way._backward(batch)
    norm = engine.clip(list(under_way.parameters.values()), None)
    found = {
        name: parameter.grad
        for name, parameter in under_way.parameters.items()
        if parameter.grad is not None
    }
    return {**engine.whole(found, everywhere=True), "norm": norm}


def watched(folder, original=StageRun.advance):
    """From now on each rank writes down which examples its steps had."""

    def advance(self, batch):
        with (folder / f"examples-{self.engine.rank}.jsonl").open("a") as file:
            file.write(json.dumps([self.name, self.step, batch.examples.tolist()]) + "\n")
        return original(self, batch)

    StageRun.advance = advance


def seen(folder, rank):
    """(stage, step, examples) of each step of a rank that was watched."""
    return [json.loads(line) for line in (folder / f"examples-{rank}.jsonl").open()]


def left_at(step, settings, out, **options):
    """Trains up to a step, then leaves, as by a kill."""
    steps = train(settings, out, **options)
    for done in steps:
        if done.step == step:
            steps.close()


def broken_pictures(folder, *overrides, share=1.0):
    """An experiment with 40 pictures in `set`, painted where they are not there: one has no caption, six are cut off."""
    pictures = folder / "set"
    if not pictures.exists():
        pictures.mkdir()
        for number in range(40):
            path = pictures / f"{number:02}.png"
            Image.new("RGB", (16, 16), (6 * number, 0, 0)).save(path)
            path.with_suffix(".txt").write_text("" if number == 39 else "a red square")
            if number in (3, 4, 9, 17, 28, 33):
                path.write_bytes(path.read_bytes()[:45])
    data = (
        f"data={{use: image_folder, folder: {pictures}, size: 16, held_out: 0.0, "
        f"on_bad_example: skip, bad_share: {share}}}"
    )
    short = ["stages.clip.batch=3", "stages.clip.steps=3", "stages.denoiser.steps=8"]
    short.append("evaluation={metrics: [], studies: [], count: 1}")
    return experiment(folder, data, *short, *overrides)


def bad_pictures(folder):
    """A run where any may be bad, and how one ends where few may."""
    for _ in train(broken_pictures(folder), folder / "run"):
        pass
    done = 0
    try:
        for step in train(broken_pictures(folder, share=0.1), folder / "stopped"):
            done = step.step
    except DataError as error:
        path = folder / f"stopped-{os.environ['RANK']}.json"
        path.write_text(json.dumps([str(error), done]))


def gradients_of_stages(folder):
    for parallel in ("ddp", "fsdp"):
        settings = experiment(folder, f"parallel={parallel}", "stages.denoiser.accumulation=2")
        for stage in settings.stages:
            engine = ranks.engine("cpu", parallel)
            found = gradients(settings, stage, engine)
            if engine.main:
                save_file(found, folder / f"gradients-{stage}-{parallel}.safetensors")


def whole_run(folder, *overrides):
    watched(folder)
    for _ in train(experiment(folder, *overrides), folder / "run"):
        pass


def weights(folder):
    """Whole ones on each rank."""
    gradients_of_stages(folder)
    whole_run(folder)


def shards(folder):
    """Of weights, on each rank, and the batch computed in parts."""
    whole_run(folder, "parallel=fsdp", "stages.denoiser.accumulation=2")


def demo(folder):
    """Gradients, whole runs with whole weights and with shards, and one that is left half-way."""
    gradients_of_stages(folder)
    left_at(12, experiment(folder, *DUE), folder / "resumed")
    for _ in train(experiment(folder, "parallel=fsdp", "evaluation.count=1"), folder / "shards"):
        pass
    whole_run(folder)


def demo_to_the_end(folder):
    for _ in train(experiment(folder, *DUE), folder / "resumed", resume=True):
        pass


def half_way(folder):
    for parallel in ("ddp", "fsdp"):
        settings = experiment(folder, f"parallel={parallel}", "checkpoints.every=5")
        left_at(23, settings, folder / parallel)


def to_the_end(folder):
    for parallel in ("ddp", "fsdp"):
        settings = experiment(folder, f"parallel={parallel}", "checkpoints.every=5")
        for _ in train(settings, folder / parallel, resume=True):
            pass


MEASURED = [
    "--count", "7", "--metrics", "shape_attributes,frechet_distance", "--set",
    "evaluation.metrics.1.extractor=pixels", "--set", "evaluation.batch=2", "--studies", "guidance",
    "--set", "evaluation.studies.0={use: guidance, scales: [1, 3], prompts: 3, samples: 1}",
]  # fmt: skip
PROMPTS = ["a red circle", "a blue square", "a small triangle"]


def commands(folder):
    """`sample` and `evaluate`, of the run in `folder`, into `folder`."""
    run = str(folder / "run")
    for arguments in (
        ["sample", run, *PROMPTS, "--count", "1", "--out", str(folder / "sheet.png")],
        ["evaluate", run, *MEASURED, "--device", "cpu", "--out", str(folder / "evaluation")],
    ):
        try:
            cli.main(arguments)
        except SystemExit as end:
            assert not end.code, arguments


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    globals()[sys.argv[1]](Path(sys.argv[2]))
