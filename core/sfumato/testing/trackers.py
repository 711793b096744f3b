"""Laws of trackers: they take all that a run says, write into its folder, and change nothing."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from PIL import Image

from sfumato.records import (
    CheckpointSaved,
    PictureSaved,
    SampleStep,
    TrainEnd,
    TrainStart,
    TrainStep,
)
from sfumato.testing.laws import expect, law
from sfumato.testing.modules import random_state_kept
from sfumato.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sfumato.interfaces import Tracker

STEPS = 3


def records(run: Path) -> Iterator[tuple[str, str, Any]]:
    """What a run of one stage says, in its order: hook, name of the argument, record."""
    start = TrainStart(run=run, stage="denoiser", steps=STEPS, parameters=1000)
    yield "sfumato_on_train_start", "start", start
    for step in range(1, STEPS + 1):
        done = TrainStep(
            stage="denoiser", step=step, stage_step=step, stage_steps=STEPS, loss=1 / step,
            learning_rate=1e-3, gradient_norm=0.5, seconds=0.01, numbers={"text_dropout": 0.25},
        )  # fmt: skip
        yield "sfumato_on_train_step", "step", done
    saved = CheckpointSaved(path=run / "checkpoints" / "step-00000003", step=STEPS)
    yield "sfumato_on_checkpoint", "checkpoint", saved
    yield "sfumato_on_train_end", "end", TrainEnd(run=run, stage="denoiser")
    for index in range(2):
        x = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
        drawn = SampleStep(index=index, t=0.5 - index / 2, x=x, x0=x / 2)
        yield "sfumato_on_sample_step", "step", drawn
    sheet = run / "samples" / "step-00000003.png"
    sheet.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 4), (255, 0, 0)).save(sheet)
    yield "sfumato_on_picture", "picture", PictureSaved(name="samples", path=sheet, step=STEPS)
    one = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 2}
    results = {"color_accuracy": one, "guidance": {"4": {"diversity": one}}}
    yield "sfumato_on_train_end", "end", TrainEnd(run=run, stage=None, results=results)


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    """A run folder as training makes it, in the current directory, the only thing there."""
    with tempfile.TemporaryDirectory() as outside, contextlib.chdir(outside):
        run = Path(outside) / "run"
        (run / "checkpoints" / "step-00000003").mkdir(parents=True)
        (run / "run.json").write_text('{"status": "running"}\n')
        yield run


def _watch(tracker: Tracker, run: Path, look: Callable[[Any], Any] = lambda record: None) -> None:
    """Tells a tracker all records, and what is looked at before and after must be the same."""
    watchers = Watchers()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        watchers.add(f"tracker {tracker.name}", lambda: tracker.build(run))
        for hook, argument, record in records(run):
            before = look(record)
            watchers.notify(hook, **{argument: record})
            after = look(record)
            expect(before == after, "a record as it was", f"{hook} changed it to {after}")


def _watch_quietly(
    tracker: Tracker, run: Path, look: Callable[[Any], Any] = lambda record: None
) -> None:
    """As `_watch`; failures are the matter of another law."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _watch(tracker, run, look)


def _plain(record: Any) -> Any:
    """A record as values that can be compared, tensors as lists."""
    values = copy.deepcopy(attrs.asdict(record, recurse=False))
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


@law("tracker")
def takes_every_record(tracker: Tracker) -> None:
    """It takes all that a run says, in its order, and fails at nothing."""
    with _run_folder() as run, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        _watch(tracker, run)
    expect(not said, "no warning", " ".join(str(one.message) for one in said[:1]))


@law("tracker")
def writes_inside_the_run_folder(tracker: Tracker) -> None:
    """It writes nowhere else, and leaves what training wrote there alone."""
    with _run_folder() as run:
        _watch_quietly(tracker, run)
        beside = sorted(path.name for path in run.parent.iterdir() if path != run)
        expect(not beside, "nothing beside the run folder", ", ".join(beside))
        record = (run / "run.json").read_text()
        expect(record == '{"status": "running"}\n', "run.json as it was", record)


@law("tracker")
def records_are_left_alone(tracker: Tracker) -> None:
    """What it is told it does not change: others are told the same."""
    with _run_folder() as run:
        _watch_quietly(tracker, run, _plain)


@law("tracker")
def random_state_is_left_alone(tracker: Tracker) -> None:
    """It does not move torch's random state, so that training is the same without it."""
    with _run_folder() as run, random_state_kept():
        _watch_quietly(tracker, run)
