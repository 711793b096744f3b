"""Weights: published numbers, the papers' formulas on the losses they are stated on, and peers."""

import math

import pytest
import torch

from k_diffusion_source import definition
from sfumato import Noised, x0_weight
from sfumato_losses import (
    EDM,
    P2,
    WEIGHTS,
    CosMap,
    Debiased,
    MinSNR,
    SigmaSqrt,
    Sigmoid,
    SoftMinSNR,
)
from sfumato_schedules import VE, LinearBeta, RectifiedFlow, ZeroTerminalSNR

KINDS = ("epsilon", "x0", "v", "flow")


def noised(t, schedule):
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1)
    alpha, sigma = schedule.alpha_sigma(t)
    x = torch.zeros(len(t), 1, 2, 2)
    return Noised(x_t=x, x0=x, eps=x, t=t, alpha=alpha, sigma=sigma)


def at(index):
    """A batch of one at an index of the linear table."""
    return noised((index + 1) / 1000, LinearBeta())


TABLE = noised(torch.arange(1, 1001) / 1000, LinearBeta())
FLOW = noised(torch.linspace(0.001, 0.999, 999), RectifiedFlow())
SNR = (TABLE.alpha / TABLE.sigma) ** 2


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_p2(parity):
    assert P2()(at(100), "epsilon").item() == pytest.approx(0.104858, rel=1e-5)
    found = P2(k=0.5, gamma=2.0)(TABLE, "epsilon")
    parity(P2(), "the paper's formula", "weights, float64", found, (0.5 + SNR) ** -2.0)
    close(P2(k=0.5, gamma=2.0)(TABLE, "epsilon"), (0.5 + SNR) ** -2.0)


@pytest.mark.parametrize(
    ("index", "digits"),
    [
        (100, {"epsilon": 0.585709, "v": 0.524292, "x0": 5}),
        (500, {"epsilon": 1, "v": 0.0777967, "x0": 0.0843595}),
    ],
)
def test_min_snr_has_the_published_numbers(index, digits):
    for kind, weight in digits.items():
        assert MinSNR()(at(index), kind).item() == pytest.approx(weight, rel=2e-6)


def test_min_snr_is_that_of_diffusers_training_scripts(parity):
    pytest.importorskip("diffusers")
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    snr = compute_snr(DDPMScheduler(), torch.arange(1000)).double()
    clamped = snr.clamp(max=5.0)
    for kind, divisor in (("epsilon", snr), ("v", snr + 1)):
        found = MinSNR()(TABLE, kind)
        parity(MinSNR(), "diffusers", "weights, of its float32 table", found, clamped / divisor)
        torch.testing.assert_close(found, clamped / divisor, rtol=1e-3, atol=0)  # theirs in float32


def test_soft_min_snr_is_that_of_k_diffusion(parity):
    """Theirs is stated on the output F of the preconditioned network, c_out^-2 of the x0 loss."""
    peer = definition("layers.py", "Denoiser")(None, sigma_data=0.5, weighting="soft-min-snr")
    state = noised(torch.linspace(0.01, 1, 100), VE())
    _, c_out, _ = peer.get_scalings(state.sigma)
    found, theirs = SoftMinSNR(gamma=4.0)(state, "x0"), peer.weighting(state.sigma) / c_out**2
    parity(SoftMinSNR(), "k-diffusion", "weights, float64", found, theirs)
    close(SoftMinSNR(gamma=4.0)(state, "x0"), peer.weighting(state.sigma) / c_out**2)


def test_debiased(parity):
    parity(
        Debiased(),
        "the paper's formula",
        "weights, float64",
        Debiased()(TABLE, "epsilon"),
        SNR**-0.5,
    )
    close(Debiased()(TABLE, "epsilon"), SNR**-0.5)
    close(Debiased()(TABLE, "v"), SNR**0.5 / (SNR + 1))


