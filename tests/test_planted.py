"""The kit finds what is wrong: deliberately broken components, each caught by the law that names its fault.

Kinds with weights or effects are in `test_planted_heavy`.
"""

import math
from typing import ClassVar

import attrs
import pytest
import torch

from planting import Planted
from sfumato import (
    Branch,
    ConfigError,
    Guidance,
    Guided,
    Loss,
    LossWeight,
    NoiseSchedule,
    Sampler,
    SampleStep,
    TimeGrid,
    TimeSampler,
    noised,
)  # fmt: skip
from sfumato.testing import LawsBroken, conformance
from sfumato_guidance import ClassifierFreeGuidance, NegativePrompt
from sfumato_losses import MSE, P2
from sfumato_samplers import DDIM, DDPM
from sfumato_schedules import Cosine, LinearBeta, Trailing, Uniform

PLANTED = Planted()
planted = PLANTED.breaks


@planted("snr_falls", "time_at_inverts")
class RisesOnce(LinearBeta):
    """The signal-to-noise ratio rises between two entries."""

    def alpha_sigma(self, t):
        bump = ((t > 0.5) & (t < 0.52)) * 0.05
        return super().alpha_sigma(t - bump)


@planted("shapes_and_dtypes")
class AlwaysFloat32(Cosine):
    """Computes in float32 whatever t is."""

    def alpha_sigma(self, t):
        return super().alpha_sigma(t.float())


@planted("clean_at_zero")
class NeverClean(NoiseSchedule):
    """Leaves noise at t = 0."""

    name = "never_clean"

    def alpha_sigma(self, t):
        sigma = 0.01 + 0.9 * t
        return (1 - sigma**2).sqrt(), sigma


@planted("finite", "gradients_finite")
class NaNInTheMiddle(LinearBeta):
    """One time is not a number."""

    def alpha_sigma(self, t):
        alpha, sigma = super().alpha_sigma(t)
        return alpha / ((t - 0.5).abs() > 1e-3), sigma / ((t - 0.5).abs() > 1e-3) * 0 + sigma


@planted("batch_independent")
class NormalisedOverTheBatch(LinearBeta):
    """Divides by the largest time of the batch."""

    def alpha_sigma(self, t):
        return super().alpha_sigma(t / t.max().clamp(min=0.999) if t.dim() else t)


@planted("time_at_inverts")
class WrongInverse(Cosine):
    """Gives the entry below instead of the time between two."""

    def time_at(self, log_sigma_over_alpha):
        return (super().time_at(log_sigma_over_alpha) * 1000).floor() / 1000


@planted("derived_facts_agree")
class AmplitudeForPower(LinearBeta):
    """A ratio that is not squared."""

    def snr(self, t):
        alpha, sigma = self.alpha_sigma(t)
        return alpha / sigma


@planted("times_untouched")
class ClampsInPlace(LinearBeta):
    """Cuts the times of its caller."""

    def alpha_sigma(self, t):
        return super().alpha_sigma(t.data.clamp_(max=0.9995))


@planted("length_and_dtype")
class OneTooFew(Trailing):
    """n times for n steps."""

    def times(self, steps, schedule):
        return super().times(steps, schedule)[:-1]


@planted("falls")
class Rising(TimeGrid):
    """From clean to noise."""

    name = "rising"

    def times(self, steps, schedule):
        if steps < 1 or steps > (schedule.points or steps):
            raise ConfigError("steps")
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@planted("ends_clean")
class StopsEarly(Trailing):
    """Leaves the last bit of noise in."""

    def times(self, steps, schedule):
        times = super().times(steps, schedule)
        return torch.cat((times[:-1], times[-2:-1] / 2))


@planted("refuses_too_few_and_too_many")
class TakesAnything(TimeGrid):
    """Visits times between the entries rather than refuse."""

    name = "takes_anything"

    def times(self, steps, schedule):
        return torch.linspace(1, 0, max(steps, 1) + 1, dtype=torch.float64)


@planted("shape_and_range")
class BetweenTheEntries(Uniform):
    """Draws times that a table does not have."""

    def draw(self, u, row, rows, step, schedule):
        return u


@planted("the_same_on_every_rank")
class StratifiedByRank(TimeSampler):
    """Strata of the rows that this rank happens to have."""

    name = "stratified_by_rank"

    def draw(self, u, row, rows, step, schedule):
        t = (torch.arange(len(u)) + u) / len(u)
        return t if schedule.points is None else (t * schedule.points).ceil() / schedule.points


@planted("repeatable")
class DrawsForItself(Uniform):
    """Uses torch's generator instead of u."""

    def draw(self, u, row, rows, step, schedule):
        return super().draw(1 - torch.rand_like(u), row, rows, step, schedule)


