"""The file of a scheduler that `scheduler.read` turns into the wanted components: it is looked for.

There are few files, and reading is the one table of what they mean; so nothing is said twice, and
what is found comes back by construction.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from sfumato import CheckpointError, ConfigError
from sfumato_diffusers.options import Options
from sfumato_diffusers.scheduler import PREDICTIONS, made, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def write(settings: Mapping[str, Any], *, forced: bool) -> dict[str, Any]:
    """The file that `read` turns into these components.

    Args:
        settings: of a pipeline, each component with all its options.
        forced: as for `read`.

    Raises:
        ConfigError: there is none.
    """
    stated = {**_table(settings["noise_schedule"]), **_predicted(settings["denoiser"])}
    wanted = {kind: made(kind, settings[kind]) for kind in ("time_grid", "sampler")}
    near = False
    for candidate in _candidates(forced):
        config = {**candidate, **stated}
        try:
            found = read(Options(config, "scheduler"), forced=forced)
        except CheckpointError:
            continue
        near = near or found.sampler["use"] == wanted["sampler"].name
        if all(_same(component, getattr(found, kind)) for kind, component in wanted.items()):
            return config
    names = " on ".join(component.name for component in reversed(wanted.values()))
    raise ConfigError(
        f"{names} is no scheduler of diffusers"
        + (" with these options, on this noise schedule" if near else ""),
        place="sampler",
        remedy="export with another, such as --set sampler=ddim --set time_grid=leading",
    )


def _table(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of a noise schedule, whose own options are those of a cosine alone."""
    if schedule["use"] == "zero_terminal_snr":
        return {**_table(schedule["schedule"]), "rescale_betas_zero_snr": True}
    if schedule["use"] == "betas":
        return {"trained_betas": schedule["values"], "num_train_timesteps": len(schedule["values"])}
    kinds = {"cosine": "squaredcos_cap_v2", "linear": "linear", "scaled_linear": "scaled_linear"}
    if schedule["use"] not in kinds:
        raise ConfigError(
            f"{schedule['use']} is no noise schedule of diffusers",
            place="noise_schedule",
            remedy=f"known: {', '.join([*kinds, 'betas', 'zero_terminal_snr'])}",
        )
    stated = {name: schedule[name] for name in ("beta_start", "beta_end") if name in schedule}
    return {
        "beta_schedule": kinds[schedule["use"]],
        "num_train_timesteps": schedule["steps"],
        **stated,
    }


def _predicted(denoiser: Mapping[str, Any]) -> dict[str, Any]:
    for name, ours in PREDICTIONS.items():
        if ours == denoiser["prediction"]:
            return {"prediction_type": name}
    raise ConfigError(
        f"{denoiser['prediction']} is nothing that diffusers' schedulers expect",
        place="denoiser.prediction",
        remedy=f"known: {', '.join(PREDICTIONS.values())}",
    )


def _candidates(forced: bool) -> Iterator[dict[str, Any]]:
    """Every file that might be wanted, but for its table and its prediction."""
    kinds: dict[str, Iterator[dict[str, Any]]] = {
        "DDIMScheduler": _choices(set_alpha_to_one=(False, True), clip_sample=(False,)),
        "DDPMScheduler": _choices(clip_sample=(False,)),
        "PNDMScheduler": _choices(set_alpha_to_one=(False, True), skip_prk_steps=(True, False)),
        "DPMSolverMultistepScheduler": _choices(
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"), solver_type=("midpoint", "heun")
        ),
        "UniPCMultistepScheduler": _choices(solver_order=(1, 2)),
        "EulerAncestralDiscreteScheduler": _choices(),
        **{
            f"{name}DiscreteScheduler": _choices(use_karras_sigmas=(False, True))
            for name in ("Euler", "Heun", "LMS")
        },
    }
    spaced = ("leading", "linspace", "trailing")
    for name, options in kinds.items():
        places = _choices(timestep_spacing=spaced, steps_offset=(1,) if forced else (1, 0))
        for own, place in itertools.product(options, list(places)):
            yield {"_class_name": name, **place, **own}


def _choices(**values: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _same(component: Any, tree: Mapping[str, Any]) -> bool:
    """Whether a component is that of a tree, whose options are plain values."""
    options = {key: value for key, value in tree.items() if key != "use"}
    return bool(component.name == tree["use"] and component == type(component)(**options))
