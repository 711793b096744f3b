"""diffusers' schedulers: one file says noise schedule, grid, sampler and what the network predicts.

Ours are used where they give the picture of diffusers, step for step; a scheduler or a setting with
which they would not is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import create

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sfumato_diffusers.options import Options

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
OF_PIXELS = ("DDIMScheduler", "DDPMScheduler")
"""Schedulers of pixels, which by default clip x0, and which keep a last entry without signal."""

Components = tuple[dict[str, Any], dict[str, Any]]
"""A sampler and a grid, as YAML has them."""


@attrs.frozen(kw_only=True)
class Scheduler:
    """What one file says, each component as YAML has it."""

    noise_schedule: dict[str, Any]
    time_grid: dict[str, Any]
    sampler: dict[str, Any]
    prediction: str


def read(options: Options, *, forced: bool) -> Scheduler:
    """The components.

    Args:
        options: of the scheduler, whose class is one of READERS.
        forced: whether the pipeline sets `steps_offset` to 1 and `clip_sample` to False, whatever
            the file says, as StableDiffusionPipeline does.

    Raises:
        CheckpointError: a value has no counterpart.
    """
    name = str(options.class_name)
    reader, foreign = READERS[name]
    offset = options.count("steps_offset", 0)
    clips = options.take("clip_sample", name in OF_PIXELS)
    if forced:
        offset = 1
    elif clips:
        raise options.refusal("clip_sample", True, "latents are not pixels: write false")
    sampler, grid = reader(options, offset)
    prediction = options.choice("prediction_type", "epsilon", PREDICTIONS)
    if name == "PNDMScheduler" and prediction != "epsilon":
        remedy = "it averages what the network says, and the paper eps: use DDIMScheduler"
        raise options.refusal("prediction_type", prediction, remedy)
    betas = (8.5e-4, 0.012) if name == "HeunDiscreteScheduler" else (1e-4, 0.02)
    schedule = _schedule(options, betas, exact=name in OF_PIXELS)
    _refuse_clipping(options, schedule)
    options.fixed(thresholding=False)
    options.ignore("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", *foreign)
    options.close()
    return Scheduler(
        noise_schedule=schedule,
        time_grid=grid,
        sampler=sampler,
        prediction=PREDICTIONS[prediction],
    )


def _refuse_clipping(options: Options, schedule: Mapping[str, Any]) -> None:
    """Raises CheckpointError where noise levels above a bound would be left out."""
    least = options.take("lambda_min_clipped", -math.inf)
    if least > -math.inf:
        alpha, sigma = made("noise_schedule", schedule).alpha_sigma(torch.ones(()).double())
        if least > float(alpha.log() - sigma.log()):
            raise options.refusal("lambda_min_clipped", least, "leave it out")


def _schedule(options: Options, ends: tuple[float, float], *, exact: bool) -> dict[str, Any]:
    """The table.

    Args:
        options: of the scheduler.
        ends: the first and the last beta where it says nothing.
        exact: whether a last entry without signal stays so.

    Raises:
        CheckpointError: a value has no counterpart.
    """
    start, end = options.take("beta_start", ends[0]), options.take("beta_end", ends[1])
    steps = options.take("num_train_timesteps", 1000)
    kind = options.choice(
        "beta_schedule", "linear", ("linear", "scaled_linear", "squaredcos_cap_v2")
    )
    betas = options.take_or_none("trained_betas", [0.0])
    schedule: dict[str, Any] = {"use": kind, "beta_start": start, "beta_end": end, "steps": steps}
    if betas is not None:
        schedule = {"use": "betas", "values": betas}
    elif kind == "squaredcos_cap_v2":
        schedule = {"use": "cosine", "steps": steps}
    if not options.take("rescale_betas_zero_snr", False):
        return schedule
    if not exact:
        remedy = "this scheduler puts a number in the place of 0: use DDIMScheduler"
        raise options.refusal("rescale_betas_zero_snr", True, remedy)
    return {"use": "zero_terminal_snr", "schedule": schedule}


def _grid(options: Options, spacing: str, offset: int, **extra: Any) -> dict[str, Any]:
    """A grid; `extra` are options of those that have them."""
    kind = options.choice("timestep_spacing", spacing, ("leading", "linspace", "trailing"))
    if kind == "leading":
        extra["offset"] = offset
    if kind != "linspace":
        extra.pop("rounded", None)
    if kind == "trailing":
        extra.pop("skip_last", None)
    return {"use": kind, **extra}


def _table_grid(options: Options, offset: int, *, to_one: bool) -> dict[str, Any]:
    """Of schedulers that step by T // N: where that is the distance of the grid."""
    grid = _grid(options, "leading", offset, final="clean" if to_one else "first")
    if grid["use"] == "linspace":
        remedy = "it steps by T // N there, which is not the grid's distance: use leading"
        raise options.refusal("timestep_spacing", "linspace", remedy)
    if grid == {"use": "leading", "offset": 0, "final": "first"}:
        raise options.refusal("set_alpha_to_one", False, "with steps_offset 1 alone")
    return grid


