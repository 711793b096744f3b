"""Checks an assembly before anything is built, fitted or written.

Components declare facts (`Denoiser.prediction`, `Autoencoder.factor`, `Guidance.branches` ...) and
the checks compare them; nothing here knows a plugin, so a stranger's component takes part like
ours. What no later argument can change is checked for the assembly, the rest for the `Plan` of one
way to sample. Each check is a function that raises an error with its remedy; `ASSEMBLY` and
`SAMPLING` list them.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, TypeGuard

import attrs

from sfumato import settings, trajectory
from sfumato.errors import ConfigError, PluginError
from sfumato.experiment import Experiment, PipelineSettings, Trained
from sfumato.interfaces import Adapter, Component, Guidance, NoiseSchedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from sfumato.interfaces import Denoiser
    from sfumato.records import Branch
    from sfumato.split import Split

TRAINING = {"loss", "loss_weight", "time_sampler"}
"""The slots of a pipeline that sampling does not look at."""

LOG_SNR_TOLERANCE = 0.1
"""How far a noise level may be, in log SNR, from the one that the model is asked at instead."""


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """One way to sample, known before anything is built.

    Attributes:
        settings: of the pipeline.
        trained: the schedule that the denoiser is trained with.
        text_dropout: the share of texts that it is trained without; None where nobody knows.
        guidance: which predictions, and how they combine.
        steps: of the time grid.
        negatives: how many each prompt has.
        strength: the share of the steps that are walked, in (0, 1]: the last ones.
        weak: what the weaker model was trained with; None where there is none.
    """

    settings: PipelineSettings
    trained: NoiseSchedule
    text_dropout: float | None
    guidance: Guidance
    steps: int
    negatives: int = 0
    strength: float = 1.0
    weak: Trained | None = None

    @functools.cached_property
    def times(self) -> Tensor:
        """The times that are visited, float64: steps + 1 at strength 1."""
        settings = self.settings
        times = trajectory.times_of(settings.time_grid, self.steps, settings.noise_schedule)
        return trajectory.last(times, self.strength)

    @property
    def starts_blind(self) -> bool:
        """Whether x at the first time holds nothing of x0: alpha / sigma is below the resolution of
        float32, in which x is held.
        """
        import torch

        alpha, sigma = self.settings.noise_schedule.alpha_sigma(self.times[0])
        return float(alpha) <= torch.finfo(torch.float32).eps * float(sigma)

    @functools.cached_property
    def branches(self) -> frozenset[Branch]:
        """All that the guidance asks for at these times."""
        schedule = self.settings.noise_schedule
        return frozenset(
            branch
            for index, t in enumerate(self.times[:-1])
            for branch in self.guidance.branches(
                trajectory.guidance_step(t, self.times, schedule, self.negatives, index)
            )
        )

    @functools.cached_property
    def mismatch(self) -> float:
        """The largest error in log SNR, where schedules differ; else 0."""
        schedule = self.settings.noise_schedule
        return trajectory.mismatch(self.times[:-1], schedule, self.trained)

    @property
    def mapping(self) -> str | None:
        """One line on the two schedules, where they differ."""
        schedule = self.settings.noise_schedule
        if schedule == self.trained:
            return None
        return (
            f"noise_schedule {schedule.name}: the model was trained with {self.trained.name}; "
            f"its times are matched by SNR, with an error in log SNR of at most {self.mismatch:.2g}"
        )


def check_training(
    experiment: Experiment, weak: Trained | None = None, start: Trained | None = None
) -> None:
    """Raises ConfigError or PluginError where an experiment cannot train from the weights of
    `start`, or where the samples of its own evaluation could not be drawn, beside a `weak` model
    trained like this.
    """
    if not experiment.stages:
        stage = "{objective: denoising, steps: 1000, batch: 16}"
        remedy = f"add `stages`, such as --set 'stages.denoiser={stage}'"
        raise ConfigError(f"experiment {experiment.name!r} has no stages", remedy=remedy)
    given, drawn = experiment.given_data().picture_size, experiment.picture_size
    if drawn != given:
        problem = f"training draws pictures of {drawn[0]} x {drawn[1]}, but data has {given[0]} x "
        remedy = "leave sampling.size out, or change the size of the data"
        raise ConfigError(f"{problem}{given[1]}", place="sampling.size", remedy=remedy)
    check_assembly(experiment)
    if start is not None:
        check_start(start, experiment)
    check_caches(experiment)
    warn_of_adapter(experiment, start)
    evaluation = experiment.evaluation
    trained = {*slots_trained(experiment), *(start.slots if start is not None else ())}
    if evaluation.metrics and "denoiser" not in trained:
        raise ConfigError(
            "evaluation draws samples, and no stage trains the denoiser",
            place="evaluation.metrics",
            remedy="add a stage with such an objective, or leave the metrics out",
        )
    plan = Plan(
        settings=experiment,
        trained=noise_schedule(experiment, start),
        text_dropout=text_dropout(experiment, start)
        if evaluation.metrics or evaluation.studies
        else None,
        guidance=experiment.guidance,
        steps=experiment.sampling.steps,
        weak=weak,
    )
    check_plan(plan)


def warn_of_adapter(experiment: Experiment, start: Trained | None) -> None:
    """Warns where a stage trains an adapter around weights that nothing has trained."""
    if start is not None and "denoiser" in start.slots:
        return
    if isinstance(experiment.denoiser, Adapter) and "denoiser" in slots_trained(experiment):
        name = experiment.denoiser.name
        warnings.warn(
            f"denoiser {name!r} trains beside weights that nothing has trained, and which stay as "
            f"they were drawn; name a run: sfumato train RUN --set 'denoiser={{use: {name}}}'",
            stacklevel=3,
        )


def check_caches(experiment: Experiment) -> None:
    """Raises ConfigError where an objective needs more than what a cache holds."""
    for name, stage in experiment.stages.items():
        objective = stage.objective
        if stage.cache is None:
            continue
        if objective.trains == "text_encoder":
            problem = f"the objective {objective.name!r} trains the text encoder, so that what it "
            problem += "says changes at each step"
        elif objective.looks_at_pictures:
            problem = f"the objective {objective.name!r} looks at the pictures themselves"
        else:
            continue
        raise ConfigError(problem, place=f"stages.{name}.cache", remedy="leave it out")


def check_batches(experiment: Experiment, split: Split, ranks: int = 1) -> None:
    """Raises ConfigError where a batch would hold an example twice, cannot be shared out, or would
    come from a cache although examples vary.
    """
    for name, stage in experiment.stages.items():
        if stage.cache is not None and split.varies:
            raise ConfigError(
                "training sees each example differently each time, and a cache holds it once",
                place=f"stages.{name}.cache",
                remedy="leave it out, or the augmentation",
            )
        parts = ranks * stage.accumulation
        if stage.batch < parts:
            shared = f"{ranks} ranks in {stage.accumulation} parts each"
            raise ConfigError(
                f"a batch of {stage.batch} cannot be shared out to {shared}",
                place=f"stages.{name}.batch",
                remedy=f"use at least {parts}",
            )
        if stage.accumulation > 1 and stage.objective.compares:
            raise ConfigError(
                f"the objective {stage.objective.name!r} compares all examples of a batch, which "
                "cannot be computed in parts",
                place=f"stages.{name}.accumulation",
                remedy="leave it at 1, and let more ranks share the batch out",
            )
        if stage.batch > len(split):
            raise ConfigError(
                f"a batch of {stage.batch} is more than the {len(split)} examples of the data",
                place=f"stages.{name}.batch",
                remedy=f"use at most {len(split)}",
            )


def check_assembly(settings: PipelineSettings) -> None:
    """Raises ConfigError where components do not fit each other, PluginError where one breaks its
    contract.
    """
    for check in ASSEMBLY:
        check(settings)


def check_plan(plan: Plan) -> None:
    """Raises ConfigError or PluginError where sampling like this would fail or mislead."""
    for check in SAMPLING:
        check(plan)


def slots_trained(experiment: Experiment) -> set[str]:
    """The slots whose weights its stages move."""
    return {stage.objective.trains for stage in experiment.stages.values()}


def text_dropout(experiment: Experiment, start: Trained | None = None) -> float | None:
    """The rate of the last stage that has one, else that of the weights at the start."""
    known = [] if start is None else [start.text_dropout]
    rates = [stage.objective.text_dropout for stage in experiment.stages.values()]
    return next((rate for rate in reversed([*known, *rates]) if rate is not None), None)


def noise_schedule(experiment: Experiment, start: Trained | None = None) -> NoiseSchedule:
    """What the denoiser is trained with in the end: the start's, where no stage trains it."""
    if start is None or "denoiser" in slots_trained(experiment):
        return experiment.noise_schedule
    return start.noise_schedule


