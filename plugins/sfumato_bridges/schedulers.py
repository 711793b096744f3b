"""Walking with a scheduler of diffusers.

It is built anew for each walk, with the levels of the grid as its table: entry k of N is the level
of times[N - 1 - k], so that its own rules for the previous timestep, whatever they are, lead to the
next time of the grid. Tables are put in place in float64, past its float32 betas.

It is given a prediction and the x that goes with it, made of x0 and eps in its own frame: equal to
the present x unless guidance renoises with another eps on purpose, which so reaches it too. What it
draws by `torch.randn` is answered with a draw of the pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.overrides import TorchFunctionMode

from sfumato import ConfigError, Denoise, Guided, NoiseSchedule, PluginError, SampleStep
from sfumato_bridges import library
from sfumato_bridges.conventions import OWNED, REFUSED, SUPPORTED, Convention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from sfumato_bridges import DiffusersScheduler

PLACE = "sampler diffusers_scheduler"
OWNER = "noise_schedule, time_grid and the denoiser"
PREDICTION_TYPE = {"x0": "sample", "epsilon": "epsilon"}


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigError where a scheduler or an option of it is not supported."""
    if name not in SUPPORTED:
        reason = REFUSED.get(name, "how it speaks of noise and time is not known here")
        known = ", ".join(sorted(SUPPORTED))
        raise ConfigError(
            f"{name} is not supported: {reason}", place=PLACE, remedy=f"supported: {known}"
        )
    cls = library.subclass(name, "SchedulerMixin", PLACE)
    made, stepped = library.parameters(cls.__init__), library.parameters(cls.step)
    known_names = [one for one in (*made, *stepped) if one not in OWNED]
    library.check_names(options, known_names, OWNED, f"{PLACE}, options", OWNER)
    if str(options.get("variance_type", "")).startswith("learned"):
        raise ConfigError(
            "no learned variance reaches a sampler",
            place=f"{PLACE}, options",
            remedy="leave it out",
        )
    _made(name, options, steps=2, clean=SUPPORTED[name].ends != "noisy")


def walk(
    sampler: DiffusersScheduler,
    denoise: Denoise,
    schedule: NoiseSchedule,
    x: Tensor,
    times: Tensor,
    noise: Callable[[], Tensor],
) -> Iterator[SampleStep]:
    """See `Sampler.run`."""
    convention = SUPPORTED[sampler.scheduler]
    levels = [Level.at(schedule, t) for t in times]
    _check_ends(sampler.scheduler, convention, levels)
    scheduler = _prepared(sampler, convention, levels)
    places = convention.places(len(times) - 1)
    if len(scheduler.timesteps) != len(places):
        problem = f"expected {len(places)} timesteps, got {len(scheduler.timesteps)}"
        raise PluginError(problem, place=f"{PLACE} {sampler.scheduler}")
    taken = library.parameters(scheduler.step)
    options = {name: value for name, value in sampler.options.items() if name in taken}
    own = x / levels[0].scale(convention)
    for call, (interval, index) in enumerate(places):
        if index is None:
            ratio = scheduler.sigmas_interpol[call - convention.behind].double()
            t = schedule.time_at(ratio.log())
            level = Level.at(schedule, t)
        else:
            t, level = times[index], levels[index]
        guided = denoise(own * level.scale(convention), t)
        own = (level.alpha * guided.x0 + level.sigma * guided.eps) / level.scale(convention)
        with Drawing(noise):
            own = _stepped(scheduler, convention, call, guided, own, options)
        if call + 1 == len(places) or places[call + 1][0] != interval:
            end, s = levels[interval + 1], float(times[interval + 1])
            yield SampleStep(index=interval, t=s, x=own * end.scale(convention), x0=guided.x0)


def _stepped(
    scheduler: Any,
    convention: Convention,
    call: int,
    guided: Guided,
    own: Tensor,
    options: Mapping[str, Any],
) -> Tensor:
    """Its x after one call, from its x now."""
    timestep = scheduler.timesteps[call]
    if convention.frame == "exploding":
        scheduler.scale_model_input(own, timestep)  # or it warns that nobody did
    said = {"x0": guided.x0, "epsilon": guided.eps, "flow": guided.eps - guided.x0}
    step = scheduler.step(said[convention.says], timestep, own, **options)
    found: Tensor = step.prev_sample.to(own.dtype)
    return found


