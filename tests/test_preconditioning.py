"""EDM's preconditioning: the paper's coefficients, k-diffusion's module, unit scale, no signal."""

import attrs
import pytest
import torch

from k_diffusion_source import definition
from sfumato import Denoiser, DenoiserModule, Noised, Pipeline, Space, train
from sfumato_losses import EDM as EDMWeight
from sfumato_preconditioning import EDM
from sfumato_schedules import VE, VP, LinearBeta, RectifiedFlow


class Recording(DenoiserModule):
    """Says what it is told to, and keeps what it sees."""

    def __init__(self, space):
        super().__init__()
        self.schedule = space.schedule
        self.says = None

    def forward(self, x_t, t, condition, variant=None):
        self.saw = (x_t, self.schedule.timestep(t), condition, variant)
        return self.says if self.says is not None else torch.tanh(x_t)


@attrs.frozen(kw_only=True)
class Network(Denoiser):
    """The settings of it."""

    name = "network"
    prediction = "v"

    def build(self, space):
        return Recording(space)


def built(schedule, sigma_data=0.5):
    space = Space(channels=3, height=4, width=4, text_width=1, pooled_width=1, schedule=schedule)
    return EDM(denoiser=Network(), sigma_data=sigma_data).build(space)


def shaped(value):
    return value.view(-1, 1, 1, 1)


T = torch.tensor([0.05, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
X = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_coefficients_of_table_1(parity):
    module, sd = built(VE(), 0.7), 0.7
    s = VE().alpha_sigma(T)[1]
    found = module(X * shaped(s), T, "text", "variant")
    saw, c_noise, condition, variant = module.denoiser.saw
    c_in = 1 / (s**2 + sd**2).sqrt()
    torch.testing.assert_close(saw, X * shaped(s * c_in), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_noise, s.log() / 4, rtol=1e-12, atol=0)
    assert (condition, variant) == ("text", "variant")
    c_skip, c_out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    expected = shaped(c_skip * s) * X + shaped(c_out) * torch.tanh(saw)
    parity(EDM(denoiser=Network()), "the paper's formula", "output, float64", found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_module_of_k_diffusion(parity):
    def append_dims(x, dims):
        return x.view(-1, *(1,) * (dims - 1))

    peer_class = definition("layers.py", "Denoiser")
    peer_class.forward.__globals__["utils"] = type("utils", (), {"append_dims": append_dims})
    peer = peer_class(lambda x, sigma: torch.tanh(x), sigma_data=0.5)
    s = VE().alpha_sigma(T)[1]
    ours, theirs = built(VE())(X * shaped(s), T, None), peer(X * shaped(s), s)
    parity(EDM(denoiser=Network()), "k-diffusion", "output, float64", ours, theirs)
    torch.testing.assert_close(
        built(VE())(X * shaped(s), T, None), peer(X * shaped(s), s), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("schedule", [VP(), LinearBeta(), RectifiedFlow()], ids=lambda s: s.name)
def test_on_any_schedule_it_is_the_paper_in_x_over_alpha(schedule):
    t = T[:-1]
    alpha, sigma = schedule.alpha_sigma(t)
    ratio = (sigma / alpha).log()
    wide = VE(sigma_min=1e-6, sigma_max=1e6)
    found = built(schedule)(X[:4], t, None)
    expected = built(wide)(X[:4] / shaped(alpha), wide.time_at(ratio), None)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_at_unit_deviation_the_network_says_minus_v():
    module, schedule = built(LinearBeta(), 1.0), LinearBeta()
    alpha, sigma = (shaped(value) for value in schedule.alpha_sigma(T))
    eps = X.flip(0)
    module.denoiser.says = -(alpha * eps - sigma * X)
    torch.testing.assert_close(module(alpha * X + sigma * eps, T, None), X, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [VE(), LinearBeta(), RectifiedFlow()], ids=lambda s: s.name)
def test_what_the_network_sees_and_should_say_has_unit_variance(schedule):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 5, 3, 200, 200, generator=generator, dtype=torch.float64)
    x0, eps = 0.5 * noise[0], noise[1]
    alpha, sigma = (shaped(value) for value in schedule.alpha_sigma(T))
    x_t, module = alpha * x0 + sigma * eps, built(schedule)
    module.denoiser.says = torch.zeros_like(x_t)
    skipped = module(x_t, T, None)
    seen = module.denoiser.saw[0]
    module.denoiser.says = torch.ones_like(x_t)
    c_out = module(x_t, T, None) - skipped
    said = (x0 - skipped) / c_out
    for values in (seen, said):
        deviations = values.flatten(1).std(1)
        torch.testing.assert_close(deviations, torch.ones_like(T), rtol=1e-2, atol=0)
    state = Noised(x_t=x_t, x0=x0, eps=eps, t=T, alpha=alpha.flatten(), sigma=sigma.flatten())
    weight = EDMWeight()(state, "x0") * c_out[:, 0, 0, 0] ** 2
    torch.testing.assert_close(weight, torch.ones_like(T), rtol=1e-9, atol=0)


def test_without_signal_nothing_is_infinite():
    module = built(RectifiedFlow())
    t = torch.ones(5, dtype=torch.float64)
    found = module(X, t, None)
    torch.testing.assert_close(found, 0.5 * torch.tanh(X), rtol=1e-12, atol=0)
    assert module.denoiser.saw[1].tolist() == [5.0] * 5
    assert module.denoiser.schedule.timestep(torch.zeros(1)).tolist() == [-5.0]


def test_trained_as_in_the_paper(registry, tmp_path):
    """EDM from end to end: its schedule, draws, preconditioning, weight and grid, by names alone."""
    experiment = registry.experiment(
        "small",
        [
            "noise_schedule=ve",
            "denoiser={use: edm, denoiser: unet}",
            "time_sampler=lognormal",
            "time_grid=karras",
            "loss_weight=edm",
            "evaluation.metrics=[]",
            "guidance=none",
        ],
    )
    steps = list(train(experiment, tmp_path / "run"))
    # Before training the unet says 0: the loss is the variance of what it should say.
    first = next(step for step in steps if step.stage == "denoiser")
    assert 0.5 < first.loss < 5
    pictures = Pipeline.load(tmp_path / "run").sample(["a red circle"], steps=4, seed=0)
    assert pictures.isfinite().all()
