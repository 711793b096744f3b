"""Compiled stages and recomputed activations: the same numbers by other ways."""

import json

import pytest
import torch

from sfumato import ConfigError, DenoiserModule, train
from sfumato.forwards import compiled, plain, recomputing
from sfumato.testing.modules import shake
from sfumato_lora import LoRA
from sfumato_unet import UNet
from test_unet import noise, space, text, times

UNET = UNet(channels=(16, 32), attention=(True, True), layers=2, heads=(2,), groups=4, dropout=0.2)


def awake(settings):
    torch.manual_seed(0)
    module = settings.build(space())
    shake(module)
    return module.train()


def backward(module):
    """The output, the gradients, and the bytes that are kept for the backward pass: what autograd
    saves, and what goes into blocks.
    """
    kept, held = {}, []

    def keep(tensor):
        held.append(tensor)  # so that no other takes its place in memory
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for block in module.blocks():
        block.register_forward_pre_hook(
            lambda _, inputs: (
                [keep(one) for one in inputs if isinstance(one, torch.Tensor)] and None
            )
        )
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(noise(2), times(10, 700), text(2))
    found = sum(size for place, size in kept.items() if place not in weights)
    module.zero_grad()
    output.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return output.detach(), gradients, found


@pytest.mark.parametrize("settings", [UNET, LoRA(denoiser=UNET)], ids=["unet", "lora"])
def test_recomputing_keeps_less_and_gives_the_same_gradients(settings):
    module = awake(settings)
    names = list(module.state_dict())
    output, gradients, kept = backward(module)
    recomputing(module)
    assert list(module.state_dict()) == names
    again, found, less = backward(module)
    assert again.equal(output)  # dropout drops the same again
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert less < 0.5 * kept
    plain(module)
    assert backward(module)[2] == kept


class Single(DenoiserModule):
    """All in one piece."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x_t, t, condition, variant=None):
        return self.weight * x_t


def test_a_module_without_blocks_is_refused():
    with pytest.raises(ConfigError) as error:
        recomputing(Single())
    assert str(error.value) == "Single names no blocks, which this needs"


def test_both_stages_give_the_same_losses_with_activations_recomputed(
    registry, small_run, tmp_path
):
    options = ["stages.clip.activation_checkpointing=true",
               "stages.denoiser.activation_checkpointing=true", "evaluation.metrics=[]"]  # fmt: skip
    steps = list(train(registry.experiment("small", options), tmp_path / "run"))
    wanted = [json.loads(line)["loss"] for line in (small_run / "metrics.jsonl").open()]
    assert [step.loss for step in steps] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_compiled_stages_give_the_same_losses(registry, small_run, tmp_path):
    options = [
        "stages.clip.compile=true", "stages.denoiser.compile=true",
        "stages.denoiser.activation_checkpointing=true", "evaluation.metrics=[]",
    ]  # fmt: skip
    steps = list(train(registry.experiment("small", options), tmp_path / "run"))
    wanted = [json.loads(line)["loss"] for line in (small_run / "metrics.jsonl").open()]
    assert [step.loss for step in steps] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_adapter_predicts_the_same():
    module = awake(LoRA(denoiser=UNET)).eval()
    calls = []
    with torch.no_grad():
        wanted = module(noise(2), times(10, 700), text(2))
        compiled(module)
        module.register_forward_hook(lambda *_: calls.append(1))
        found = module(noise(2), times(10, 700), text(2))
    assert calls == [1]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    plain(module)
    assert "forward" not in vars(module)
