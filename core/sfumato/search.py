"""A search over settings: optuna proposes trials, a sweep runs them, each trial is one mean number.

Its journal lies in the folder of the sweep, so that a search goes on where it was killed, and
several processes, on several machines, can work at one. Which trial a process works at is said by a
claim (see `claim`): one that nobody has any more is taken over, with the values it had.

References:
    Optuna: A Next-generation Hyperparameter Optimization Framework, Akiba et al., 2019,
    arXiv:1907.10902
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sfumato import claim, settings
from sfumato.errors import ConfigError, suggestion
from sfumato.sweep import LABEL, Range, Sweep, written

if TYPE_CHECKING:
    from pathlib import Path

    from sfumato.summary import Row
    from sfumato.sweep_runner import Runner
    from sfumato.sweep_targets import Planned

JOURNAL, TRIALS = "optuna.journal", "trials"


@attrs.frozen
class Trial:
    """What is tried: a number, counted from 0, and a value for each key."""

    number: int
    values: Mapping[str, Any]


class Search:
    """The trials of one folder."""

    def __init__(self, sweep: Sweep, out: Path, seed: int) -> None:
        """Opens the journal, or begins it; `seed` is that of what is proposed.

        Raises:
            ConfigError: optuna is not installed, or the journal is that of another search.
        """
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            remedy = "pip install 'sfumato[optuna]'"
            raise ConfigError("is not installed", place="optuna", remedy=remedy) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.out, self.seed, self.optuna = sweep, out, seed, optuna
        out.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(out / JOURNAL))
        direction: Literal["maximize", "minimize"] = "maximize" if sweep.maximize else "minimize"
        asked = {"number": f"{direction} {sweep.number}", "search": settings.plain(sweep.search)}
        self.study = optuna.create_study(
            storage=JournalStorage(backend),
            study_name="sweep",
            direction=direction,
            load_if_exists=True,
        )
        if self.study.user_attrs.get("asked", asked) != asked:
            remedy = "leave the search as it is, or choose another --out"
            raise ConfigError("is that of another search", place=str(out / JOURNAL), remedy=remedy)
        self.study.set_user_attr("asked", asked)

    def taken(self, most: int, held: contextlib.ExitStack) -> list[Trial]:
        """Up to `most` trials for this process, as long as it holds them: those that nobody works
        at any more, then new ones; none where all are done or in other hands.

        One process at a time chooses: what it proposes, and how many there are, is then seen by the
        next, and nobody takes over a trial that is about to be claimed.
        """
        found: list[Trial] = []
        with claim.claimed(self.out / TRIALS, wait=True):
            for frozen in self._trials():
                if len(found) < most and not frozen.state.is_finished():
                    if self._hold(frozen.number, held):
                        found.append(self._trial(frozen))
            while len(found) < most and (begun := len(self._trials())) < self.sweep.trials:
                # Made anew for each trial, it has no state that a resumed search would lack.
                self.study.sampler = self.optuna.samplers.TPESampler(seed=self.seed + begun)
                asked = self.study.ask({key: self._range(key) for key in self.sweep.search})
                held.enter_context(claim.claimed(self.out / TRIALS / str(asked.number)))
                found.append(self._trial(asked))
        return found

    def _hold(self, number: int, held: contextlib.ExitStack) -> bool:
        """Whether a trial is this process's now: no other one has it, or has ended it meanwhile."""
        with contextlib.ExitStack() as own:
            try:
                own.enter_context(claim.claimed(self.out / TRIALS / str(number)))
            except ConfigError:
                return False
            if self._trials()[number].state.is_finished():
                return False
            held.enter_context(own.pop_all())
            return True

    def _trials(self) -> list[Any]:
        """All, as the journal has them now, by their numbers."""
        return self.study.get_trials(deepcopy=False)

    def finished(self) -> list[Trial]:
        """The trials that have ended, in their order."""
        return [self._trial(frozen) for frozen in self._trials() if frozen.state.is_finished()]

    def points(self, trial: Trial) -> list[dict[str, Any]]:
        """The points whose mean a trial is."""
        found = []
        for point in self.sweep.points():
            label = f"trial-{trial.number} {point.get(LABEL, '')}".strip()
            found.append({LABEL: label, **trial.values, **{**point, LABEL: label}})
        return found

    def tell(self, trial: Trial, rows: Sequence[Row]) -> None:
        """What a trial has come to: the mean over its points, or a failure.

        Raises:
            ConfigError: the runs measure no number of that name.
        """
        number = str(self.sweep.number)
        found = [row.results[number].value for row in rows if number in row.results]
        if rows and len(found) == len(rows):
            self.study.tell(trial.number, statistics.fmean(found))
            return
        self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)
        for row in rows:
            if row.complete:
                remedy = suggestion(number, row.results)
                raise ConfigError(f"no number is named {number!r}", place="sweep", remedy=remedy)

    def best(self) -> str:
        """The best trial in a line."""
        states = self.optuna.trial.TrialState
        if not self.study.get_trials(deepcopy=False, states=[states.COMPLETE]):
            return "no trial has succeeded"
        best = self.study.best_trial
        values = ", ".join(f"{k}={written(v)}" for k, v in self._trial(best).values.items())
        return f"best is trial {best.number}: {values} gives {self.sweep.number} {best.value:.4g}"

    def _trial(self, trial: Any) -> Trial:
        ranges = self.sweep.search
        return Trial(
            trial.number,
            {
                key: ranges[key].choices[value] if ranges[key].choices else value
                for key, value in trial.params.items()
            },
        )

    def _range(self, key: str) -> Any:
        """A range as optuna has it; a choice by its index, as it may be a component."""
        one: Range = self.sweep.search[key]
        if one.choices:
            return self.optuna.distributions.CategoricalDistribution(range(len(one.choices)))
        low, high = float(one.low or 0), float(one.high or 0)
        if one.whole:
            step = 1 if one.step is None else int(one.step)
            return self.optuna.distributions.IntDistribution(int(low), int(high), one.log, step)
        return self.optuna.distributions.FloatDistribution(low, high, one.log, one.step)


def run(search: Search, runner: Runner) -> list[Planned]:
    """Works at trials until all are done, or in other hands, or it is asked to end.

    Returns:
        The points of all trials that have ended.
    """
    done = [one for trial in search.finished() for one in _planned(search, runner, trial)]
    each = len(search.sweep.points())
    while runner.interruption.signal is None:
        with contextlib.ExitStack() as held:
            trials = search.taken(max(runner.jobs // each, 1), held)
            if not trials:
                break
            under_way = {trial.number: _planned(search, runner, trial) for trial in trials}
            rows = iter(runner.run([one for some in under_way.values() for one in some], done))
            for trial in trials:
                own = [next(rows) for _ in under_way[trial.number]]
                ended = runner.interruption.signal is None
                if ended or all(row.complete for row in own):
                    search.tell(trial, own)
                    done += under_way[trial.number]
    return done


def _planned(search: Search, runner: Runner, trial: Trial) -> list[Planned]:
    """The points of a trial; none where its values are refused, which makes it fail."""
    try:
        return runner.target.planned(search.points(trial))
    except ConfigError as error:
        runner.told(f"trial {trial.number} is refused: {error}")
        return []