@planted("follows_u")
class TheSameEveryStep(Uniform):
    """Spreads the rows evenly and forgets chance."""

    def draw(self, u, row, rows, step, schedule):
        return super().draw((row + 1) / rows, row, rows, step, schedule)


@planted("mean_over_the_picture")
class SumForMean(MSE):
    """Adds up instead of averaging."""

    def __call__(self, output, target, noised):
        return super().__call__(output, target, noised) * output[0].numel()


@planted("every_element_counts")
class FirstChannel(MSE):
    """Looks at one channel."""

    def __call__(self, output, target, noised):
        return super().__call__(output[:, :1], target[:, :1], noised)


@planted("one_number_for_each_example")
class AveragesTooEarly(MSE):
    """The mean over the batch."""

    def __call__(self, output, target, noised):
        return super().__call__(output, target, noised).mean()


@planted("per_example")
class ScaledByTheBatch(MSE):
    """Divides by the largest loss of the batch."""

    def __call__(self, output, target, noised):
        losses = super().__call__(output, target, noised)
        return losses / losses.detach().max().clamp(min=1e-6) * losses


@planted("gradient_is_its_derivative")
class StopsTheGradient(Loss):
    """Detaches half of the product."""

    name = "stops_the_gradient"

    def __call__(self, output, target, noised):
        error = output.float() - target.float()
        return (error * error.detach()).flatten(1).mean(1)


@planted("nothing_for_the_truth")
class ComparesWithNothing(Loss):
    """Forgets the target."""

    name = "compares_with_nothing"

    def __call__(self, output, target, noised):
        return output.float().square().flatten(1).mean(1)


@planted("agrees_across_prediction_types")
class OnlyForEpsilon(P2):
    """The weight on the epsilon loss, whatever is predicted."""

    def __call__(self, noised, prediction):
        return super().__call__(noised, "epsilon")


@planted("a_weight_for_each_example", "agrees_across_prediction_types")
class Negative(LossWeight):
    """Rewards errors at noisy times."""

    name = "negative"

    def __call__(self, noised, prediction):
        return 1 - (noised.sigma / noised.alpha) ** 2


@planted("per_example")
class RescaledOverTheBatch(ClassifierFreeGuidance):
    """The standard deviation of the whole batch."""

    def combine(self, predictions, step, guided, memory):
        plain, memory = super().combine(predictions, step, guided, memory)
        return Guided(plain.x0, plain.eps / plain.eps.std()), memory


@planted("scale_one_is_off")
class OneTooMany(ClassifierFreeGuidance):
    """The paper's w under the name of s."""

    def pulls(self, step):
        return {branch: pull + 1 for branch, pull in super().pulls(step).items()}


@planted("equal_branches_stay")
class WeightsDoNotSumToOne(ClassifierFreeGuidance):
    """Forgets to take away what it adds."""

    def combine(self, predictions, step, guided, memory):
        plain, memory = super().combine(predictions, step, guided, memory)
        return Guided(1.5 * plain.x0, 1.5 * plain.eps), memory


@planted("pure")
class Momentum(ClassifierFreeGuidance):
    """Keeps its memory in the class."""

    before: ClassVar = []

    def combine(self, predictions, step, guided, memory):
        plain, _ = super().combine(predictions, step, guided, memory)
        self.before.append(plain)
        return Guided(plain.x0, plain.eps + 0.1 * self.before[-2:][0].eps), None


@planted("linear_where_claimed")
class Clips(ClassifierFreeGuidance):
    """Claims to be linear."""

    def combine(self, predictions, step, guided, memory):
        plain, _ = super().combine(predictions, step, guided, memory)
        return Guided(plain.x0.clamp(-1, 1), plain.eps), memory


@planted("explains_x_t_where_claimed")
class ForgetsEps(ClassifierFreeGuidance):
    """Clips x0 and leaves eps behind."""

    @property
    def linear(self):
        return False

    def combine(self, predictions, step, guided, memory):
        plain, _ = super().combine(predictions, step, guided, memory)
        return Guided(plain.x0.clamp(-1, 1), plain.eps), memory


@planted("the_head_of_a_chain_changes_the_prompt")
class StartsTwice(ClassifierFreeGuidance):
    """Adds all of itself to what a chain has made, not only what it changes."""

    def combine(self, predictions, step, guided, memory):
        plain, _ = super().combine(predictions, step, None, memory)
        if guided is None:
            return plain, memory
        return Guided(guided.x0 + plain.x0, guided.eps + plain.eps), memory


@planted("a_link_builds_on_what_came_before")
class StartsAnew(ClassifierFreeGuidance):
    """Drops what a chain has made."""

    def combine(self, predictions, step, guided, memory):
        return super().combine(predictions, step, None, memory)