@attrs.frozen
class Level:
    """How much signal and noise there is."""

    alpha: float
    sigma: float

    @classmethod
    def at(cls, schedule: NoiseSchedule, t: Tensor) -> Level:
        """That of the schedule at t, () float64."""
        alpha, sigma = schedule.alpha_sigma(t)
        return cls(float(alpha), float(sigma))

    def scale(self, convention: Convention) -> float:
        """How much larger our x is than the scheduler's."""
        return convention.scale(self.alpha, self.sigma)


class Drawing(TorchFunctionMode):
    """Within it, and in this thread only, what torch is asked to draw comes from `noise`."""

    def __init__(self, noise: Callable[[], Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in (torch.randn, torch.randn_like):
            return self.noise()
        return function(*args, **(kwargs or {}))


def _check_ends(name: str, convention: Convention, levels: list[Level]) -> None:
    clean = levels[-1].sigma == 0
    if levels[0].alpha == 0 and not convention.blind:
        raise ConfigError(
            f"{name} cannot start where alpha is 0",
            place=PLACE,
            remedy="use a grid that starts later (--set time_grid=leading), or DDIMScheduler",
        )
    if convention.ends != "anywhere" and clean != (convention.ends == "clean"):
        where, final = ("at t = 0", "clean") if convention.ends == "clean" else ("above 0", "first")
        raise ConfigError(
            f"{name} can only end {where}",
            place=PLACE,
            remedy=f"--set time_grid.final={final}, or another scheduler",
        )


def _made(name: str, options: Mapping[str, Any], steps: int, clean: bool) -> Any:
    """The scheduler, with options that it takes and a table of `steps` entries."""
    cls = library.subclass(name, "SchedulerMixin", PLACE)
    known = library.parameters(cls.__init__)
    ours = {
        "num_train_timesteps": steps,
        "timestep_spacing": "trailing",  # N of N: every entry of the table
        "prediction_type": PREDICTION_TYPE.get(SUPPORTED[name].says),
        "final_sigmas_type": "zero" if clean else "sigma_min",
        "skip_prk_steps": True,
    }
    if "timestep_spacing" not in known:
        del ours["num_train_timesteps"]  # it is given its timesteps, or sigmas
    settings = {key: value for key, value in {**ours, **options}.items() if key in known}
    try:
        return cls(**settings)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        problem = f"{name} refuses its options: {error}"
        raise ConfigError(problem, place=f"{PLACE}, options") from error


def _prepared(sampler: DiffusersScheduler, convention: Convention, levels: list[Level]) -> Any:
    """The scheduler, its tables filled with the levels of the grid."""
    steps, end = len(levels) - 1, levels[-1]
    scheduler = _made(sampler.scheduler, sampler.options, steps, end.sigma == 0)
    alpha_bars = torch.tensor(
        [level.alpha**2 / (level.alpha**2 + level.sigma**2) for level in levels],
        dtype=torch.float64,
    )
    if convention.frame != "straight":
        scheduler.alphas_cumprod = alpha_bars[:-1].flip(0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = alpha_bars[-1]
    if "timestep_spacing" in scheduler.config or convention.frame == "straight":
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=list(range(steps))[::-1])
    if hasattr(scheduler, "sigmas") and convention.asks != "between":
        scheduler.sigmas = _sigmas(convention, levels)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    return scheduler


def _sigmas(convention: Convention, levels: list[Level]) -> Tensor:
    """What it calls sigmas, float64; of one that asks twice, inner ones twice."""
    straight = convention.frame == "straight"
    whole = [level.alpha + level.sigma * straight for level in levels]
    ratios = [level.sigma / one for level, one in zip(levels, whole, strict=True)]
    found = torch.tensor(ratios, dtype=torch.float64)
    if convention.asks == "twice":
        found = torch.cat((found[:1], found[1:-1].repeat_interleave(2), found[-1:]))
    return found
