"""Schedulers of diffusers as samplers: beside ours, beside their own use, and what is refused."""

import functools
import logging
import math
import re
import sys

import pytest
import torch

from sfumato import ConfigError, Guided, document, settings
from sfumato.testing import LawsBroken, conformance
from sfumato_bridges import DiffusersScheduler
from sfumato_bridges.conventions import REFUSED, SUPPORTED
from sfumato_samplers import (
    DDIM,
    DDPM,
    DEIS,
    DPM2,
    DPMPP2M,
    DPMPP2MSDE,
    LMS,
    Euler,
    EulerAncestral,
    Heun,
    UniPC,
)
from sfumato_schedules import VE, LinearBeta, RectifiedFlow, Trailing
from small import ROOT

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)  # of counts that a solver changes
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers on numpy 2

SHAPE = (2, 3, 4, 4)
UNCLIPPED = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}


def bridge(name, **options):
    return DiffusersScheduler(scheduler=name, options={**UNCLIPPED.get(name, {}), **options})


def denoiser(schedule, unequal=0.0):
    """A stand-in for a network, smooth in z = x / alpha and r = sigma / alpha; `unequal` moves eps."""

    def denoise(x, t):
        alpha, sigma = (float(value) for value in schedule.alpha_sigma(t))
        signal = max(alpha, 1e-4)
        z, ratio = x / signal, sigma / signal
        x0 = 0.8 * torch.tanh(z / (0.3 + ratio)) + 0.1 * torch.sin(2 * z / (1 + ratio) + ratio)
        return Guided(x0, (x - alpha * x0) / sigma + unequal * torch.cos(x))

    return denoise


def drawn(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype)


