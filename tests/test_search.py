"""The trials of a search: proposed, taken over, told, and the same again after a kill."""

import contextlib
import sys
import threading
import time

import attrs
import pytest

from sfumato import ConfigError, claim
from sfumato.measurements import Measured
from sfumato.search import TRIALS, Search, Trial
from sfumato.summary import Row
from sfumato.sweep import Range, Sweep

pytest.importorskip("optuna")

SWEEP = Sweep(
    grid={"seed": (0, 1)},
    search={
        "guidance.scale": Range(low=1.0, high=9.0),
        "stages.clip.steps": Range(low=2.0, high=8.0, step=2.0, whole=True),
        "sampler": Range(choices=("ddim", {"use": "ddim", "eta": 0.5})),
    },
    trials=6,
    maximize="accuracy",
)


def rows(*values):
    return [
        Row(
            name="",
            settings={},
            seed=0,
            status="",
            complete=value is not None,
            results={} if value is None else {"accuracy": Measured(value, value, value, 1)},
        )
        for value in values
    ]


def proposed(search, told=True):
    """All trials to the end, each worth the less the farther its scale is from 4."""
    found = []
    while True:
        with contextlib.ExitStack() as held:
            taken = search.taken(1, held)
            if not taken:
                return found
            (trial,) = taken
            found.append(trial)
            value = -abs(trial.values["guidance.scale"] - 4)
            search.tell(trial, rows(value, value))


def test_values_are_within_their_ranges(tmp_path):
    trials = proposed(Search(SWEEP, tmp_path, 0))
    assert [trial.number for trial in trials] == list(range(6))
    for trial in trials:
        assert 1 <= trial.values["guidance.scale"] <= 9
        assert trial.values["stages.clip.steps"] in (2, 4, 6, 8)
        assert type(trial.values["stages.clip.steps"]) is int
        assert trial.values["sampler"] in SWEEP.search["sampler"].choices
    assert len({trial.values["guidance.scale"] for trial in trials}) == 6


def test_a_search_finds_the_better_end_of_a_range(tmp_path):
    search = Search(attrs.evolve(SWEEP, trials=40), tmp_path, 0)
    away = [abs(trial.values["guidance.scale"] - 4) for trial in proposed(search)]
    assert sum(away[-20:]) < 0.7 * 2 * sum(away[:10])  # the first ten are drawn at random
    assert min(away) < 0.2
    assert search.best().startswith("best is trial ")
    assert "guidance.scale=" in search.best()


def test_a_search_that_was_killed_goes_on_with_the_same_trials(tmp_path):
    whole = proposed(Search(SWEEP, tmp_path / "whole", 3))
    search = Search(SWEEP, tmp_path / "killed", 3)
    with contextlib.ExitStack() as held:
        (first,) = search.taken(1, held)
        search.tell(first, rows(*[-abs(first.values["guidance.scale"] - 4)] * 2))
        (second,) = search.taken(1, held)
    resumed = Search(SWEEP, tmp_path / "killed", 3)
    assert resumed.finished() == [first]
    again = proposed(resumed)
    assert again[0] == second
    assert [first, *again] == whole


def test_a_trial_that_another_process_holds_is_not_taken(tmp_path):
    search = Search(SWEEP, tmp_path, 0)
    with contextlib.ExitStack() as held:
        (first,) = search.taken(1, held)
    with claim.claimed(tmp_path / TRIALS / "0"), contextlib.ExitStack() as held:
        (second,) = search.taken(1, held)
    assert (first.number, second.number) == (0, 1)


def test_a_trial_that_ends_while_it_is_looked_at_is_not_taken(tmp_path, monkeypatch):
    first, second = Search(SWEEP, tmp_path, 0), Search(SWEEP, tmp_path, 0)
    holds = contextlib.ExitStack()
    (trial,) = first.taken(1, holds)
    claimed = claim.claimed

    def late(folder, **options):
        if folder.name == "0":  # its holder ends it between our look at the journal and our claim
            first.tell(trial, rows(0.5, 0.5))
            holds.close()
        return claimed(folder, **options)

    monkeypatch.setattr(claim, "claimed", late)
    with contextlib.ExitStack() as held:
        assert [one.number for one in second.taken(1, held)] == [1]
    assert first.best().startswith("best is trial 0: ")


def test_processes_choose_one_after_the_other(tmp_path, monkeypatch):
    """The second begins to choose between the proposal of the first and its claim."""
    first, second = Search(SWEEP, tmp_path, 0), Search(SWEEP, tmp_path, 0)
    found, proposes = {}, threading.Event()
    ask = first.study.ask

    def slow(ranges):
        trial = ask(ranges)
        proposes.set()
        time.sleep(0.3)
        return trial

    monkeypatch.setattr(first.study, "ask", slow)
    with contextlib.ExitStack() as held:

        def choose(name, search):
            found[name] = search.taken(1, held)

        other = threading.Thread(target=choose, args=("first", first))
        other.start()
        assert proposes.wait(20)
        choose("second", second)
        other.join()
    (one,), (two,) = found["first"], found["second"]
    assert (one.number, two.number) == (0, 1)
    assert one.values["guidance.scale"] != two.values["guidance.scale"]


def test_the_points_of_a_trial_are_those_of_the_grid_with_its_values(tmp_path):
    search = Search(SWEEP, tmp_path, 0)
    points = search.points(Trial(3, {"guidance.scale": 2.0}))
    assert points == [
        {"label": "trial-3", "guidance.scale": 2.0, "seed": 0},
        {"label": "trial-3", "guidance.scale": 2.0, "seed": 1},
    ]


def test_a_trial_is_the_mean_of_its_points_and_fails_with_one_of_them(tmp_path):
    search = Search(SWEEP, tmp_path, 0)
    with contextlib.ExitStack() as held:
        first, second = search.taken(2, held)
        search.tell(first, rows(0.25, 0.75))
        search.tell(second, rows(1.0, None)[1:])
    assert search.best().endswith("gives accuracy 0.5")
    assert [trial.number for trial in search.finished()] == [0, 1]


def test_a_number_that_nothing_measures_is_refused(tmp_path):
    search = Search(attrs.evolve(SWEEP, maximize="acuracy"), tmp_path, 0)
    with contextlib.ExitStack() as held:
        (trial,) = search.taken(1, held)
        with pytest.raises(ConfigError) as error:
            search.tell(trial, rows(0.5))
    assert str(error.value) == "sweep: no number is named 'acuracy'; did you mean 'accuracy'?"


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    Search(SWEEP, tmp_path, 0)
    Search(attrs.evolve(SWEEP, trials=50), tmp_path, 0)
    other = attrs.evolve(SWEEP, maximize=None, minimize="accuracy")
    with pytest.raises(ConfigError) as error:
        Search(other, tmp_path, 0)
    assert str(error.value) == (
        f"{tmp_path / 'optuna.journal'}: is that of another search; leave the search as it is, or "
        "choose another --out"
    )


def test_a_missing_optuna_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError) as error:
        Search(SWEEP, tmp_path, 0)
    assert str(error.value) == "optuna: is not installed; pip install 'sfumato[optuna]'"
