"""Tasks beside each other: what waits for what, what fails, what is asked to end."""

import signal
import sys
import threading
import time

import pytest

from sfumato import ConfigError, jobs
from sfumato.interruption import Interruption
from sfumato.jobs import Processes, Task

SLEEPS = "import sys, time; print('on', flush=True); time.sleep(float(sys.argv[1]))"
ENDS_WELL = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(143)))\n"
    "print('on', flush=True)\n"
    "time.sleep(30)\n"
)


def task(folder, name, program, *arguments, keys=()):
    command = (sys.executable, "-S", "-c", program, *arguments)
    return Task(name=name, arguments=command, log=folder / f"{name}.txt", keys=frozenset(keys))


def run(tasks, count, available=lambda key: False, interruption=None):
    events = []

    def told(task, code, seconds):
        events.append((task.name, code))

    asked = interruption or Interruption()
    codes = jobs.run(tasks, Processes(1), count, asked, available, told)
    return codes, events


def test_one_that_fails_stops_no_other(tmp_path):
    program = "import sys; print('error: boom'); sys.exit(int(sys.argv[1]))"
    tasks = [task(tmp_path, name, program, code) for name, code in (("a", "3"), ("b", "0"))]
    codes, _ = run(tasks, 1)
    assert codes == {"a": 3, "b": 0}
    assert (tmp_path / "a.txt").read_text() == "error: boom\n"


def test_as_many_run_at_once_as_may(tmp_path):
    _, events = run([task(tmp_path, name, SLEEPS, "0.3") for name in "abc"], 2)
    begun = 0
    for _, code in events:
        begun += 1 if code is None else -1
        assert begun <= 2
    assert [name for name, code in events if code is None] == ["a", "b", "c"]
    assert events[:2] == [("a", None), ("b", None)]


def test_who_needs_what_is_being_made_waits_until_it_is_there(tmp_path):
    tasks = [
        task(tmp_path, "first", SLEEPS, "0.2", keys=["clip", "denoiser"]),
        task(tmp_path, "second", SLEEPS, "0", keys=["clip", "denoiser"]),
        task(tmp_path, "other", SLEEPS, "0", keys=["another"]),
    ]
    _, events = run(tasks, 2)
    assert events[:2] == [("first", None), ("other", None)]
    assert events.index(("second", None)) > events.index(("first", 0))
    _, events = run(tasks, 2, available=lambda key: True)
    assert events[:2] == [("first", None), ("second", None)]


def test_what_is_made_is_looked_for_seldom_and_only_if_somebody_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "LOOK", 60)
    looked = []

    def available(key):
        looked.append(key)
        return False

    first = task(tmp_path, "first", SLEEPS, "0.5", keys=["clip", "denoiser"])
    run([first, task(tmp_path, "second", SLEEPS, "0", keys=["clip", "another"])], 2, available)
    assert looked == ["clip"]


def test_who_waited_for_one_that_failed_runs(tmp_path):
    tasks = [
        task(tmp_path, "first", "raise SystemExit(1)", keys=["clip"]),
        task(tmp_path, "second", SLEEPS, "0", keys=["clip"]),
    ]
    codes, _ = run(tasks, 2)
    assert codes == {"first": 1, "second": 0}


def test_a_signal_goes_to_all_that_run_and_no_other_begins(tmp_path):
    tasks = [task(tmp_path, name, ENDS_WELL) for name in "abc"]
    interruption = Interruption()

    def ask():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            logs = [tmp_path / f"{name}.txt" for name in "ab"]
            if all(log.is_file() and log.read_text() == "on\n" for log in logs):
                break
            time.sleep(0.02)
        interruption.ask(signal.SIGTERM)

    threading.Thread(target=ask).start()
    codes, _ = run(tasks, 2, interruption=interruption)
    assert codes == {"a": 143, "b": 143}
    assert (tmp_path / "a.txt").read_text() == "on\nasked\n"


def test_threads_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert [jobs.cores(n) for n in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert jobs.cores(2) == 5
    program = "import os; print(os.environ['OMP_NUM_THREADS'])"
    jobs.run(
        [task(tmp_path, "a", program)],
        Processes(3),
        1,
        Interruption(),
        lambda key: False,
        lambda *_: None,
    )
    assert (tmp_path / "a.txt").read_text() == "3\n"


def test_submitit_runs_tasks_and_says_how_they_ended(tmp_path):
    pytest.importorskip("submitit")
    executor = jobs.Submitit(tmp_path / "jobs", 3, {"cluster": "local", "timeout_min": 1})
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS']); sys.exit(int(sys.argv[1]))"
    tasks = [task(tmp_path, name, program, code) for name, code in (("a", "0"), ("b", "3"))]
    codes = jobs.run(tasks, executor, 2, Interruption(), lambda key: False, lambda *_: None)
    assert codes == {"a": 0, "b": 3}
    assert (tmp_path / "a.txt").read_text() == "3\n"  # as in the keys of stages


def test_submitit_refuses_what_it_does_not_know_and_is_named_where_it_is_missing(
    tmp_path, monkeypatch
):
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="^submitit: .*timeout_mins"):
        jobs.Submitit(tmp_path, 1, {"cluster": "local", "timeout_mins": 1})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError) as error:
        jobs.Submitit(tmp_path, 1, {})
    assert str(error.value) == "submitit: is not installed; pip install 'sfumato[slurm]'"
