"""One request on one pipeline: down from noise to pictures, or up from pictures to their noise.

Here the parts meet: what is asked for (`request`), what it needs (`compatibility.Plan`), where it
starts and what it keeps (`editing`), who predicts (`sampling`), and the noise that belongs to each
example (`randomness`). It knows nothing about files.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato import editing, trajectory
from sfumato.errors import ConfigError
from sfumato.randomness import Draw
from sfumato.sampling import GuidedDenoiser, Texts, reverse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sfumato.interfaces import Denoise
    from sfumato.pipeline import Pipeline
    from sfumato.records import SampleStep
    from sfumato.request import Request


class Walk:
    """The way of the B pictures of one request, in one batch."""

    def __init__(self, pipeline: Pipeline, request: Request) -> None:
        """Plans it, and says by a warning where schedules are matched.

        Raises:
            ConfigError: the request does not fit the pipeline.
        """
        if pipeline.trained is not None and "denoiser" not in pipeline.trained:
            raise ConfigError(
                "the denoiser of this run was never trained",
                remedy="finish the run before drawing from it",
            )
        self.pipeline, self.request = pipeline, request
        counts = {len(texts) for texts in request.negatives}
        if len(counts) > 1:
            raise ConfigError(
                f"prompts with {' and '.join(map(str, sorted(counts)))} negatives walk apart",
                remedy="draw them with `sample`, which does so",
            )
        self.plan = pipeline.plan(
            steps=request.steps,
            guidance=request.guidance,
            negatives=counts.pop(),
            strength=request.strength,
        )
        if self.plan.mapping is not None:
            warnings.warn(self.plan.mapping, stacklevel=3)

    @torch.no_grad()
    def down(self) -> Iterator[SampleStep]:
        """The steps of the reverse process, in latents."""
        pipeline, plan, request = self.pipeline, self.plan, self.request
        schedule, shape = pipeline.settings.noise_schedule, pipeline.latent_shape
        examples = request.examples.to(pipeline.device)
        x0 = None if request.image is None else self._latents(request.image)
        painted = None if request.mask is None else self._painted(request.mask)

        def draw(index: int) -> Tensor:
            here = Draw(seed=request.seed, stream="sample", examples=examples, index=index)
            return here.normal("noise", shape)

        if request.start is None:
            x = editing.noised_start(draw(0), plan, x0, painted)
        else:
            x = _checked_start(request.start, (len(examples), *shape)).to(pipeline.device).float()
        guided = self.denoise(plan.times)
        denoise: Denoise = guided
        if x0 is not None and painted is not None:
            denoise = editing.keeping(denoise, schedule, x0, painted)
        calls = itertools.count(1)
        sampler, times = pipeline.settings.sampler, plan.times
        for step in reverse(sampler, denoise, schedule, x, times, lambda: draw(next(calls))):
            guided.index = step.index + 1
            pipeline.watchers.notify("sfumato_on_sample_step", step=step)
            pipeline.between_steps()
            yield step

    @torch.no_grad()
    def up(self) -> Tensor:
        """X at the first time, (B, C, H, W), from which `down` leads to the request's image."""
        pipeline, plan = self.pipeline, self.plan
        schedule = pipeline.settings.noise_schedule
        editing.check_inversion(plan)
        times = trajectory.rising(plan.times, schedule)
        assert self.request.image is not None
        x = self._latents(self.request.image) * editing.shrinking(plan, times)
        guided = self.denoise(times)
        last, sampler = len(times) - 2, pipeline.settings.sampler
        guided.index = last  # the interval is called alike in both directions
        for step in reverse(sampler, guided, schedule, x, times, editing.no_noise):
            guided.index, x = max(last - step.index - 1, 0), step.x
        return x

    def denoise(self, times: Tensor) -> GuidedDenoiser:
        """What a sampler calls `denoise` on its way along `times`; texts are encoded here."""
        pipeline, request = self.pipeline, self.request
        null = pipeline.text_encoder.null(len(request.prompts))
        texts = Texts(
            prompt=pipeline.encode(request.prompts),
            null=null,
            negatives=[pipeline.encode(texts) for texts in zip(*request.negatives, strict=True)],
        )
        schedule = pipeline.settings.noise_schedule
        return GuidedDenoiser(pipeline.models(), self.plan.guidance, schedule, texts, times)

    def _latents(self, image: Tensor) -> Tensor:
        pipeline = self.pipeline
        checked = editing.checked_image(image, pipeline.settings.picture_size)
        return pipeline.autoencoder.encode(checked.to(pipeline.device, pipeline.dtype)).float()

    def _painted(self, mask: Tensor) -> Tensor:
        settings = self.pipeline.settings
        size, factor = settings.picture_size, settings.autoencoder.factor
        return editing.latents_painted(mask.to(self.pipeline.device), size, factor)


def _checked_start(start: Tensor, shape: tuple[int, ...]) -> Tensor:
    if start.shape != shape:
        raise ConfigError(f"start has shape {tuple(start.shape)}, expected {shape}")
    if not bool(start.isfinite().all()):
        raise ConfigError("start holds values that are not finite")
    return start