def test_edm_is_lambda_of_table_1(parity):
    state = noised(torch.linspace(0.01, 1, 100), VE())
    s = state.sigma
    found, theirs = EDM(sigma_data=0.7)(state, "x0"), (s**2 + 0.7**2) / (s * 0.7) ** 2
    parity(EDM(), "the paper's formula", "weights, float64", found, theirs)
    close(EDM(sigma_data=0.7)(state, "x0"), (s**2 + 0.7**2) / (s * 0.7) ** 2)


def test_weights_of_stable_diffusion_3(parity):
    training_utils = pytest.importorskip("diffusers.training_utils")
    theirs = training_utils.compute_loss_weighting_for_sd3
    found = SigmaSqrt()(FLOW, "x0")
    parity(SigmaSqrt(), "diffusers", "weights, float32", found, theirs("sigma_sqrt", FLOW.sigma))
    parity(
        CosMap(),
        "diffusers",
        "weights, float64",
        CosMap()(FLOW, "flow"),
        theirs("cosmap", FLOW.sigma),
    )
    torch.testing.assert_close(found.float(), theirs("sigma_sqrt", FLOW.sigma), rtol=1e-6, atol=0)
    close(SigmaSqrt()(FLOW, "flow"), torch.ones(999, dtype=torch.float64))
    close(CosMap()(FLOW, "flow"), theirs("cosmap", FLOW.sigma))


def test_diffusers_scripts_weigh_whichever_loss_they_compute():
    """`--precondition_outputs` turns the flow loss into the x0 loss, a factor sigma^2, and leaves the
    weight as it is; ours means the same for both.
    """
    theirs = pytest.importorskip("diffusers.training_utils").compute_loss_weighting_for_sd3
    weight = theirs("cosmap", FLOW.sigma)
    on_x0 = {"flow": weight / FLOW.sigma**2, "x0": weight}
    assert float((on_x0["flow"] / on_x0["x0"]).max()) > 1e5
    ours = {kind: CosMap()(FLOW, kind) * x0_weight(kind, FLOW.alpha, FLOW.sigma) for kind in on_x0}
    close(ours["flow"], ours["x0"])


def test_cosmap_is_the_density_of_equation_21():
    """It integrates to 1 over the times of the flow."""
    t = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert float(CosMap()(noised(t, RectifiedFlow()), "flow").mean()) == pytest.approx(1, rel=1e-6)


def test_sigmoid(parity):
    found, theirs = Sigmoid(bias=-3.0)(TABLE, "epsilon"), torch.sigmoid(-3.0 - SNR.log())
    parity(Sigmoid(), "the paper's formula", "weights, float64", found, theirs)
    close(Sigmoid(bias=-3.0)(TABLE, "epsilon"), torch.sigmoid(-3.0 - SNR.log()))
    close(Sigmoid(bias=1.3)(TABLE, "v"), SoftMinSNR(gamma=math.exp(1.3))(TABLE, "v"))


@pytest.mark.parametrize("weight", [weight() for weight in WEIGHTS], ids=lambda w: w.name)
@pytest.mark.parametrize("state", [TABLE, FLOW], ids=["linear", "flow"])
def test_a_weight_means_the_same_for_every_prediction_type(weight, state):
    on_x0 = [weight(state, kind) * x0_weight(kind, state.alpha, state.sigma) for kind in KINDS]
    for found in on_x0[1:]:
        torch.testing.assert_close(found, on_x0[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("weight", [weight() for weight in WEIGHTS], ids=lambda w: w.name)
@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), ZeroTerminalSNR(schedule=LinearBeta())], ids=lambda s: s.name
)
@pytest.mark.parametrize("kind", KINDS)
def test_without_signal_a_weight_is_its_limit(weight, schedule, kind):
    found = weight(noised(1.0, schedule), kind).item()
    assert math.isfinite(found)
    near = weight(noised(1 - 1e-9, schedule), kind).item()
    if (weight.name, kind) in (("debiased", "epsilon"), ("edm", "epsilon"), ("sigma_sqrt", "epsilon"),
                               ("cosmap", "epsilon")):  # fmt: skip
        assert found > near  # which has no bound
    else:
        assert found == pytest.approx(near, rel=1e-6, abs=1e-6)
