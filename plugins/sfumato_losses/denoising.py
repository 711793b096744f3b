"""The denoising objective: noise is added in closed form and the model says what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sfumato import Batch, Draw, Losses, Noised, ObjectiveModule, noised, target

if TYPE_CHECKING:
    from torch import Tensor

    from sfumato import Pipeline
    from sfumato_losses.objectives import Denoising


class DenoisingModule(ObjectiveModule):
    """Holds the denoiser; the encoders stay frozen outside."""

    def __init__(self, pipeline: Pipeline, options: Denoising) -> None:
        super().__init__()
        self.denoiser = pipeline.denoiser
        self.options = options
        self.pipeline = pipeline

    def losses(self, batch: Batch, draw: Draw) -> Losses:
        """Losses (B,), and the share of texts that were dropped."""
        pipeline, settings = self.pipeline, self.pipeline.settings
        schedule = settings.noise_schedule
        with torch.no_grad():
            x0, text = pipeline.encoded(batch)
            dropped = draw.uniform("text_dropout") <= self.options.text_dropout
            text = text.replaced(dropped, pipeline.text_encoder.null(len(text)))
        u = draw.uniform("time")
        t = settings.time_sampler.draw(u, batch.rows, batch.total, draw.index, schedule)
        alpha, sigma = schedule.alpha_sigma(t)
        eps, eps_of_input = self._noise(draw, x0)
        x_t = noised(x0, eps_of_input, alpha, sigma)
        state = Noised(x_t=x_t, x0=x0, eps=eps, t=t, alpha=alpha, sigma=sigma)
        output = self.denoiser(state.x_t, t, text)
        prediction = settings.denoiser.prediction
        wanted = target(prediction, x0, eps, alpha, sigma)
        values = settings.loss(output, wanted, state)
        if settings.loss_weight is not None:
            values = values * settings.loss_weight(state, prediction).to(values)
        return Losses(values=values, numbers={"text_dropout": dropped.float()}, t=t)

    def _noise(self, draw: Draw, x0: Tensor) -> tuple[Tensor, Tensor]:
        """What the target knows, and what x_t is made with, like x0 each."""
        eps, options = draw.normal("noise", x0.shape[1:]), self.options
        if options.offset_noise:
            eps = eps + options.offset_noise * draw.normal("offset_noise", (x0.shape[1], 1, 1))
        if not options.input_perturbation:
            return eps, eps
        perturbation = draw.normal("input_perturbation", x0.shape[1:])
        return eps, eps + options.input_perturbation * perturbation
