"""LoRA beside diffusers and peft: the same output from the same file, and only the adapter moves."""

import json

import attrs
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from sfumato import ConfigError, Pipeline, train
from sfumato.stage import average
from sfumato.testing.modules import shake
from sfumato_lora import LoRA, names
from sfumato_lora.layout import FILE
from sfumato_unet import UNet
from test_start import newest, registry_with, weights
from test_unet import noise, peer, space, text, times

UNET = UNet(channels=(32, 64, 64), attention=(True, True, False), layers=2, heads=(4,), groups=8)
LINEAR = attrs.evolve(UNET, linear_projection=True)
TUNED = (
    "tuned: {{start: {run}, set: {{denoiser: {{use: lora, rank: 2}}}}, "
    "stages: {{denoiser: {{objective: denoising, steps: 3, batch: 8, ema: 0.5}}}}}}"
)


def awake(lora):
    """The module with no parameter left at zero."""
    torch.manual_seed(0)
    module = lora.build(space()).eval()
    shake(module)
    return module


@pytest.mark.parametrize(
    "lora",
    [
        LoRA(denoiser=UNET),
        LoRA(denoiser=UNET, rank=3, alpha=7.5, targets=("attn2.to_k", "to_out.0", "conv1")),
        LoRA(denoiser=LINEAR, rank=2, alpha=1.0, targets=("proj_in", "ff.net.2", "to_v")),
    ],
    ids=["attention", "strong", "others"],
)
def test_diffusers_gives_the_same_from_the_saved_file(lora, tmp_path, parity):
    module = awake(lora)
    base, files = lora.parted(module.state_dict())
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = peer(
        lora.denoiser, in_channels=3, out_channels=3, cross_attention_dim=12, sample_size=8
    )
    theirs.load_state_dict(base)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=theirs, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    x_t, t, condition = noise(2), times(10, 700), text(2)
    with torch.no_grad():
        found = module(x_t, t, condition)
        plain = theirs(x_t, t * 1000 - 1, condition.tokens).sample
        pipe.load_lora_weights(tmp_path)
        expected = theirs(x_t, t * 1000 - 1, condition.tokens).sample
    assert (
        parity(lora, "diffusers with peft", "output with its file, float32", found, expected) < 1e-5
    )
    assert (plain - expected).abs().max() > 1e-3


def test_the_file_has_the_names_and_the_facts_of_diffusers(tmp_path):
    lora = LoRA(denoiser=UNET, rank=3, alpha=7.5)
    module = awake(lora)
    _, files = lora.parted(module.state_dict())
    (tmp_path / FILE).write_bytes(files[FILE])
    tensors = load_file(tmp_path / FILE)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert tensors[f"{name}.lora_A.weight"].shape == (3, 32)
    assert tensors[f"{name}.lora_B.weight"].shape == (32, 3)
    blocks = 4 + 1 + 6
    assert len(tensors) == blocks * 2 * 4 * 2
    header = json.loads(files[FILE][8 : 8 + int.from_bytes(files[FILE][:8], "little")])
    assert json.loads(header["__metadata__"]["lora_adapter_metadata"]) == {
        "unet.r": 3,
        "unet.lora_alpha": 7.5,
        "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    }


def test_what_an_adapter_is_put_around_is_unchanged_at_first():
    unet = UNET.build(space()).eval()
    shake(unet)
    lora = LoRA(denoiser=UNET, rank=2).build(space()).eval()
    lora.load_state_dict(lora.around(unet.state_dict()))
    x_t, t, condition = noise(2), times(10, 700), text(2)
    with torch.no_grad():
        assert lora(x_t, t, condition).equal(unet(x_t, t, condition))
    drawn = [p for n, p in lora.named_parameters() if ".lora_A." in n]
    assert all(parameter.std() > 0.01 for parameter in drawn)
    base, _ = LoRA(denoiser=UNET, rank=2).parted(lora.state_dict())
    state = unet.state_dict()
    assert base.keys() == state.keys()
    assert all(base[name].equal(state[name]) for name in state)


def test_alpha_over_rank_is_the_strength():
    one = LoRA(denoiser=UNET, rank=2, alpha=2.0)
    module, double, half = (awake(attrs.evolve(one, alpha=alpha)) for alpha in (2.0, 4.0, 1.0))
    with torch.no_grad():
        for name, parameter in half.named_parameters():
            if ".lora_B." in name:
                parameter *= 2
        x_t, t, condition = noise(1), times(500), text(1)
        outputs = [each(x_t, t, condition) for each in (module, half, double)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    assert not outputs[0].allclose(outputs[2], atol=1e-3)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("to_q", "to_x"), "no layer whose name ends in 'to_x' can have an adapter; ends of layers that can: "),
        (("proj_in",), "no layer whose name ends in 'proj_in' can have an adapter; "),  # a TokenConv
    ],
)  # fmt: skip
def test_targets_that_cannot_be_adapted_are_refused(targets, message):
    with pytest.raises(ConfigError) as error:
        LoRA(denoiser=UNET, targets=targets).build(space())
    assert str(error.value).startswith(f"lora.targets: {message}")
    assert "to_q" in str(error.value)


