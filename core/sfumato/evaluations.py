"""Measuring a run again, beside it: other metrics, prompts, components of sampling or noise.

    RUN/evaluations/NAME/  results.json  samples.png  STUDY.png  STUDY.json

`run.json` is never touched. Under torchrun the ranks share out the pictures; as the noise belongs
to the example, pictures and numbers are those of one process.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import checkpoint, evaluation, ranks, runs, settings
from sfumato.errors import ConfigError, cause
from sfumato.pipeline import Pipeline
from sfumato.references import parted
from sfumato.registry import Registry
from sfumato.runs import Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sfumato.experiment import Experiment

RESULTS = "results.json"
HELD_OUT = "held-out captions"


@attrs.frozen(kw_only=True)
class Evaluated:
    """An evaluation that is done.

    Attributes:
        path: its folder.
        record: what `results.json` says.
        ours: whether this process wrote it; among ranks one does.
    """

    path: Path
    record: Mapping[str, Any]
    ours: bool = True

    @property
    def results(self) -> dict[str, Any]:
        """Numbers by name, as in `run.json`."""
        return dict(self.record["results"])


def evaluate(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    metrics: Sequence[str] | None = None,
    studies: Sequence[str] | None = None,
    prompts: Path | Sequence[str] | None = None,
    count: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    registry: Registry | None = None,
    device: str | None = None,
) -> Evaluated:
    """Draws pictures with a run, measures them, and runs studies.

    Args:
        run: as for `Pipeline.load`; it stays as it is but for what comes into `evaluations`.
        overrides: `path=value` texts, as for `Pipeline.load`; `evaluation.` too.
        metrics: names of entries of the registry or of registered components; by default those of
            the run, or none where studies are named.
        studies: likewise.
        prompts: texts, or a file with one a line; by default captions of the held-out split.
        count: of pictures; prompts are taken in their order, from the start again where there are
            too few. By default each given prompt once, else the run's count.
        seed: of all noise; by default the run's.
        out: the folder to write, which must not hold anything; by default a free one in
            `RUN/evaluations` (`evaluations` for a packaged model), named after the overrides.
        registry: by default the packaged one.
        device: as torch names it; by default the GPU where there is one.

    Raises:
        ConfigError: the arguments do not fit the run, or each other; nothing is written.
        CheckpointError: the run or its weights cannot be used.
    """
    registry = registry or Registry.load()
    folder = Run.open(parted(run)[0])
    asked = [*overrides, *_asked(metrics, studies, count)]
    engine = ranks.engine(device)
    began = time.monotonic()
    with engine.session(), engine.failing_together():
        pipeline = Pipeline.load(run, asked, registry, str(engine.device), evaluates=True)
        pipeline.share(engine)
        before, now = _settings(folder, (), registry), _settings(folder, asked, registry)
        texts = _given(prompts, count) or evaluation.held_out(pipeline, now.evaluation)
        if not (now.evaluation.metrics or now.evaluation.studies):
            remedy = "name metrics or studies, such as --metrics clip_score"
            raise ConfigError("nothing is to be measured", place="evaluation", remedy=remedy)
        evaluation.check(pipeline, now.evaluation, texts)
        seed = now.seed if seed is None else seed
        path = engine.alone(lambda: _new_folder(folder, out, overrides))
        record: dict[str, Any] = {
            "run": str(run),
            "checkpoint": _checkpoint(pipeline),
            "seed": seed,
            "prompts": _source(prompts, texts),
            "settings": changed(settings.plain(before), settings.plain(now)),
            "world_size": engine.ranks,
            "versions": runs.versions(),
            "results": {},
            "measured_with": {},
        }
        output = evaluation.Output(
            folder=path, sheet=path / "samples.png", tell=record.update, writes=engine.main
        )
        evaluation.evaluate(pipeline, now.evaluation, texts, seed, output)
        record["seconds"] = round(time.monotonic() - began, 1)
        engine.alone(lambda: _write(path / RESULTS, record))
    return Evaluated(path=path, record=record, ours=engine.main)


def _asked(
    metrics: Sequence[str] | None, studies: Sequence[str] | None, count: int | None
) -> Iterator[str]:
    """Arguments as overrides: what names one of the two lists empties the other."""
    if metrics is not None or studies is not None:
        yield f"evaluation.metrics=[{', '.join(metrics or ())}]"
        yield f"evaluation.studies=[{', '.join(studies or ())}]"
    if count is not None:
        yield f"evaluation.count={count}"


def _settings(run: Run, overrides: Sequence[str], registry: Registry) -> Experiment:
    return registry.structure(registry.override(run.settings(), overrides), run.path.name)


def _given(prompts: Path | Sequence[str] | None, count: int | None) -> list[str] | None:
    """The prompts that were given, `count` of them."""
    if prompts is None:
        return None
    if isinstance(prompts, Path):
        try:
            lines = prompts.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read ({cause(error)})", place=str(prompts)) from error
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError("there is no prompt", place="prompts", remedy="give one a line")
    return [prompts[k % len(prompts)] for k in range(len(prompts) if count is None else count)]


def _source(prompts: Path | Sequence[str] | None, texts: Sequence[str]) -> dict[str, Any]:
    """Where the prompts come from, how many pictures they are, and their SHA-256."""
    named = str(prompts) if isinstance(prompts, Path) else HELD_OUT if prompts is None else "given"
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"source": named, "count": len(texts), "sha256": digest}


def _checkpoint(pipeline: Pipeline) -> dict[str, Any]:
    path = pipeline.checkpoint
    assert path is not None
    return {"name": path.name, "files": checkpoint.hashes(path)}


def changed(before: Any, after: Any, path: str = "") -> dict[str, Any]:
    """The settings that are not as they were: their new values by dotted path, nearest the leaves;
    a component that was swapped is one value.
    """
    if isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        parts = (changed(before[key], after[key], f"{path}.{key}".strip(".")) for key in after)
        return {name: value for part in parts for name, value in part.items()}
    return {} if before == after else {path: after}


def _new_folder(run: Run, out: str | Path | None, overrides: Sequence[str]) -> Path:
    """An empty folder.

    Raises:
        ConfigError: it holds something, or cannot be written.
    """
    slug = re.sub(r"[^\w=,-]+", "-", " ".join(overrides)).strip("-")[:60] or "as-trained"
    path = Path(out) if out else runs.free_path(run.outputs("evaluations") / slug)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError("is not empty", place=str(path), remedy="choose another --out")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
    return path


def _write(path: Path, record: Mapping[str, Any]) -> None:
    try:
        runs.replace(path, json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", place=str(path)) from error
