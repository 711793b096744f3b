"""Pictures that say how they were drawn, so that they can be drawn again.

A PNG of `sfumato sample` carries a `Drawing`: prompts, seed, every setting, and the SHA-256 of the
checkpoint and of each picture that went in. `again` makes an `Order` of it, with whatever is to be
different, and `draw` fulfils an order. On the same machine, with the same software, pictures are
equal to the bit; what is no longer what it was is said, or refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs.validators import ge, le

from sfumato import checkpoint, compatibility, document, pictures, ranks, references, runs, settings
from sfumato.errors import ConfigError
from sfumato.experiment import PipelineSettings
from sfumato.interfaces import option, required
from sfumato.pipeline import Pipeline
from sfumato.request import usual_strength

if TYPE_CHECKING:
    from sfumato.plugins import Catalogue
    from sfumato.registry import Registry


MOST = 10_000
"""Pictures of a prompt, and steps, that a PNG may ask for: it may be a stranger's."""


@attrs.frozen(kw_only=True)
class Order:
    """What is to be drawn: `count` pictures of each prompt.

    Attributes:
        run: RUN or RUN@STEP.
        prompts: at least one.
        negative: texts for every prompt.
        count: of pictures of each prompt.
        seed: of the noise.
        steps: of the time grid; None for the run's.
        image: a picture to start from.
        mask: white where that is painted anew.
        strength: the share of the steps that are walked; None for the usual.
        device: as torch names it; None for the CPU.
        overrides: `path=value` texts.
        settings: of the drawing that this one is like, under the overrides; None for the run's.
        inherited: the overrides that are in these settings.
    """

    run: str
    prompts: tuple[str, ...]
    negative: tuple[str, ...] = ()
    count: int = 4
    seed: int = 0
    steps: int | None = None
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None
    device: str | None = None
    overrides: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    inherited: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Read:
    """A picture that was read."""

    path: str = required("as it was given")
    sha256: str = required("of the file")


@attrs.frozen(kw_only=True)
class Weights:
    """A checkpoint that was used."""

    step: int = required("of the run")
    sha256: str = required("of its manifest, which has the hash of each file")


@attrs.frozen(kw_only=True)
class Drawing:
    """What a PNG says of itself."""

    run: str = required("the run, without a step")
    checkpoint: Weights = required("of the run")
    weak: Weights | None = required("of the weaker model, where there is one")
    prompts: tuple[str, ...] = required("a row for each")
    negative: tuple[str, ...] = required("texts for every prompt")
    count: int = required("pictures of each prompt", ge(1), le(MOST))
    seed: int = required("under which picture k is example k", ge(0))
    steps: int = required("of the time grid", ge(1), le(MOST))
    image: Read | None = required("what it started from")
    mask: Read | None = required("what was painted anew")
    strength: float = required("the share of the steps that were walked")
    device: str = required("as torch names it")
    overrides: tuple[str, ...] = required("that are in the settings")
    schedule_mapping: str | None = option(None, "how two schedules were matched")
    settings: dict[str, Any] = required("of the pipeline")
    versions: dict[str, str] = required("of what numbers depend on")


LAID_OVER = tuple(settings.fields(PipelineSettings).keys() - compatibility.TRAINING)
"""The settings that a drawing follows from."""


def draw(order: Order, registry: Registry, out: Path | None = None) -> Path | None:
    """Draws an order and returns the PNG: a row for each prompt. Under torchrun the ranks share
    out the pictures; the first writes, and the others return None.

    Args:
        order: what to draw.
        registry: what names in overrides mean.
        out: the PNG; by default a free name among the run's samples.

    Raises:
        ConfigError: the order cannot be fulfilled, or the file not be written.
        CheckpointError: the run or its weights cannot be used.
    """
    laid_over = [] if order.settings is None else _overrides(order.settings)
    engine = ranks.engine(order.device or "cpu")
    overrides = [*laid_over, *order.overrides]
    pipeline = Pipeline.load(order.run, overrides, registry, str(engine.device)).share(engine)
    strength = order.strength
    walked = usual_strength(order.image, order.mask) if strength is None else strength
    plan = pipeline.plan(steps=order.steps, negatives=len(order.negative), strength=walked)
    texts = [prompt for prompt in order.prompts for _ in range(order.count)]
    size = pipeline.settings.picture_size
    image = None if order.image is None else pictures.read(order.image, size)
    mask = None if order.mask is None else pictures.read_mask(order.mask, size)
    with engine.session(), engine.failing_together():
        path = engine.alone(lambda: _writable(out or _free(order)))
        images = pipeline.sample(
            texts,
            negative=[order.negative] * len(texts) if order.negative else None,
            steps=order.steps,
            seed=order.seed,
            image=None if image is None else image.expand(len(texts), -1, -1, -1),
            mask=mask,
            strength=strength,
        )
        if not engine.main:
            return None
        drawing = _drawing(order, pipeline, plan, registry.catalogue)
        pictures.save(pictures.grid(images, columns=order.count), path, attrs.asdict(drawing))
    return path


