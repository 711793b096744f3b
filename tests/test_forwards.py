"""Compiled stages and recomputed activations: the same numbers by other ways."""

import pytest
import torch

from sfumato import ConfigError, DenoiserModule, train
from sfumato.forwards import RowDropout, compiled, plain, recomputing
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


def dropped(rows, step=0, stream="stage", width=1):
    """What two layers in a row leave of ones, of so many pieces of each row."""
    layers = torch.nn.Sequential(torch.nn.Dropout(0.25), torch.nn.Dropout(0.5))
    dropout = RowDropout(layers, 7, stream)
    dropout.begin(step, torch.tensor(rows))
    return layers(torch.ones(len(rows) * width, 4, 5))


def test_what_is_dropped_of_a_row_depends_on_nothing_else():
    whole = dropped([0, 1, 2, 3])
    assert whole[2:].equal(dropped([2, 3]))
    assert whole[[3, 1]].equal(dropped([3, 1]))
    pieces = dropped([0, 1, 2], width=6)
    assert pieces[6:12].equal(dropped([1], width=6))
    different = [dropped([0, 1, 2, 3], **other) for other in ({"step": 1}, {"stream": "other"})]
    assert not any(one.equal(whole) for one in (*different, whole[[1, 0, 2, 3]]))


def test_row_dropout_keeps_the_mean_and_layers_drop_independently():
    found = dropped(list(range(2000)))
    assert found.unique().tolist() == [0.0, pytest.approx(1 / (0.75 * 0.5))]
    share = float((found > 0).double().mean())
    assert share == pytest.approx(0.75 * 0.5, abs=4 * (0.375 * 0.625 / found.numel()) ** 0.5)


def test_row_dropout_is_no_other_layer_where_there_are_no_rows():
    layer = torch.nn.Sequential(torch.nn.Dropout(0.5))
    dropout = RowDropout(layer, 7, "stage")
    assert layer.eval()(torch.ones(3, 8)).equal(torch.ones(3, 8))
    layer.train()
    for rows in ([], [0, 1]):  # none yet; rows that three do not divide into
        dropout.begin(0, torch.tensor(rows, dtype=torch.int64))
        torch.manual_seed(2)
        found = layer(torch.ones(3, 8))
        torch.manual_seed(2)
        assert found.equal(torch.nn.functional.dropout(torch.ones(3, 8), 0.5))


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


def losses(registry, out, *options):
    """With dropout."""
    common = ["evaluation.metrics=[]", "denoiser.dropout=0.3"]
    steps = train(registry.experiment("small", [*common, *options]), out)
    return [step.loss for step in steps]


def test_both_stages_give_the_same_losses_with_activations_recomputed(registry, tmp_path):
    stages = [f"stages.{stage}.activation_checkpointing=true" for stage in ("clip", "denoiser")]
    wanted = losses(registry, tmp_path / "plain")
    assert losses(registry, tmp_path / "run", *stages) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_compiled_stages_give_the_same_losses(registry, tmp_path):
    stages = [f"stages.{stage}.compile=true" for stage in ("clip", "denoiser")]
    stages.append("stages.denoiser.activation_checkpointing=true")
    wanted = losses(registry, tmp_path / "plain")
    assert losses(registry, tmp_path / "run", *stages) == pytest.approx(wanted, rel=1e-5)


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
