"""Runs out of foreign folders, and foreign folders out of runs.

A `layout` knows how another program lays a system out; here what it reads is held against the
modules that it is for, and becomes a run folder, whole or not at all. Nothing is built before every
name and shape fits.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import torch

from sfumato import checkpoint, compatibility, document, plugins, references, settings
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.experiment import Experiment, PipelineSettings, Trained
from sfumato.interfaces import Adapter
from sfumato.pipeline import Pipeline
from sfumato.records import Snapshot
from sfumato.registry import Registry
from sfumato.runs import Run, Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from sfumato.interfaces import Layout
    from sfumato.plugins import Catalogue

STAGE = "import"
"""What the checkpoint of an imported run names as its stage."""


def import_run(
    folder: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    layout: str | None = None,
    catalogue: Catalogue | None = None,
) -> Run:
    """Makes a run of what a foreign folder holds.

    Args:
        folder: the foreign one, which stays as it is.
        out: the run folder, which must not be there or be empty.
        name: of the experiment; by default that of the folder.
        layout: which; by default the one that recognises the folder.
        catalogue: the layouts and the components; by default all that are installed.

    Raises:
        CheckpointError: the folder cannot be read, or its weights do not fit.
        ConfigError: no layout, or several, recognise it; the run folder cannot be written.
    """
    folder, out = Path(folder), Path(out)
    catalogue = catalogue or plugins.load()
    name = name or folder.resolve().name
    chosen = find_layout(folder, catalogue, layout)
    snapshot = chosen.read(folder)
    tree = document.node({"name": name, **snapshot.settings}, f"{chosen.name} {folder}")
    experiment = settings.structure(tree, Experiment, catalogue)
    check(experiment, snapshot, str(folder))
    with _whole(out) as draft:
        run = Run.create(draft, experiment, catalogue)
        trained = Trained(
            step=0,
            stage=STAGE,
            slots=tuple(snapshot.states),
            text_dropout=None,
            noise_schedule=experiment.noise_schedule,
            text_encoder=experiment.text_encoder,
            denoiser=experiment.denoiser,
            autoencoder=experiment.autoencoder,
        )
        facts = settings.plain(trained, catalogue)
        checkpoint.write(run.checkpoint(0), snapshot.states, snapshot.files, facts)
        run.update(status="completed", origin="imported", **_record(experiment, snapshot, chosen))
    return Run(out)


def export_run(
    run: str | Path,
    folder: str | Path,
    *,
    layout: str,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> None:
    """Lays a checkpoint of a run out as another program does; an adapter becomes a file of its own,
    beside the weights that it goes around.

    Args:
        run: the run folder, or a packaged model, of which the newest checkpoint is taken; or
            RUN@STEP.
        folder: the foreign one, which must not be there or be empty.
        layout: which.
        overrides: `path=value` texts, as for sampling.
        registry: what names in overrides mean; by default the packaged one.

    Raises:
        CheckpointError: the run has no weights that can be read.
        ConfigError: something has no counterpart there; the folder cannot be written.
    """
    registry = registry or Registry.load()
    opened, catalogue = Run.open(references.parted(run)[0]), registry.catalogue
    chosen: Layout = cast("Any", catalogue.find("layout", layout))()
    tree, name = opened.settings(), opened.path.name
    as_trained = registry.structure(tree, name)
    wanted = registry.structure(registry.override(tree, overrides), name)
    stored = Stored.find(run, "", catalogue)
    trained = stored.trained
    compatibility.check_overrides(as_trained, wanted)
    compatibility.check_weights(trained, wanted)
    if "denoiser" not in trained.slots:
        remedy = "finish the run before exporting it"
        raise ConfigError("its denoiser was never trained", place=str(run), remedy=remedy)
    states, files = checkpoint.read(stored.path)
    held: dict[str, Mapping[str, Tensor]] = dict(states)
    beside: Mapping[str, bytes] = {}
    if isinstance(wanted.denoiser, Adapter):
        held["denoiser"], beside = wanted.denoiser.parted(states["denoiser"])
        wanted = attrs.evolve(wanted, denoiser=wanted.denoiser.base)
    snapshot = Snapshot(settings=stated(wanted), states=held, files=files)
    with _whole(Path(folder)) as draft:
        draft.mkdir(parents=True)
        chosen.write(snapshot, draft)
        for file, content in beside.items():
            (draft / file).write_bytes(content)


def stated(pipeline: PipelineSettings) -> dict[str, Any]:
    """The settings of a snapshot: of a pipeline alone, all written out, with the pictures' size."""
    sampling = attrs.evolve(pipeline.sampling, size=pipeline.picture_size)
    named = {name: getattr(pipeline, name) for name in settings.fields(PipelineSettings)}
    return {name: settings.plain(value) for name, value in {**named, "sampling": sampling}.items()}


def find_layout(folder: Path, catalogue: Catalogue, name: str | None = None) -> Layout:
    """The layout of this name, or the one that recognises the folder.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", place=str(folder))
    known = [name] if name else catalogue.names("layout")
    found: list[Layout] = [cast("Any", catalogue.find("layout", one))() for one in known]
    fitting = found if name else [one for one in found if one.recognises(folder)]
    if len(fitting) != 1:
        if fitting:
            problem = "several layouts recognise it"
            remedy = f"name one with --layout: {', '.join(one.name for one in fitting)}"
        else:
            marks = ", ".join(f"{one.mark} ({one.name})" for one in found if one.mark)
            problem = f"no layout recognises it: there is no {marks or 'mark of one'}"
            names = ", ".join(one.name for one in found)
            remedy = f"give the folder that holds it, or name a layout with --layout: {names}"
        raise ConfigError(problem, place=str(folder), remedy=remedy)
    return fitting[0]


def check(experiment: Experiment, snapshot: Snapshot, place: str) -> None:
    """Raises ConfigError where components do not fit each other, CheckpointError where weights do
    not fit them, before a weight is read. Modules take no memory: they are built to be compared.
    """
    compatibility.check_assembly(experiment)
    try:
        with torch.device("meta"):
            modules = Pipeline(experiment, snapshot.files).modules()
    except RuntimeError as error:
        problem = f"describes what cannot be built: {str(error).splitlines()[0]}"
        raise CheckpointError(problem, place=place) from error
    for slot, module in modules.items():
        checkpoint.check_fit(module, snapshot.states.get(slot, {}), f"{place} ({slot})")
    for slot, state in snapshot.states.items():
        if slot not in modules:
            raise CheckpointError(f"holds weights for {slot!r}, which is no slot", place=place)
        checkpoint.check_finite(state, f"{place} ({slot})")


def _record(experiment: Experiment, snapshot: Snapshot, layout: Layout) -> dict[str, Any]:
    """What `run.json` says of an imported run."""
    return {
        "parameters": {
            slot: sum(tensor.numel() for tensor in state.values())
            for slot, state in snapshot.states.items()
        },
        "imported": {
            "layout": layout.name,
            "prediction": experiment.denoiser.prediction,
            "noise_schedule": settings.plain(experiment.noise_schedule),
            "text_dropout": "unknown",
            **snapshot.facts,
            "sources": dict(snapshot.sources),
            "left_out": list(snapshot.remarks),
        },
    }


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name at the end, or is removed on an error.

    Raises:
        ConfigError: there is something at `path`, or it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        remedy = "choose another, or remove it"
        raise ConfigError("is not empty", place=str(path), remedy=remedy)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
    except SfumatoError as error:  # nobody knows the draft
        place = error.place.replace(str(draft), str(path))
        raise type(error)(error.problem, place=place, remedy=error.remedy) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
