"""Watchers: each is told, and one that fails is switched off alone."""

import pytest

from sfumato import hookimpl
from sfumato.watchers import Watchers
from survival import fingerprint


class Counting:
    def __init__(self):
        self.steps = []

    @hookimpl
    def sfumato_on_train_step(self, step):
        self.steps.append(step)


class Raising:
    @hookimpl
    def sfumato_on_train_step(self, step):
        raise RuntimeError("no disk")


@pytest.mark.fault("trackers")
def test_a_watcher_that_cannot_start_is_left_out_with_one_warning():
    def fail():
        raise OSError("no server")

    watchers = Watchers()
    with pytest.warns(
        UserWarning, match="^tracker far failed to start and is left out: OSError: no server$"
    ):
        watchers.add("tracker far", fail)
    watchers.notify("sfumato_on_train_step", step=1)


@pytest.mark.fault("trackers")
def test_a_failing_watcher_is_switched_off_with_one_warning():
    counting = Counting()
    watchers = Watchers()
    watchers.add("tracker raising", Raising)
    watchers.add("tracker counting", lambda: counting)
    with pytest.warns(UserWarning) as warned:
        for step in range(3):
            watchers.notify("sfumato_on_train_step", step=step)
    assert counting.steps == [0, 1, 2]
    assert [str(w.message) for w in warned] == [
        "tracker raising failed in sfumato_on_train_step and is switched off: RuntimeError: no disk"
    ]


def test_two_watchers_of_one_name_are_both_told():
    first, second = Counting(), Counting()
    watchers = Watchers()
    watchers.add("tracker counting", lambda: first)
    watchers.add("tracker counting", lambda: second)
    watchers.notify("sfumato_on_train_step", step=1)
    assert (first.steps, second.steps) == ([1], [1])


def test_a_watcher_without_hooks_is_said_to_be_one():
    with pytest.warns(UserWarning, match="left out: implements no hook; mark each with @hookimpl$"):
        Watchers().add("tracker idle", object)


@pytest.mark.fault("trackers")
def test_training_beside_a_failing_watcher_has_the_numbers_of_training_alone(
    registry, small_run, tmp_path, monkeypatch
):
    from sfumato.plugins import Catalogue
    from sfumato.training import train

    watchers = Catalogue.watchers

    def with_failing(self):
        made = watchers(self)
        made.add("tracker raising", Raising)
        return made

    monkeypatch.setattr(Catalogue, "watchers", with_failing)
    with pytest.warns(UserWarning, match="^tracker raising failed in sfumato_on_train_step"):
        list(train(registry.experiment("small"), tmp_path / "run"))
    assert fingerprint(tmp_path / "run") == fingerprint(small_run)