def test_without_peft_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError) as error:
        LoRA(denoiser=UNET).build(space())
    assert str(error.value) == "denoiser lora: needs peft; pip install 'sfumato[peft]'"


def test_the_average_of_an_adapter_does_not_hold_the_base():
    module = LoRA(denoiser=UNET, rank=2).build(space())
    own = {id(parameter) for parameter in module.trainable()}
    averaged = average(module, 0.9)
    for name, parameter in module.named_parameters():
        shared = averaged.module.get_parameter(name).data_ptr() == parameter.data_ptr()
        assert shared == (id(parameter) not in own), name


@pytest.fixture(scope="module")
def tuned(small_run, tmp_path_factory):
    """A run that puts an adapter around the denoiser of the small run."""
    folder = tmp_path_factory.mktemp("lora")
    registry = registry_with(folder, [TUNED.format(run=small_run)])
    list(train(registry.experiment("tuned"), folder / "run"))
    return folder / "run"


def test_training_moves_the_adapter_and_nothing_else(tuned, small_run):
    before, after = weights(small_run, "denoiser"), weights(tuned, "denoiser")
    inside = names.inside(after)
    assert inside.keys() == before.keys()
    assert all(after[inside[name]].equal(before[name]) for name in before)
    ours = names.own(after)
    assert len(ours) + len(before) == len(after)
    assert all(after[name].any() for name in ours if ".lora_B." in name)
    record = json.loads((tuned / "run.json").read_text())
    assert record["parameters"]["denoiser"] == sum(after[name].numel() for name in ours)
    facts = json.loads((newest(tuned) / "manifest.json").read_text())["denoiser"]
    assert (facts["use"], facts["rank"], facts["denoiser"]["use"]) == ("lora", 2, "unet")


def test_a_run_with_an_adapter_samples_by_itself(tuned, small_run):
    pipeline = Pipeline.load(tuned)
    drawn = pipeline.sample(["a red circle"], steps=2)
    plain = Pipeline.load(small_run).sample(["a red circle"], steps=2)
    weak = Pipeline.load(tuned, ["denoiser.alpha=1e-6"]).sample(["a red circle"], steps=2)
    assert not drawn.allclose(plain, atol=1e-4)
    torch.testing.assert_close(weak, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^denoiser\.rank: the weights were trained with 2"):
        Pipeline.load(tuned, ["denoiser.rank=3"])


def test_an_adapter_is_trained_on_from_where_it_stands(tuned, registry, tmp_path):
    experiment = registry.experiment(
        str(tuned), ["denoiser.dropout=0.1", "stages.denoiser.steps=1"]
    )
    assert experiment.denoiser.denoiser.name == "unet"
    list(train(experiment, tmp_path / "run"))
    before, after = weights(tuned, "denoiser"), weights(tmp_path / "run", "denoiser")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in names.inside(before).values())
    shift = max((before[name] - after[name]).abs().max() for name in names.own(before))
    assert 0 < shift < 0.01
    for change, message in (
        ("denoiser.rank=3", r"^denoiser\.rank: the weights to start from were trained with 2"),
        (
            "denoiser={use: unet, channels: [16, 16]}",
            r"^denoiser: the weights .* trained with 'lora'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            list(train(registry.experiment(str(tuned), [change]), tmp_path / "other"))
