"""The content key of a stage: a hash of all that it reads.

A run is a function of settings, seed, data, software, device and world size (see `stage`), and a
stage of the part of them that its objective reads. Two runs that differ elsewhere, in the guidance,
say, or for a CLIP in the noise schedule, end this stage in the same weights and the same log; so
it need not be trained twice.

    key(stage) = hash(settings of the stage, and of the slots that its objective reads,
                      the data and its fingerprint, the seed,
                      the weights that those slots had at the first step of the run,
                      the keys of earlier stages that moved one of them,
                      sources, versions, device, threads, ranks)

Equal keys mean equal weights as far as the device computes the same again: a CPU does, where it is
known by the instructions that torch uses there; on a GPU `compile` and cuDNN may choose kernels by
timing them, and weights may then differ by what such kernels round otherwise.

Whatever is not known to be equal makes another key: a stage is trained once too often rather than
taken where it differs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import checkpoint, content, lock, runs, settings
from sfumato.experiment import PipelineSettings
from sfumato.interfaces import Component

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sfumato.engine import Single
    from sfumato.experiment import Experiment, Stage
    from sfumato.pipeline import Pipeline
    from sfumato.plugins import Catalogue
    from sfumato.split import Split

COMPUTING = ("accelerate", "datasets", "diffusers", "peft")
"""Distributions that components may compute with, beside those of `runs.versions`."""


def initial(experiment: Experiment, pipeline: Pipeline) -> dict[str, str]:
    """A hash of the weights and files of each slot that a stage reads.

    Args:
        experiment: says what is read.
        pipeline: as it is at the first step of the run.
    """
    read = set().union(*(_reads(stage) for stage in experiment.stages.values()))
    found = {
        slot: content.digest(module.state_dict(), getattr(module, "files", None))
        for slot, module in pipeline.modules().items()
        if slot in read
    }
    if "sampling" in read and pipeline.weak is not None:
        files = json.dumps(checkpoint.hashes(pipeline.weak.path), sort_keys=True)
        found["sampling"] = hashlib.sha256(files.encode()).hexdigest()
    return found


def device(engine: Single) -> dict[str, Any]:
    """What the bits of a result depend on beside settings and software."""
    if engine.device.type == "cuda":
        return {"device": torch.cuda.get_device_name(engine.device)}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": f"{engine.device.type} {instructions}", "threads": torch.get_num_threads()}


def surroundings(engine: Single) -> dict[str, Any]:
    """`device`, and the software that computes there beside plugins."""
    return {
        "core": lock.digest(Path(__file__).parent),
        "versions": {**runs.versions(), **_versions()},
        **device(engine),
    }


def sources(values: Iterable[Any], catalogue: Catalogue) -> list[str]:
    """A hash of the source of each plugin that has brought one of the components, at any depth."""
    classes = {cls for value in values for cls in _components(value)}
    found = {offer.plugin.source for offer in catalogue.offers if offer.component in classes}
    return sorted(map(lock.digest, found))


def keys(
    experiment: Experiment,
    catalogue: Catalogue,
    split: Split,
    engine: Single,
    weights: Mapping[str, str],
) -> dict[str, str]:
    """The key of each stage, by its name.

    Args:
        experiment: whose stages they are.
        catalogue: what is installed.
        split: that is trained on.
        engine: that it runs on.
        weights: what `initial` said.
    """
    shared = {
        **surroundings(engine),
        "ranks": engine.ranks,
        "parallel": experiment.parallel,
    }
    data = [settings.plain(experiment.data, catalogue), split.fingerprint()]
    found: dict[str, str] = {}
    for name, stage in experiment.stages.items():
        read = _reads(stage)
        slots = {slot: getattr(experiment, slot) for slot in sorted(read)}
        told = {
            "name": name,
            "stage": _stage(experiment, stage),
            "slots": settings.plain(slots, catalogue),
            "data": data,
            "seed": experiment.seed,
            "size": experiment.picture_size if "denoiser" in read else None,
            "weights": {slot: weights[slot] for slot in sorted(read & weights.keys())},
            "earlier": [found[one] for one in found if _trains(experiment, one) in read],
            "sources": sources([*slots.values(), stage, experiment.data], catalogue),
            **shared,
        }
        text = json.dumps(told, sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _reads(stage: Stage) -> frozenset[str]:
    """The slots that a stage reads, its own too; by default all of a pipeline."""
    reads = stage.objective.reads
    slots = frozenset(settings.fields(PipelineSettings)) - {"data"} if reads is None else reads
    return slots | {stage.objective.trains}


def _trains(experiment: Experiment, stage: str) -> str:
    return experiment.stages[stage].objective.trains


def _stage(experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Its settings; where a cache lies is nothing to it, nor how often checkpoints are written,
    unless it goes back to them.
    """
    plain = {**settings.plain(stage), "cache": stage.cache is not None}
    if stage.nonfinite == "rollback":
        plain["every"] = experiment.checkpoints.every
    return plain


def _versions() -> dict[str, str]:
    found = {}
    for name in COMPUTING:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _components(value: Any) -> Iterator[type[Component]]:
    if isinstance(value, Component):
        yield type(value)
    cls: Any = type(value)
    if attrs.has(cls):
        for name in settings.fields(cls):
            yield from _components(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _components(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _components(item)
