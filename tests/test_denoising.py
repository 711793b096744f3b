"""The noise options of the denoising objective: what x_t is made of, and what the target knows."""

import pytest
import torch

from sfumato import Draw, Pipeline, batches
from sfumato_losses import Denoising


@pytest.fixture
def losses(registry):
    """Noised, target and numbers of one batch for given options; the network says 0."""

    def compute(**options):
        experiment = registry.experiment("small")
        split = experiment.data.split("train")
        captions = [split.caption(i) for i in range(len(split))]
        pipeline = Pipeline(experiment, experiment.text_encoder.fit(captions))
        module = Denoising(**options).build(pipeline)
        batch = batches.batch_at(split, 0, "stage", 8, 0, torch.device("cpu"))
        draw = Draw(seed=0, stream="stage", examples=batch.rows, index=0)
        seen = {}

        def loss(output, target, noised):
            seen.update(target=target, noised=noised)
            return (output - target).square().flatten(1).mean(1)

        object.__setattr__(pipeline.settings, "loss", loss)
        module.losses(batch, draw)
        return seen["noised"], seen["target"], draw

    return compute


def shaped(value):
    return value.float().view(-1, 1, 1, 1)


def residue(noised):
    """The noise in x_t."""
    return (noised.x_t - shaped(noised.alpha) * noised.x0) / shaped(noised.sigma)


def test_plain_noise_is_in_both(losses):
    noised, target, draw = losses()
    assert target.equal(draw.normal("noise", (3, 16, 16)))
    torch.testing.assert_close(residue(noised), target, rtol=0, atol=2e-4)


def test_offset_noise_is_a_number_for_each_channel_in_both(losses):
    noised, target, draw = losses(offset_noise=0.2)
    added = target - draw.normal("noise", (3, 16, 16))
    expected = 0.2 * draw.normal("offset_noise", (3, 1, 1)).expand(8, 3, 16, 16)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(residue(noised), target, rtol=0, atol=2e-4)
    assert noised.eps.equal(target)


def test_input_perturbation_is_in_x_t_alone(losses):
    noised, target, draw = losses(input_perturbation=0.1)
    assert target.equal(draw.normal("noise", (3, 16, 16)))
    perturbation = 0.1 * draw.normal("input_perturbation", (3, 16, 16))
    torch.testing.assert_close(residue(noised) - target, perturbation, rtol=0, atol=2e-4)


def test_the_two_compose(losses):
    noised, target, draw = losses(offset_noise=0.2, input_perturbation=0.1)
    offset = 0.2 * draw.normal("offset_noise", (3, 1, 1))
    perturbation = 0.1 * draw.normal("input_perturbation", (3, 16, 16))
    torch.testing.assert_close(
        target - draw.normal("noise", (3, 16, 16)), offset.expand(8, 3, 16, 16)
    )
    torch.testing.assert_close(residue(noised) - target, perturbation, rtol=0, atol=2e-4)
