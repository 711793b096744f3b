"""Answers the questions that `studies` asks: sample, measure, draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from sfumato import ConfigError, DataError, Finding, measured, measured_mean
from sfumato_metrics import figures
from sfumato_metrics.features import embeddings, joint_encoder
from sfumato_metrics.metrics import DescribedShapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from sfumato import Data, Guidance, Measured, Metric, Pipeline
    from sfumato_metrics.studies import ClipSimilarityStudy, GuidanceStudy, NegativePromptStudy

_ROWS, _PER_CELL, _COLUMNS = 8, 4, 16
"""How much of what was sampled a picture shows."""


def full_captions(data: Data, count: int) -> dict[str, int]:
    """The first `count` distinct captions of the test split that leave nothing out, and where.

    Raises:
        DataError: the test split has fewer.
    """
    split = data.split("test")
    places: dict[str, int] = {}
    for index in range(len(split)):
        places.setdefault(split.caption(index), index)
    if isinstance(data, DescribedShapes):
        said = {caption: len(data.attributes(caption)) for caption in places}
        most = max(said.values(), default=0)
        places = {caption: place for caption, place in places.items() if said[caption] == most}
    if len(places) < count:
        raise DataError(
            f"the test split has {len(places)} distinct full captions, and {count} are needed",
            remedy="hold more examples out, or ask for fewer",
        )
    return dict(list(places.items())[:count])


def clip_similarity(study: ClipSimilarityStudy, pipeline: Pipeline) -> Finding:
    """Cosines of captions (rows) and pictures (columns), both sorted by caption."""
    encoder = joint_encoder("run", pipeline, "study.clip_similarity")
    data = pipeline.settings.given_data()
    places = dict(sorted(full_captions(data, study.count).items()))
    split = data.split("test")
    images = torch.stack([split.example(index)[0] for index in places.values()])
    texts, pictures = embeddings(encoder, list(places), images)
    matrix = texts @ pictures.T
    best = matrix.argmax(dim=0)
    retrieval = measured_mean(best == torch.arange(len(best)))
    return Finding(
        numbers={"clip_retrieval": retrieval},
        details={
            "captions": list(places),
            "examples": list(places.values()),
            "cosines": matrix.tolist(),
        },
        picture=figures.heat_map(
            images,
            list(places),
            matrix,
            f"{retrieval.value:.0%} of the pictures find their own caption",
        ),
    )


def guidance(study: GuidanceStudy, pipeline: Pipeline, seed: int) -> Finding:
    """The metrics at each scale; the picture has a row for a prompt and a column for a scale."""
    prompts = list(full_captions(pipeline.settings.given_data(), study.prompts))
    texts = [prompt for prompt in prompts for _ in range(study.samples)]
    numbers: dict[str, dict[str, Measured]] = {}
    shown: list[Tensor] = []
    for scale in study.scales:
        images = pipeline.sample(
            texts, seed=seed, guidance=scaled(pipeline.settings.guidance, scale)
        )
        found = numbers[f"{scale:g}"] = {}
        for metric in study.metrics:
            found.update(of_pictures(metric, pipeline, images, texts))
        shown.append(_by_prompt(images, study.samples)[:_ROWS, :_PER_CELL])
    return Finding(
        numbers={"guidance": numbers},
        details={"prompts": prompts, "samples": study.samples, "seed": seed},
        picture=figures.picture_table(
            torch.stack(shown, dim=1),
            rows=prompts[:_ROWS],
            together=_ROWS,
            columns=[_heading(scale, found) for scale, found in numbers.items()],
            title="The same noise at rising guidance scale",
        ),
    )


def scaled(guidance: Guidance, scale: float) -> Guidance:
    """This guidance at another scale.

    Raises:
        ConfigError: it has no scale, or one that is not s.
    """
    kind = type(guidance)
    if not attrs.has(kind) or "scale" not in attrs.fields_dict(kind):
        raise ConfigError(
            f"the guidance {guidance.name!r} has no option 'scale' to vary",
            place="study.guidance",
            remedy="study a pipeline with a guidance such as cfg, or leave this study out",
        )
    other: Guidance = attrs.evolve(cast("Any", guidance), scale=scale)
    if other.w not in (None, scale - 1):
        raise ConfigError(
            f"the guidance {guidance.name!r} reads its scale as w, and scales are s = w + 1 here",
            place="study.guidance",
            remedy="use the form that reads s (--set guidance.form=imagen)",
        )
    return other


def _heading(scale: str, found: Mapping[str, Measured]) -> str:
    lines = [f"{key.removesuffix('_accuracy')} {one.value:.2f}" for key, one in found.items()]
    return "\n".join([f"scale {scale}", *lines])


def _by_prompt(images: Tensor, samples: int) -> Tensor:
    """(prompts x samples, 3, H, W) as (prompts, samples, 3, H, W)."""
    return images.reshape(-1, samples, *images.shape[1:])


def negative_prompt(study: NegativePromptStudy, pipeline: Pipeline, seed: int) -> Finding:
    """The share of the negative's color without and with it; the picture has rows in pairs."""
    refuse_what_cannot_be_measured(study, pipeline)
    texts = [prompt for prompt in study.prompts for _ in range(study.samples)]
    arms = {
        "without": pipeline.sample(texts, seed=seed),
        "with": pipeline.sample(texts, negative=study.negative, seed=seed, guidance=study.guidance),
    }
    color = {arm: color_share(study, pipeline, images) for arm, images in arms.items()}
    shape = {
        f"shape_accuracy_{arm}": of_pictures(study.metric, pipeline, images, texts)[
            "shape_accuracy"
        ]
        for arm, images in arms.items()
    }
    pairs = [_by_prompt(images, study.samples) for images in arms.values()]
    shown = torch.stack(pairs, dim=1)[:_ROWS, :, :_COLUMNS].flatten(0, 1)
    looked_at = shown.flatten(0, 1)
    state = study.metric.build(pipeline)
    state.update(looked_at, [study.negative] * len(looked_at))
    shares = [state.compute(torch.tensor([k]))["color_accuracy"] for k in range(len(looked_at))]
    framed = torch.tensor(shares).reshape(shown.shape[:2]) == 1
    labels = [(prompt, f"negative: {study.negative}") for prompt in study.prompts[:_ROWS]]
    return Finding(
        numbers={"negative_prompt": {**color, **shape}},
        details={
            "prompts": list(study.prompts),
            "negative": study.negative,
            "samples": study.samples,
            "seed": seed,
        },
        picture=figures.picture_table(
            shown[:, None],
            rows=[label for pair in labels for label in pair],
            together=2,
            columns=[
                "shape as prompted: {:.0%} without, {:.0%} with".format(
                    *(one.value for one in shape.values())
                )
            ],
            title=f"Pictures in the color of {study.negative!r} (framed), from the same noise: "
            f"{color['without'].value:.0%} without it as negative prompt, "
            f"{color['with'].value:.0%} with it",
            framed=framed[:, None],
        ),
    )


