"""The emoji experiment, short: real drawings in, a falling loss and a grid out, the same from a folder."""

import itertools
import json

import pytest

from sfumato.registry import Registry
from sfumato.training import train
from sfumato_data import OpenMoji
from sfumato_data.export import export_image_folder

SHORT = [
    "stages.clip={objective: contrastive, steps: 2, batch: 16}",
    "stages.denoiser={objective: denoising, steps: 24, batch: 16, learning_rate: 3e-3, warmup: 0}",
    "denoiser.channels=[16, 32, 32]",
    "denoiser.groups=4",
    "evaluation={metrics: [clip_similarity], count: 4}",
    "sampling.steps=2",
    "trackers=[]",
]


@pytest.fixture(scope="module")
def registry(catalogue):
    return Registry.load(catalogue=catalogue)


@pytest.fixture(scope="module")
def run(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "run"
    return folder, list(train(registry.experiment("emoji", SHORT), folder))


def denoising(steps):
    return [step.loss for step in steps if step.stage == "denoiser"]


@pytest.mark.slow
def test_the_loss_falls_and_a_grid_is_written(run):
    folder, steps = run
    losses = denoising(steps)
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])
    assert (folder / "samples" / "step-00000026.png").stat().st_size > 1000
    assert json.loads((folder / "run.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_every_caption_fits_the_text_encoder(registry, run):
    from sfumato import Pipeline

    folder, _ = run
    pipeline = Pipeline.load(folder, registry=registry)
    for name in ("train", "test"):
        split = pipeline.settings.data.split(name)
        encoded = pipeline.encode([split.caption(i) for i in range(len(split))])  # raises if not
        assert len(encoded) == len(split)


@pytest.mark.slow
def test_the_same_pictures_from_a_folder_train_to_the_same_losses(registry, run, tmp_path):
    export_image_folder(OpenMoji(size=32), tmp_path / "emoji")
    data = f"data={{use: image_folder, folder: {tmp_path / 'emoji'}, size: 32}}"
    settings = registry.experiment("emoji", [*SHORT, data])
    steps = list(itertools.islice(train(settings, tmp_path / "run"), 12))
    assert [step.loss for step in steps] == [step.loss for step in run[1][:12]]