def _ddim(options: Options, offset: int) -> Components:
    to_one = options.take("set_alpha_to_one", True)
    return {"use": "ddim"}, _table_grid(options, offset, to_one=to_one)


def _ddpm(options: Options, offset: int) -> Components:
    options.choice("variance_type", "fixed_small", ("fixed_small", "fixed_small_log"))
    return {"use": "ddpm"}, _table_grid(options, offset, to_one=True)


def _pndm(options: Options, offset: int) -> Components:
    to_one = options.take("set_alpha_to_one", False)
    start = "improved_euler" if options.take("skip_prk_steps", False) else "runge_kutta"
    grid = _table_grid(options, offset, to_one=to_one)
    return {"use": "pndm", "start": start}, grid


def _sigma_grid(options: Options, offset: int) -> dict[str, Any]:
    """Of schedulers in sigma, which may go between entries of the table and end clean."""
    options.fixed(
        interpolation_type="linear",
        timestep_type="discrete",
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        final_sigmas_type="zero",
        sigma_min=None,
        sigma_max=None,
    )
    grid = _grid(options, "linspace", offset, rounded=False)
    if not options.take("use_karras_sigmas", False):
        return grid
    if grid["use"] != "linspace":
        remedy = "with timestep_spacing linspace alone: elsewhere the ends depend on the steps"
        raise options.refusal("use_karras_sigmas", True, remedy)
    return {"use": "karras"}


def _euler(options: Options, offset: int) -> Components:
    return {"use": "euler"}, _sigma_grid(options, offset)


def _euler_ancestral(options: Options, offset: int) -> Components:
    return {"use": "euler_ancestral"}, _sigma_grid(options, offset)


def _heun(options: Options, offset: int) -> Components:
    return {"use": "heun"}, _sigma_grid(options, offset)


def _lms(options: Options, offset: int) -> Components:
    return {"use": "lms"}, _sigma_grid(options, offset)


def _solver_grid(options: Options, offset: int) -> dict[str, Any]:
    """Of DPM-Solver++ and UniPC, which lay out N + 1 indices and end clean."""
    options.fixed(
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        use_lu_lambdas=False,
        use_flow_sigmas=False,
        use_dynamic_shifting=False,
        final_sigmas_type="zero",
        sigma_min=None,
        sigma_max=None,
        shift_terminal=None,
    )
    if options.take("use_karras_sigmas", False):
        remedy = "it rounds the times of these levels: import without, then --set time_grid=karras"
        raise options.refusal("use_karras_sigmas", True, remedy)
    # Without a flow they have no effect; the end is clean, where all three mean an Euler step.
    options.ignore("flow_shift", "time_shift_type", "lower_order_final", "euler_at_final")
    return _grid(options, "linspace", offset, skip_last=True)


def _dpmpp(options: Options, offset: int) -> Components:
    options.fixed(solver_order=2, variance_type=None)
    kind = options.choice("algorithm_type", "dpmsolver++", ("dpmsolver++", "sde-dpmsolver++"))
    rule = options.choice("solver_type", "midpoint", ("midpoint", "heun"))
    sampler: dict[str, Any] = {"use": "dpmpp_2m"}
    if kind == "sde-dpmsolver++":
        sampler = {"use": "dpmpp_2m_sde", "rule": rule}
    elif rule == "heun":
        sampler = {"use": "dpmpp_2m_sde", "rule": rule, "eta": 0.0}
    return sampler, _solver_grid(options, offset)


def _unipc(options: Options, offset: int) -> Components:
    options.fixed(predict_x0=True, solver_type="bh2", disable_corrector=[], solver_p=None)
    order = options.take("solver_order", 2)
    if order not in (1, 2):
        raise options.refusal("solver_order", order, "1 and 2 alone are known")
    return {"use": "unipc", "depth": order}, _solver_grid(options, offset)


TABLE = ("skip_prk_steps", "set_alpha_to_one")
SOLVER = ("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final")
READERS: dict[str, tuple[Callable[[Options, int], Components], tuple[str, ...]]] = {
    "DDIMScheduler": (_ddim, ("skip_prk_steps", *SOLVER)),
    "DDPMScheduler": (_ddpm, (*TABLE, *SOLVER)),
    "DPMSolverMultistepScheduler": (_dpmpp, TABLE),
    "EulerAncestralDiscreteScheduler": (_euler_ancestral, (*TABLE, *SOLVER)),
    "EulerDiscreteScheduler": (_euler, (*TABLE, *SOLVER)),
    "HeunDiscreteScheduler": (_heun, (*TABLE, *SOLVER)),
    "LMSDiscreteScheduler": (_lms, (*TABLE, *SOLVER)),
    "PNDMScheduler": (_pndm, SOLVER),
    "UniPCMultistepScheduler": (_unipc, (*TABLE, "algorithm_type")),
}
"""By class: how it is read, and the keys of other schedulers that it does not look at; they stay in
the file when a class is changed.
"""


def made(kind: str, tree: Mapping[str, Any]) -> Any:
    """A component of its settings."""
    return create(kind, tree["use"], **{key: v for key, v in tree.items() if key != "use"})
