"""Laws of layouts: what is written is recognised, and comes back as it was, to the bit."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import torch

from sfumato import document, exchange, plugins, settings
from sfumato.errors import SfumatoError
from sfumato.experiment import Experiment
from sfumato.interfaces import Layout
from sfumato.records import Snapshot
from sfumato.testing import assembly
from sfumato.testing.laws import Broken, expect, expect_equal, law, subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@attrs.frozen(eq=False, kw_only=True)
class Subject:
    """A layout, what it was given, and what it read back of what it had written.

    Attributes:
        layout: the component.
        written: the snapshot.
        read: another.
        recognised: whether it recognised its own folder, and an empty one.
        untouched: whether reading left the folder as it was.
    """

    layout: Layout
    written: Snapshot
    read: Snapshot
    recognised: tuple[bool, bool]
    untouched: bool


def experiment_of(snapshot: Snapshot) -> Experiment:
    """The settings of a snapshot, structured."""
    tree = document.node({"name": "specimen", **snapshot.settings}, "the settings that it reads")
    return settings.structure(tree, Experiment, plugins.load())


def _specimen(layout: Layout) -> Snapshot:
    """That of the layout with all options written out, or the kit's."""
    own = layout.specimen()
    if own is not None:
        return attrs.evolve(own, settings=exchange.stated(experiment_of(own)))
    pipeline = assembly.pipeline()
    return Snapshot(
        settings=exchange.stated(pipeline.settings),
        states={slot: module.state_dict() for slot, module in pipeline.modules().items()},
        files=pipeline.text_encoder.files,
    )


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@subject("layout")
def writes_and_reads(layout: Layout) -> Subject:
    """It fills an empty folder with a small system, and reads that folder."""
    written = _specimen(layout)
    with tempfile.TemporaryDirectory() as name:
        empty, folder = Path(name, "empty"), Path(name, "folder")
        empty.mkdir()
        folder.mkdir()
        try:
            layout.write(written, folder)
            recognised = (layout.recognises(folder), layout.recognises(empty))
            before = _contents(folder)
            read = layout.read(folder)
            # A layout may map its files into memory, and they are gone when the laws look.
            copied = {slot: _copied(state) for slot, state in read.states.items()}
        except SfumatoError as error:
            raise Broken("a folder that it reads back", str(error)) from error
        untouched = _contents(folder) == before
    read = attrs.evolve(read, states=copied)
    return Subject(
        layout=layout, written=written, read=read, recognised=recognised, untouched=untouched
    )


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


@law("layout")
def recognises_its_own(subject: Subject) -> None:
    """It recognises what it has written, and not an empty folder."""
    expect_equal(subject.recognised, (True, False), "its own folder and an empty one recognised")


@law("layout")
def settings_come_back(subject: Subject) -> None:
    """The settings that it reads name installed components, and are those that it was given."""
    read, written = experiment_of(subject.read), experiment_of(subject.written)
    for name in settings.fields(Experiment):
        expect_equal(getattr(read, name), getattr(written, name), name)


@law("layout")
def weights_come_back(subject: Subject) -> None:
    """Weights have the names, the types and the bits, and files the bytes, that they had."""
    read, written = subject.read, subject.written
    slots = {slot for slot, state in written.states.items() if state}
    expect(slots <= read.states.keys(), f"weights of {sorted(slots)}", f"{sorted(read.states)}")
    for slot in slots:
        own, back = written.states[slot], read.states[slot]
        _expect_names(back, own, f"weight of the {slot}")
        for name, tensor in own.items():
            equal = back[name].dtype == tensor.dtype and torch.equal(back[name], tensor)
            expect(equal, f"{slot} {name} as it was", "another tensor")
    _expect_names(read.files, written.files, "file")
    for name, content in written.files.items():
        expect(read.files[name] == content, f"{name} to the byte", "other bytes")


def _expect_names(got: Mapping[str, object], wanted: Mapping[str, object], of: str) -> None:
    for name in sorted(got.keys() ^ wanted.keys()):
        expect(name in got, f"a {of} named {name!r}", "none")
        raise Broken(f"no {of} named {name!r}", "one")


@law("layout")
def weights_fit(subject: Subject) -> None:
    """What it reads can be built: every weight has its place in a module, and none is missing."""
    try:
        exchange.check(experiment_of(subject.read), subject.read, "what it reads")
    except SfumatoError as error:
        raise Broken("weights that fit", str(error)) from error


@law("layout")
def reading_changes_nothing(subject: Subject) -> None:
    """Reading leaves every file of the folder as it is, and adds none."""
    expect(subject.untouched, "the folder as it was", "another")
