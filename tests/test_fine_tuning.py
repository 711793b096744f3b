"""A folder of diffusers is imported, trained on, whole or with an adapter, and opens in diffusers again."""

import pytest
import torch
from safetensors.torch import load_file

from diffusers_folders import pictures, theirs_of
from sfumato import ConfigError, Pipeline, compatibility, export_run, train
from sfumato.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SHAPES = "data={use: shapes, size: 16, count: 8, held_out: 8}"
STAGE = "stages.denoiser={objective: denoising, steps: 3, batch: 4, learning_rate: 0.01}"


def unet(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "changes", [[], ["denoiser={use: lora, rank: 2, alpha: 6}"]], ids=["whole", "lora"]
)
def test_what_was_trained_on_draws_the_same_in_diffusers(sd_runs, tmp_path, changes):
    run = sd_runs["sd1"]
    experiment = Registry.load().experiment(str(run), [SHAPES, STAGE, *changes])
    list(train(experiment, tmp_path / "run"))
    for name, source in (("before", run), ("after", tmp_path / "run")):
        export_run(source, tmp_path / name, layout="diffusers")
    before, after = unet(tmp_path / "before"), unet(tmp_path / "after")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before) == bool(changes)
    theirs, ours = theirs_of(tmp_path / "after"), Pipeline.load(tmp_path / "run")
    if changes:
        base = pictures(theirs, ours, "blurry", 3)[0]
        theirs.load_lora_weights(tmp_path / "after")
    their, our = pictures(theirs, ours, "blurry", 3)
    torch.testing.assert_close(their, our, rtol=0, atol=1e-4)
    if changes:
        assert (their - base).abs().max() > 1e-2


def test_training_on_needs_data(sd_runs):
    experiment = Registry.load().experiment(str(sd_runs["sd1"]), [STAGE])
    with pytest.raises(ConfigError, match="captioned pictures are needed here"):
        compatibility.check_training(experiment)