def falling(steps, end=0.0):
    """Times from 0.95 down, even but for a wave: no method may lean on equal steps."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return end + (0.95 - end) * (1 - u + 0.08 * (1 - u) * torch.sin(9 * u) * u)


def walk(sampler, schedule, times, dtype=torch.float32, noise=None, **options):
    x = drawn(0, dtype)() * schedule.start_scale(float(times[0]))
    denoise = denoiser(schedule, **options)
    return list(sampler.run(denoise, schedule, x, times, noise or drawn(1, dtype)))


def assert_same(ours, theirs, error_of, tolerance):
    for step, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        error = error_of(own, other)
        assert error < tolerance, f"step {step}: relative error {error:.2g}"


SCHEDULES = pytest.mark.parametrize(
    "schedule", [LinearBeta(), VE(), RectifiedFlow()], ids=lambda s: s.name
)


@SCHEDULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (DDIM(), "DDIMScheduler", {}),
        (DDIM(eta=0.7), "DDIMScheduler", {"eta": 0.7}),
        (DDPM(), "DDPMScheduler", {}),
        (Euler(), "EulerDiscreteScheduler", {}),
        (Euler(), "FlowMatchEulerDiscreteScheduler", {}),
        (EulerAncestral(), "EulerAncestralDiscreteScheduler", {}),
        (Heun(), "HeunDiscreteScheduler", {}),
        (LMS(), "LMSDiscreteScheduler", {}),
        (LMS(depth=2), "LMSDiscreteScheduler", {"order": 2}),
        (DPM2(), "KDPM2DiscreteScheduler", {}),
        (DEIS(), "DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
        (DPMPP2M(), "DPMSolverMultistepScheduler", {"lower_order_final": False}),
        (DPMPP2MSDE(), "DPMSolverMultistepScheduler",
         {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False}),
        (UniPC(), "UniPCMultistepScheduler", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_scheduler_is_our_sampler_of_the_same_method(
    ours, name, options, schedule, dtype, parity
):
    times = falling(12, 0.02 if name == "DEISMultistepScheduler" else 0.0)
    sampler = bridge(name, **options)
    pairs = [[s.x for s in walk(one, schedule, times, dtype)] for one in (sampler, ours)]
    what = f"{name}, x after each step, float32"  # in which most of them compute, whatever they are given
    error_of = functools.partial(parity, sampler, f"our `{ours.name}`", what)
    assert_same(*pairs, error_of, 1e-5 if ours.order else 1e-4)


def native(name, steps, noise, monkeypatch):
    """A scheduler used as its pipelines do, on a table of 1000: the times that it asked at, x at the end.

    Only the table is put in its place in float64.
    """
    cls = getattr(diffusers, name)
    convention = SUPPORTED[name]
    schedule = RectifiedFlow() if convention.frame == "straight" else LinearBeta()
    known = set(cls.__init__.__wrapped__.__code__.co_varnames)
    usual = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing", "skip_prk_steps": True,
             "set_alpha_to_one": True, "final_sigmas_type": "zero", "clip_sample": False}  # fmt: skip
    scheduler = cls(**{key: value for key, value in usual.items() if key in known})
    if convention.frame != "straight":
        alpha, _ = schedule.alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
        scheduler.alphas_cumprod = alpha**2
    if "timestep_spacing" in known or convention.frame == "straight":
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=[999 - i * 1000 // steps for i in range(steps)])
    module = sys.modules[cls.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise(), raising=False)
    denoise, asked, x = denoiser(schedule), [], None
    for timestep in scheduler.timesteps:
        t = (timestep.double() + (convention.frame != "straight")) / 1000
        alpha = float(schedule.alpha_sigma(t)[0])
        scale = alpha if convention.frame == "exploding" else 1.0
        if x is None:
            x = drawn(0)() * schedule.start_scale(float(t)) / scale
        guided = denoise(x * scale, t)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)
        said = guided.eps - guided.x0 if convention.frame == "straight" else guided.eps
        x = scheduler.step(said, timestep, x).prev_sample
        asked.append(float(t))
    return schedule, asked, x


@pytest.mark.parametrize("name", sorted(SUPPORTED.keys() - {"DEISMultistepScheduler"}))
def test_a_scheduler_does_what_it_does_in_diffusers(name, monkeypatch, parity):
    """On the grid that is its own. (DEIS, which would end at its first entry twice, stands beside ours.)"""
    schedule, asked, expected = native(name, 20, drawn(1), monkeypatch)
    monkeypatch.undo()
    between = SUPPORTED[name].asks == "between"
    times = asked[::2] if between else sorted(set(asked), reverse=True)
    times = torch.tensor([*times, 0.0], dtype=torch.float64)
    found = walk(bridge(name), schedule, times)[-1].x
    what = f"{name}, x at the end, float32, the same noise"
    assert parity(bridge(name), "diffusers", what, found, expected) < 1e-4


def test_the_start_of_the_native_walk_matters(monkeypatch):
    """So the comparison above can fail: the end depends on the noise."""
    ends = [native("DDPMScheduler", 20, drawn(seed), monkeypatch)[2] for seed in (1, 2)]
    assert float((ends[0] - ends[1]).abs().max()) > 0.1


FLOAT32 = {
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
}  # fmt: skip
"""They round x, or their levels, to float32: one law asks for 1e-9."""


@pytest.mark.parametrize("name", sorted(SUPPORTED.keys() - {"DEISMultistepScheduler"}))
def test_keeps_the_laws_of_samplers(name):
    broken = set()
    try:
        conformance.check(bridge(name), draws=0)
    except LawsBroken as error:
        broken = {failure.law.name for failure in error.failures}
        assert all("difference of" in failure.got for failure in error.failures)
    assert broken == ({"exact_on_a_point"} if name in FLOAT32 else set())


@pytest.mark.parametrize("name", sorted(SUPPORTED))
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_on_a_point_end_on_it(name, steps):
    end = 0.02 if SUPPORTED[name].ends == "noisy" else 0.0
    schedule, times = RectifiedFlow(), falling(steps, end)

    def point(x, t):
        alpha, sigma = schedule.alpha_sigma(t)
        x0 = torch.full_like(x, 0.4)
        return Guided(x0, (x - alpha * x0) / sigma)

    found = list(bridge(name).run(point, schedule, drawn(0)(), times, lambda: torch.zeros(SHAPE)))
    assert [step.t for step in found] == times[1:].tolist()
    alpha, sigma = schedule.alpha_sigma(times[-1])
    off = (found[-1].x - alpha * 0.4).abs().max()
    assert off <= 4 * sigma + 5e-5


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_an_eps_that_is_not_that_of_x0_reaches_the_scheduler(name):
    """As CFG++ has it: what ours does with it, it does."""
    ours = {"DDIMScheduler": DDIM(), "HeunDiscreteScheduler": Heun()}.get(name, DPMPP2M())
    options = {"lower_order_final": False} if "DPM" in name else {}
    times = falling(8)
    ends = [
        walk(sampler, LinearBeta(), times, torch.float64, unequal=unequal)[-1].x
        for sampler in (bridge(name, **options), ours)
        for unequal in (0.1, 0.0)
    ]
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-5, atol=1e-5)
    assert float((ends[0] - ends[1]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"eta": 1.0}),
        ("DDPMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"s_churn": 4.0}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("KDPM2AncestralDiscreteScheduler", {}),
    ],
)
def test_noise_is_the_pipeline_s(name, options):
    """The same noise gives the same x, other noise another, and torch's own generator is left alone."""
    before, times = torch.get_rng_state(), falling(6)
    ends = [
        walk(bridge(name, **options), LinearBeta(), times, noise=drawn(seed))[-2].x
        for seed in (1, 1, 2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(ends[0], ends[1])
    assert float((ends[0] - ends[2]).abs().max()) > 1e-2


def test_without_noise_none_is_asked_for():
    for name in ("DDIMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"):
        walk(bridge(name), LinearBeta(), falling(4), noise=lambda: pytest.fail("drew noise"))


def test_pure_noise_is_started_from_or_refused():
    times = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)

    def safe(x, t):
        x0 = 0.3 * torch.tanh(x)
        return Guided(x0, (x - (1 - t) * x0) / t)

    def start(name):
        return list(bridge(name).run(safe, RectifiedFlow(), drawn(0)(), times, drawn(1)))[-1].x

    for name, convention in SUPPORTED.items():
        if convention.blind:
            assert start(name).isfinite().all(), name
    with pytest.raises(ConfigError) as error:
        start("HeunDiscreteScheduler")
    assert str(error.value) == (
        "sampler diffusers_scheduler: HeunDiscreteScheduler cannot start where alpha is 0; "
        "use a grid that starts later (--set time_grid=leading), or DDIMScheduler"
    )


def test_the_first_entry_of_a_table_is_ended_on_or_refused():
    """As Stable Diffusion does; DDIM then is ours to the last entry."""
    schedule, times = LinearBeta(), Trailing(final="first").times(10, LinearBeta())
    assert float(times[-1]) == 1e-3
    ours, theirs = (walk(s, schedule, times)[-1].x for s in (DDIM(), bridge("DDIMScheduler")))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    for name, message in {
        "DDPMScheduler": "DDPMScheduler can only end at t = 0; --set time_grid.final=clean, or another scheduler",
        "DEISMultistepScheduler": "DEISMultistepScheduler can only end above 0; --set time_grid.final=first, or another scheduler",
    }.items():
        grid = times if name == "DDPMScheduler" else falling(3)
        with pytest.raises(ConfigError) as error:
            walk(bridge(name), schedule, grid)
        assert str(error.value) == f"sampler diffusers_scheduler: {message}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("DDIMScheduler", {"beta_start": 0.1},
         ", options: 'beta_start' follows from noise_schedule, time_grid and the denoiser; leave it out"),
        ("DDIMScheduler", {"clip_sampel": False},
         ", options: unknown option 'clip_sampel'; did you mean 'clip_sample'?"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True},
         ", options: 'use_karras_sigmas' follows from noise_schedule, time_grid and the denoiser; leave it out"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"},
         ", options: no learned variance reaches a sampler; leave it out"),
        ("DPMSolverMultistepScheduler", {"solver_type": "rk4"},
         ", options: DPMSolverMultistepScheduler refuses its options: rk4 is not implemented for "
         "<class 'diffusers.schedulers.scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler'>"),
        ("TCDScheduler", {}, ": TCDScheduler is not supported: its steps need the table of training, "
         "not the levels of a grid; supported: " + ", ".join(sorted(SUPPORTED))),
        ("os.system", {}, ": os.system is not supported: how it speaks of noise and time is not known here; "
         "supported: " + ", ".join(sorted(SUPPORTED))),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(name, options, message):
    with pytest.raises(ConfigError) as error:
        DiffusersScheduler(scheduler=name, options=options)
    assert str(error.value) == f"sampler diffusers_scheduler{message}"