def check_schedule(settings: PipelineSettings) -> None:
    """The noise schedule keeps its contract at 65 times."""
    import torch

    schedule = settings.noise_schedule
    place = f"noise_schedule {schedule.name}"
    t = torch.linspace(0, 1, 65, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    if not alpha.shape == sigma.shape == t.shape:
        problem = (
            f"expected alpha and sigma of shape {tuple(t.shape)}, as that of t, "
            f"got {tuple(alpha.shape)} and {tuple(sigma.shape)}"
        )
        raise PluginError(problem, place=place)
    for i in (~(alpha.isfinite() & sigma.isfinite())).nonzero().flatten().tolist():
        problem = f"expected finite numbers, got alpha {alpha[i]:g} and sigma {sigma[i]:g}"
        raise PluginError(f"{problem} at t = {t[i]:g}", place=place)
    # Ratios are compared crosswise, as sigma is 0 at one end and alpha may be at the other.
    rises = sigma[1:] * alpha[:-1] <= sigma[:-1] * alpha[1:]
    for i in rises.nonzero().flatten().tolist():
        before, after = ((alpha / sigma) ** 2)[i : i + 2]
        problem = f"expected an SNR that falls with t, got {before:g} at t = {t[i]:g}"
        raise PluginError(f"{problem} and {after:g} at t = {t[i + 1]:g}", place=place)


def check_picture_size(settings: PipelineSettings) -> None:
    """Pictures divide into latents, and latents into what the denoiser needs."""
    size, autoencoder, denoiser = settings.picture_size, settings.autoencoder, settings.denoiser
    whole = autoencoder.factor * denoiser.multiple
    if any(side % whole for side in size):
        height, width = (max(1, round(side / whole)) * whole for side in size)
        raise ConfigError(
            f"pictures are {size[0]} x {size[1]}, but the autoencoder {autoencoder.name!r} "
            f"(factor {autoencoder.factor}) and the denoiser {denoiser.name!r} (latents in "
            f"multiples of {denoiser.multiple}) need multiples of {whole}",
            remedy=f"draw {height} x {width} (of a run: --set sampling.size=[{height},{width}]), "
            "or change these two",
        )


def check_weights(trained: Trained, wanted: PipelineSettings) -> None:
    """Raises ConfigError where an option would differ from the one that the weights go with."""
    for slot in ("text_encoder", "denoiser", "autoencoder"):
        was, now = getattr(trained, slot), getattr(wanted, slot)
        for option, before, after in differences(was, now):
            raise ConfigError(
                f"the weights were trained with {before!r} and do not go with {after!r}",
                place=f"{slot}.{option}".removesuffix(".use"),
                remedy="leave it as it is, or train again",
            )


def check_start(trained: Trained, wanted: Experiment) -> None:
    """Raises ConfigError where training cannot start from weights that go with other components.

    What may differ: all but the three slots that have weights; in these what may differ in
    sampling too, and, where a stage trains the slot, what no shape depends on; and an adapter may
    stand around the denoiser.
    """
    trains = slots_trained(wanted)
    for slot in ("text_encoder", "denoiser", "autoencoder"):
        was, now = getattr(trained, slot), getattr(wanted, slot)
        if goes_around(was, now):
            now = now.base
        for option, before, after in differences(was, now, retrained=slot in trains):
            raise ConfigError(
                f"the weights to start from were trained with {before!r} and do not go with "
                f"{after!r}",
                place=f"{slot}.{option}".removesuffix(".use"),
                remedy="leave it as it is, or train without `start`",
            )


def goes_around(was: Component, now: Component) -> TypeGuard[Adapter]:
    """Whether `now` is an adapter, and weights trained with `was` are for the denoiser in it."""
    return isinstance(now, Adapter) and type(now) is not type(was)


def differences(
    was: Component, now: Component, *, retrained: bool = False
) -> Iterator[tuple[str, Any, Any]]:
    """The options, and `use`, that weights trained with `was` would meet changed in `now`, also
    inside of wrapped components: the name, what it was, and what it is.

    Where they are to be `retrained`, what training can change is no difference.
    """
    before, after = settings.plain(was), settings.plain(now)
    free = was.adjustable | (was.retrainable if retrained else frozenset())
    for name in (option for option in before if option not in free):
        inner, other = (_components(name, getattr(one, name, None)) for one in (was, now))
        if inner and inner.keys() == other.keys():
            for path, component in inner.items():
                for option, old, new in differences(component, other[path], retrained=retrained):
                    yield f"{path}.{option}", old, new
        elif before[name] != after.get(name):
            yield name, before[name], after.get(name)


def _components(name: str, value: Any) -> dict[str, Component]:
    """The components that an option holds, one or several, by their path."""
    if isinstance(value, Component):
        return {name: value}
    items = value if isinstance(value, tuple) else ()
    return {f"{name}.{i}": one for i, one in enumerate(items) if isinstance(one, Component)}


def check_overrides(before: Experiment, after: Experiment, *, evaluates: bool = False) -> None:
    """Raises ConfigError where something was changed that sampling, or evaluating, does not look
    at.
    """
    used = {*settings.fields(PipelineSettings).keys() - TRAINING, "name"}
    if evaluates:
        used.add("evaluation")
    for name in settings.fields(Experiment):
        if name not in used and getattr(before, name) != getattr(after, name):
            remedy = "give the seed to the command (--seed)" if name == "seed" else "leave it"
            raise ConfigError("has no effect on a run that is trained", place=name, remedy=remedy)
    if evaluates:
        return
    if after.data not in (None, before.data) and before.picture_size == after.picture_size:
        remedy = (
            "prompts come from the command; `sfumato train RUN --set data=...` trains on with it"
        )
        raise ConfigError("has no effect on what is drawn", place="data", remedy=remedy)


def check_strength(plan: Plan) -> None:
    """The strength is a share of the steps."""
    if not 0 < plan.strength <= 1:
        raise ConfigError(
            f"expected a strength above 0 and at most 1, got {plan.strength:g}",
            remedy="1 forgets the picture, 0.6 keeps its composition, 0.2 its shapes",
        )


def check_signal(plan: Plan) -> None:
    """An epsilon prediction is not asked for x0 where x_t holds nothing of it."""
    schedule, first = plan.settings.noise_schedule, plan.times[0]
    alpha = float(schedule.alpha_sigma(first)[0])
    if plan.starts_blind and plan.settings.denoiser.prediction == "epsilon":
        raise ConfigError(
            f"{plan.steps} steps of the time_grid {plan.settings.time_grid.name!r} visit "
            f"t = {float(first):g}, where noise_schedule {schedule.name!r} leaves no signal "
            f"(alpha is {alpha:g}) and epsilon says nothing about x0",
            remedy="use a grid that starts later (--set time_grid=leading), or train another "
            "prediction (--set denoiser.prediction=v, or x0)",
        )


def check_mapping(plan: Plan) -> None:
    """The model has seen every noise level at which it is asked."""
    if plan.mismatch > LOG_SNR_TOLERANCE:
        raise ConfigError(
            f"noise_schedule {plan.settings.noise_schedule.name!r} at t = "
            f"{float(plan.times[0]):g} is noisier than {plan.trained.name!r}, which the model was "
            f"trained with, ever is: log SNR would be off by {plan.mismatch:.2g}, and at most "
            f"{LOG_SNR_TOLERANCE} is accepted",
            remedy="use a grid that starts later (--set time_grid=leading), or leave "
            "noise_schedule as it is",
        )


def check_negatives(plan: Plan) -> None:
    """Negative prompts are used."""
    if plan.negatives and not plan.guidance.uses_negatives:
        raise ConfigError(
            f"the guidance {plan.guidance.name!r} ignores negative prompts",
            remedy="use one that takes them, such as --set guidance=negative_prompt",
        )


def check_needs(plan: Plan) -> None:
    """The models, variants and texts that the guidance asks for are there."""
    denoisers = {"main": plan.settings.denoiser}
    if plan.weak is not None:
        denoisers["weak"] = plan.weak.denoiser
    check_branches(plan.guidance, plan.branches, denoisers, plan.negatives)


def check_weak(plan: Plan) -> None:
    """The weak model, where it is asked, can say something at every noise level too."""
    if plan.weak is None or all(branch.model != "weak" for branch in plan.branches):
        return
    settings = attrs.evolve(plan.settings, denoiser=plan.weak.denoiser)
    alone = attrs.evolve(plan, settings=settings, trained=plan.weak.noise_schedule)
    for check in (check_signal, check_mapping):
        try:
            check(alone)
        except ConfigError as error:
            raise ConfigError(str(error), place="sampling.weak") from None


def check_null(plan: Plan) -> None:
    """The model knows the null condition, where guidance asks for it."""
    texts = (text.text for branch in plan.branches for text in branch.texts)
    if plan.text_dropout == 0 and "null" in texts:
        raise ConfigError(
            f"the guidance {plan.guidance.name!r} asks for the null condition, which a model "
            "trained with text_dropout: 0 does not know",
            remedy="use --set guidance=none, or train with text_dropout, such as 0.1",
        )


def check_branches(
    guidance: Guidance,
    branches: Iterable[Branch],
    denoisers: Mapping[str, Denoiser],
    negatives: int,
) -> None:
    """Raises ConfigError where a guidance asks for a model or a variant that is not there,
    PluginError where for a negative that was not given.
    """
    for branch in branches:
        if branch.model not in denoisers:
            raise ConfigError(
                f"the guidance {guidance.name!r} needs a {branch.model!r} model",
                remedy="name a checkpoint with --set sampling.weak=RUN, or RUN@STEP",
            )
        denoiser = denoisers[branch.model]
        if branch.variant is not None and branch.variant not in denoiser.variants:
            known = ", ".join(sorted(denoiser.variants)) or "none"
            raise ConfigError(
                f"the guidance {guidance.name!r} needs a denoiser with variant {branch.variant!r}",
                remedy=f"the denoiser {denoiser.name!r} offers: {known}",
            )
        if branch.against is not None and branch.variant != "nag":
            problem = f"expected variant 'nag' beside `against`, got {branch.variant!r}"
            raise PluginError(problem, place=f"guidance {guidance.name}")
        for text in branch.texts:
            if text.text == "negative" and text.index >= negatives:
                problem = f"expected an index below {negatives}, the number of negatives"
                raise PluginError(f"{problem}, got {text.index}", place=f"guidance {guidance.name}")


ASSEMBLY = (check_schedule, check_picture_size)
SAMPLING = (
    check_strength,
    check_signal,
    check_mapping,
    check_negatives,
    check_needs,
    check_weak,
    check_null,
)