@planted("finite_without_signal")
class DividesByAlpha(ClassifierFreeGuidance):
    """Finds x0 from eps, also where alpha is 0."""

    def combine(self, predictions, step, guided, memory):
        plain, _ = super().combine(predictions, step, guided, memory)
        prompt = predictions[Branch()]
        x_t = step.alpha * prompt.x0 + step.sigma * prompt.eps
        return Guided((x_t - step.sigma * plain.eps) / step.alpha, plain.eps), memory


@planted("scale_one_is_off")
class ReadsTheScaleAsS(ClassifierFreeGuidance):
    """Whatever its form says."""

    form: str = "paper"

    def pulls(self, step):
        return {branch: pull - 1 for branch, pull in super().pulls(step).items()}


@planted("uses_the_negatives_that_it_claims")
class IgnoresNegatives(NegativePrompt):
    """Asks for negatives and drops them."""

    def combine(self, predictions, step, guided, memory):
        kept = {branch: p for branch, p in predictions.items() if branch.text != "negative"}
        return next(iter(kept.values())), memory


@planted("asks_for_what_there_is")
class AsksForNothing(Guidance):
    """No branch near the end."""

    name = "asks_for_nothing"

    def branches(self, step):
        return ClassifierFreeGuidance().branches(step) if step.t > 0.3 else []

    def combine(self, predictions, step, guided, memory):
        if not predictions:
            return guided, memory
        return ClassifierFreeGuidance().combine(predictions, step, guided, memory)


@planted("exact_on_a_point")
class NoisyLastStep(DDPM):
    """Adds fresh noise at the last step, too."""

    def levels(self, interval):
        kept, fresh = super().levels(interval)
        return kept, fresh or 0.1


@planted("ends_in_the_data")
class TooMuchNoise(DDPM):
    """The standard deviation where the variance belongs."""

    def levels(self, interval):
        kept, fresh = super().levels(interval)
        return kept, math.sqrt(fresh)


@planted("of_its_order")
class ClaimsTooMuch(DDIM):
    """An Euler step that calls itself of second order."""

    order = 2


@planted("walks_back_up")
class OnlyFalls(DDIM):
    """Stays where it is on the way up."""

    def run(self, denoise, schedule, x, times, noise):
        for step in super().run(denoise, schedule, x, times, noise):
            yield step if times[0] > times[-1] else attrs.evolve(step, x=x)


@planted("a_step_for_each_interval")
class SkipsTheLast(DDIM):
    """Ends one step before the end."""

    def run(self, denoise, schedule, x, times, noise):
        yield from list(super().run(denoise, schedule, x, times, noise))[:-1]


@planted("a_step_for_each_interval")
class NeverEnds(Sampler):
    """Goes on with the last step."""

    name = "never_ends"

    def run(self, denoise, schedule, x, times, noise):
        for step in DDIM().run(denoise, schedule, x, times, noise):
            yield step
        while True:
            yield step


@planted("start_untouched")
class InPlace(DDIM):
    """Overwrites the start that it was given."""

    def run(self, denoise, schedule, x, times, noise):
        yield from super().run(denoise, schedule, x.mul_(1.0001), times, noise)


@planted("batch_independent", "exact_on_a_point")
class CentredOverTheBatch(DDIM):
    """Takes away a part of the mean over the batch at each step."""

    def run(self, denoise, schedule, x, times, noise):
        for step in super().run(denoise, schedule, x, times, noise):
            shifted = step.x - 0.01 * step.x.mean(dim=0, keepdim=True)
            yield SampleStep(index=step.index, t=step.t, x=shifted, x0=step.x0)


@planted("exact_on_a_point")
class Renoised(DDIM):
    """Noises the last estimate again, with alpha and sigma of the time before."""

    def run(self, denoise, schedule, x, times, noise):
        for step in super().run(denoise, schedule, x, times, noise):
            alpha, sigma = schedule.alpha_sigma(times[step.index] * 0.01)
            again = noised(step.x, step.x0, alpha, sigma)
            yield SampleStep(index=step.index, t=step.t, x=again.to(x), x0=step.x0)


@pytest.mark.parametrize(("component", "laws"), PLANTED)
def test_is_caught_by_name(component, laws):
    with pytest.raises(LawsBroken) as broken:
        conformance.check(component, draws=0)
    caught = [failure.law.name for failure in broken.value.failures]
    assert set(laws) <= set(caught)
    for failure in broken.value.failures:
        said = str(failure)
        assert f"{component.kind} {component.name} breaks the law {failure.law.name}" in said
        assert all(word in said for word in ("options:", "expected:", "got:"))