def refuse_what_cannot_be_measured(study: NegativePromptStudy, pipeline: Pipeline) -> None:
    """Tries the metric on blank pictures, before any are sampled.

    Raises:
        ConfigError: it finds no color in the negative prompt, or no shape in the prompts.
    """
    for attribute, option, prompts in (
        ("color", "negative", [study.negative]),
        ("shape", "prompts", study.prompts),
    ):
        blank = torch.zeros(len(prompts), 3, *pipeline.settings.given_data().picture_size)
        if f"{attribute}_accuracy" not in of_pictures(study.metric, pipeline, blank, prompts):
            said = ", ".join(map(repr, prompts))
            raise ConfigError(
                f"the metric {study.metric.name!r} finds no {attribute} in {said}",
                place="study.negative_prompt",
                remedy=f"name a {attribute} of the data in `{option}`, and use a metric such as "
                "shape_attributes",
            )


def color_share(study: NegativePromptStudy, pipeline: Pipeline, images: Tensor) -> Measured:
    """The share of the pictures that show the color of the negative prompt."""
    negatives = [study.negative] * len(images)
    return of_pictures(study.metric, pipeline, images, negatives)["color_accuracy"]


def of_pictures(
    metric: Metric, pipeline: Pipeline, images: Tensor, prompts: Sequence[str]
) -> Mapping[str, Measured]:
    """What a metric says of these pictures."""
    state = metric.build(pipeline)
    state.update(images, prompts)
    return measured(state, len(prompts))
