"""Checks an assembly before anything heavy is built. The components say what they are; nothing here
knows a plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sfumato.experiment import Experiment, PipelineSettings
    from sfumato.interfaces import Guidance
    from sfumato.modules import DenoiserModule
    from sfumato.records import Branch


def check_training(experiment: Experiment) -> None:
    """Raises ConfigError where an experiment cannot train as it stands."""
    if not experiment.stages:
        raise ConfigError(f"experiment {experiment.name!r} has no stages", remedy="add `stages`")


def check_negatives(guidance: Guidance, negatives: int) -> None:
    """Raises ConfigError where negative prompts would be ignored."""
    if negatives and not guidance.uses_negatives:
        raise ConfigError(
            f"the guidance {guidance.name!r} ignores negative prompts",
            remedy="use one that takes them, such as --set guidance=negative_prompt",
        )


def check_branches(
    guidance: Guidance, branches: Iterable[Branch], denoisers: Mapping[str, DenoiserModule]
) -> None:
    """Raises ConfigError where a guidance asks for a model or a variant that is not there."""
    for branch in branches:
        if branch.model not in denoisers:
            problem = f"the guidance {guidance.name!r} needs a {branch.model!r} model"
            raise ConfigError(problem, remedy=f"the pipeline has: {', '.join(denoisers)}")
        variants = denoisers[branch.model].variants()
        if branch.variant is not None and branch.variant not in variants:
            known = ", ".join(sorted(variants)) or "none"
            raise ConfigError(
                f"the guidance {guidance.name!r} needs a denoiser with variant {branch.variant!r}",
                remedy=f"it offers: {known}",
            )


def check_same_schedule(trained: PipelineSettings, wanted: PipelineSettings) -> None:
    """Raises ConfigError where a model would be sampled with a schedule it was not trained with."""
    if trained.noise_schedule != wanted.noise_schedule:
        raise ConfigError(
            f"this model was trained with {trained.noise_schedule} and cannot be sampled with "
            f"{wanted.noise_schedule}",
            remedy="train it with that schedule, or leave noise_schedule as it is",
        )