def again(path: Path, catalogue: Catalogue, **changes: Any) -> Order:
    """The order that leads to the picture of a PNG, but for changes.

    Args:
        path: of the PNG.
        catalogue: what is installed.
        changes: attributes of `Order`; `overrides` come on top of the settings of the picture.
            Where a `run` is named its weights are taken, with a warning if they are others.

    Raises:
        ConfigError: it is no PNG of `sfumato sample`; or the run, its checkpoint or a picture that
            went in is not there, or not what it was.
    """
    drawing = _said(path, catalogue)
    told = changes.pop("run", None)
    run = told or f"{drawing.run}@{drawing.checkpoint.step}"
    _compare_weights(path, drawing.checkpoint, run, catalogue, named=told is not None)
    laid_over = {name: drawing.settings[name] for name in LAID_OVER if name in drawing.settings}
    if drawing.weak is not None:
        weak = f"{references.parted(laid_over['sampling']['weak'])[0]}@{drawing.weak.step}"
        _compare_weights(path, drawing.weak, weak, catalogue)
        laid_over["sampling"] = {**laid_over["sampling"], "weak": weak}
    for name in ("image", "mask"):
        if (was := getattr(drawing, name)) is not None and name not in changes:
            changes[name] = _unchanged(path, was, name)
    kept: tuple[str, ...] = ("prompts", "negative", "count", "seed", "steps", "device")
    if drawing.image is not None:
        kept = (*kept, "strength")
    return Order(
        **{**{name: getattr(drawing, name) for name in kept}, **changes},
        run=run,
        settings=laid_over,
        inherited=drawing.overrides,
    )


def _said(path: Path, catalogue: Catalogue) -> Drawing:
    """What a PNG says of itself; other versions of what numbers depend on are a warning.

    Raises:
        ConfigError: it is no PNG, or says nothing that a drawing follows from.
    """
    facts = pictures.facts(path)
    if not facts.keys() >= {"checkpoint", "settings", "versions"}:
        problem = "does not say from which checkpoint, and with what settings, it was drawn"
        remedy = "give a PNG that `sfumato sample` of this version has made"
        raise ConfigError(problem, place=str(path), remedy=remedy)
    drawing = settings.structure(document.node(facts, str(path)), Drawing, catalogue)
    was, now = drawing.versions, runs.versions()
    changed = [
        f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name]
    ]
    if changed:
        warnings.warn(f"not bit for bit: {path} was drawn with {', '.join(changed)}", stacklevel=3)
    return drawing


def _drawing(
    order: Order, pipeline: Pipeline, plan: compatibility.Plan, catalogue: Catalogue
) -> Drawing:
    run, _ = references.parted(order.run)
    assert pipeline.checkpoint is not None
    return Drawing(
        run=str(run),
        checkpoint=_weights(pipeline.checkpoint),
        weak=None if pipeline.weak is None else _weights(pipeline.weak.path),
        prompts=order.prompts,
        negative=order.negative,
        count=order.count,
        seed=order.seed,
        steps=plan.steps,
        image=None if order.image is None else _read(order.image),
        mask=None if order.mask is None else _read(order.mask),
        strength=plan.strength,
        device=str(pipeline.device),
        overrides=(*order.inherited, *order.overrides),
        schedule_mapping=plan.mapping,
        settings=settings.plain(pipeline.settings, catalogue),
        versions=runs.versions(),
    )


def _overrides(laid_over: Mapping[str, Any]) -> list[str]:
    """Settings as texts that put each slot in its place whole; JSON is YAML."""
    return [f"{name}={json.dumps(value)}" for name, value in laid_over.items()]


def _writable(path: Path) -> Path:
    pictures.check_writable(path)
    return path


def _free(order: Order) -> Path:
    """Where a picture goes that nobody gave a place."""
    folder = runs.Run.open(references.parted(order.run)[0]).outputs("samples")
    words = re.sub(r"\W+", "-", order.prompts[0].lower()).strip("-")[:60] or "picture"
    return runs.free_path(folder / f"{words}-{order.seed}.png")


def _weights(path: Path) -> Weights:
    return Weights(step=checkpoint.facts(path)["step"], sha256=checkpoint.identity(path))


def _read(path: Path) -> Read:
    return Read(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def _unchanged(path: Path, was: Read, name: str) -> Path:
    """Raises ConfigError unless a picture that went in is there, and what it was."""
    remedy = f"give the picture with --{name}"
    try:
        now = _read(Path(was.path))
    except OSError as error:
        problem = f"its {name} {was.path} cannot be read: {error.strerror}"
        raise ConfigError(problem, place=str(path), remedy=remedy) from error
    if now != was:
        problem = f"its {name} {was.path} is not the same any more (another SHA-256)"
        raise ConfigError(problem, place=str(path), remedy=remedy)
    return Path(was.path)


def _compare_weights(
    path: Path, was: Weights, run: str, catalogue: Catalogue, *, named: bool = False
) -> None:
    """Raises ConfigError where the weights of a run are not those that drew a picture; where the
    run was `named` for it, that is a warning.
    """
    try:
        now = checkpoint.identity(runs.Stored.find(run, "", catalogue).path)
    except ConfigError as error:
        if named:
            raise
        remedy = f"sfumato sample RUN --like {path} draws with the weights of another"
        raise ConfigError(f"was drawn by {run}: {error}", place=str(path), remedy=remedy) from None
    if now == was.sha256:
        return
    problem = f"{run} does not have the weights any more that drew {path} (another SHA-256)"
    if not named:
        remedy = f"sfumato sample RUN --like {path} draws with those that a run has now"
        raise ConfigError(problem, remedy=remedy)
    warnings.warn(f"{run} does not have the weights that drew {path}", stacklevel=3)
