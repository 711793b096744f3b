"""Settings of the studies that explain the method from a model's own numbers.

The answers stand in `walking` and `geometry` and their pictures in `charts` and `figures`, which
need torch and matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import attrs
from attrs.validators import ge, gt, le

from sfumato import Study, option

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato import Finding, Pipeline

PROMPTS = "what is drawn; empty: captions of the test split that leave nothing out"


@attrs.frozen(kw_only=True)
class DenoisingPath(Study):
    """What does the model believe on its way from noise to a picture?

    For a few prompts x_t and, below it, the estimate of x0 that led there, at each step that fits.
    `denoising_path` has `half_way`: the time at which the estimate has come half of the way from
    the first one to the picture, in root mean square distance, in the mean over the prompts.

    References:
        Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239, Figure 6
        Denoising Diffusion Implicit Models, 2020, arXiv:2010.02502, Equation 9 (the estimate)
    """

    name = "denoising_path"
    explains: ClassVar[bool] = True

    prompts: tuple[str, ...] = option((), PROMPTS)
    count: int = option(4, "captions, where no prompts are given", ge(1))
    columns: int = option(13, "steps that the picture shows, spread over all of them", ge(2))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two captions."""
        return cls(count=2)

    def check(self, pipeline: Pipeline) -> None:
        """Needs prompts, or data with enough captions."""
        from sfumato_metrics.walking import chosen

        chosen(self.prompts, self.count, pipeline)
        pipeline.plan()

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Walks once, and keeps each step."""
        from sfumato_metrics.walking import denoising_path

        return denoising_path(self, pipeline, seed)


@attrs.frozen(kw_only=True)
class GuidanceGeometry(Study):
    """How do the predictions that guidance combines lie to each other?

    Along the pipeline's own paths, at each step, the angle between eps_cond and eps_uncond, and the
    root mean square of eps_cond - eps_uncond over the elements: means over the prompts with 95 %
    intervals. Beside it, for one noised picture at one time, the plane through eps_uncond, eps_cond
    and the guided eps, in which all three lie exactly, with the true noise, which is known there.

    A linear guidance puts the three on one line; then the second direction of the plane is that of
    the true noise, which so lies in it too.

    References:
        Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598
        Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models, 2024,
        arXiv:2410.02416 (directions along and across the prediction)
    """

    name = "guidance_geometry"
    explains: ClassVar[bool] = True

    prompts: tuple[str, ...] = option((), PROMPTS)
    count: int = option(8, "captions, where no prompts are given", ge(1))
    time: float = option(0.6, "t of the plane; the nearest of the grid is taken", gt(0), le(1))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Three captions."""
        return cls(count=3)

    def check(self, pipeline: Pipeline) -> None:
        """Needs prompts, or data with enough captions, and a model that knows the null condition
        where its guidance asks for nothing else.
        """
        from sfumato_metrics.geometry import Watched
        from sfumato_metrics.walking import chosen

        chosen(self.prompts, self.count, pipeline)
        pipeline.plan(guidance=Watched(pipeline.settings.guidance))

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Walks once for the angles, and asks the model once more for the plane."""
        from sfumato_metrics.geometry import guidance_geometry

        return guidance_geometry(self, pipeline, seed)


@attrs.frozen(kw_only=True)
class NegativeEffect(Study):
    """Where does a negative prompt change a picture?

    The same noise without and with it, and the difference, each pixel as bright as it changed.
    `negative_effect` has `distance`: the root mean square difference in the mean over the pictures.
    Whether what the negative names is gone asks `negative_prompt`.

    References:
        Compositional Visual Generation with Composable Diffusion Models, 2022, arXiv:2206.01714
    """

    name = "negative_effect"
    explains: ClassVar[bool] = True

    prompts: tuple[str, ...] = option((), PROMPTS)
    negatives: tuple[str, ...] = option(
        (),
        "one for all prompts or one for each; empty: a color that the prompt does not name, "
        "where the data has such, else the next prompt",
    )
    count: int = option(8, "captions, where no prompts are given", ge(1))
    positive: float = option(4.0, "s_pos, on the prompt", ge(0))
    negative: float = option(2.0, "s_neg, on the negative prompt", gt(0))

    @classmethod
    def example(cls, folder: Path) -> Self:
        """Two captions."""
        return cls(count=2)

    def check(self, pipeline: Pipeline) -> None:
        """Needs prompts, or data with enough captions, and a model that knows the null condition
        unless s_pos is s_neg + 1.
        """
        from sfumato_metrics.walking import chosen, negatives_for, two_scales

        prompts = chosen(self.prompts, self.count, pipeline)
        negatives_for(prompts, self.negatives, pipeline, "study.negative_effect")
        pipeline.plan(guidance=two_scales(self.positive, self.negative), negatives=1)

    def run(self, pipeline: Pipeline, seed: int) -> Finding:
        """Samples each prompt twice."""
        from sfumato_metrics.walking import negative_effect

        return negative_effect(self, pipeline, seed)