def test_without_the_extra_it_is_known_and_says_what_to_install(monkeypatch, catalogue):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    from sfumato_bridges import sfumato_components

    assert [component.name for component in sfumato_components()] == [
        "diffusers_scheduler",
        "diffusers_model",
    ]
    tree = document.node({"use": "diffusers_scheduler", "scheduler": "DDIMScheduler"})
    with pytest.raises(ConfigError) as error:
        settings.structure(tree, DiffusersScheduler, catalogue)
    assert str(error.value).endswith('diffusers is not installed; pip install "sfumato[diffusers]"')


def test_a_library_that_a_scheduler_needs_is_named(monkeypatch):
    from diffusers.utils import dummy_torch_and_scipy_objects

    monkeypatch.setattr(
        diffusers, "LMSDiscreteScheduler", dummy_torch_and_scipy_objects.LMSDiscreteScheduler
    )
    with pytest.raises(ConfigError) as error:
        bridge("LMSDiscreteScheduler")
    assert str(error.value) == (
        "sampler diffusers_scheduler: LMSDiscreteScheduler needs torch, scipy; install torch, scipy"
    )


def test_the_page_names_what_is_supported_and_why_the_rest_is_not():
    page = (ROOT / "docs" / "bridges.md").read_text()
    for name, convention in SUPPORTED.items():
        ends = {"anywhere": "anywhere", "clean": "at 0", "noisy": "above 0"}[convention.ends]
        starts = "anywhere" if convention.blind else "where alpha > 0"
        asks = {
            "once": "once",
            "twice": "twice",
            "between": "twice",
            "first_twice": "once, first twice",
        }[convention.asks]
        assert f"| `{name}` | {convention.frame} | {asks} | {starts} | {ends} |" in page
    for name, reason in REFUSED.items():
        assert f"| `{name}` | {reason} |" in page
    listed = set(re.findall(r"^\| `(\w+Scheduler)` \|", page, re.MULTILINE))
    assert listed == SUPPORTED.keys() | REFUSED.keys()
    for name in listed:
        assert isinstance(getattr(diffusers, name), type)


def test_places_are_where_a_scheduler_asks():
    places = {
        asks: convention.places(3)
        for asks, convention in {c.asks: c for c in SUPPORTED.values()}.items()
    }
    assert places == {
        "once": [(0, 0), (1, 1), (2, 2)],
        "twice": [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)],
        "between": [(0, 0), (0, None), (1, 1), (1, None), (2, 2)],
        "first_twice": [(0, 0), (0, 1), (1, 1), (2, 2)],
    }
    assert math.isclose(SUPPORTED["DDIMScheduler"].scale(3.0, 4.0), 5.0)
