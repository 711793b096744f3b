"""Bad examples of a run are counted once, whoever reads them: workers, ranks, and after a resume."""

import json

import pytest

import two_ranks
from sfumato import DataError
from sfumato.bad_examples import BadExamples
from sfumato.training import train
from test_ranks import program

pytestmark = pytest.mark.filterwarnings("ignore:.* pictures are saturated")
RESUMED = 6  # in the second stage, when some of them have been asked for


def told(path):
    """How many there are, the first of them, and all of them at the steps that found them."""
    record = json.loads((path / "run.json").read_text())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], *line["bad_examples"]) for line in lines if "bad_examples" in line]
    return record["examples"], record["dropped"], record["bad_examples"], found


def stopped(settings, out, **options):
    """What it says, and after which step, where more are bad than may be."""
    done = 0
    with pytest.raises(DataError) as error:
        for step in train(settings, out, **options):
            done = step.step
    return str(error.value), done


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with pictures and with a run of one process, where all is allowed; and how one ends
    where it is not.
    """
    folder = tmp_path_factory.mktemp("bad")
    for _ in train(two_ranks.broken_pictures(folder), folder / "run"):
        pass
    return folder, stopped(two_ranks.broken_pictures(folder, share=0.1), folder / "stopped")


@pytest.mark.fault("bad pictures")
def test_each_is_counted_once_at_the_step_that_asks_for_it(runs):
    folder, (said, done) = runs
    examples, dropped, first, found = told(folder / "run")
    assert (examples, dropped, len(first)) == (39, 1 + 6, 7)
    assert [fault.split("/")[-1][:6] for fault in first[:1]] == ["39.png"]
    assert sorted(int(one) for _, *new in found for one in new) == [3, 4, 9, 17, 28, 33]
    assert len({step for step, *_ in found}) > 2
    assert said.startswith("5 of 40 pictures are bad, more than bad_share: 0.1 allows; the first: ")
    assert said.partition("the first: ")[2].startswith(first[0])
    assert 0 < done < RESUMED


@pytest.mark.fault("bad pictures")
def test_workers_change_no_count_and_no_end(runs, tmp_path):
    folder, end = runs
    settings = two_ranks.broken_pictures(folder, "workers=2")
    for _ in train(settings, tmp_path / "run"):
        pass
    assert told(tmp_path / "run") == told(folder / "run")
    strict = two_ranks.broken_pictures(folder, "workers=2", share=0.1)
    assert stopped(strict, tmp_path / "stopped") == end


@pytest.mark.fault("bad pictures")
def test_a_run_that_goes_on_counts_from_its_first_step(runs, tmp_path):
    folder, (said, done) = runs
    settings = two_ranks.broken_pictures(folder, "checkpoints.every=1")
    two_ranks.left_at(3, settings, tmp_path / "run")
    two_ranks.left_at(RESUMED, settings, tmp_path / "run", resume=True)
    for _ in train(settings, tmp_path / "run", resume=True):
        pass
    assert told(tmp_path / "run") == told(folder / "run")
    strict = two_ranks.broken_pictures(folder, "checkpoints.every=1", share=0.1)
    two_ranks.left_at(done, strict, tmp_path / "stopped")
    assert stopped(strict, tmp_path / "stopped", resume=True) == (said, 0)


@pytest.mark.slow
@pytest.mark.fault("bad pictures")
def test_two_ranks_count_together(runs, tmp_path):
    folder, (said, done) = runs
    (tmp_path / "set").symlink_to(folder / "set")
    program("bad_pictures", tmp_path)
    found = [json.loads((tmp_path / f"stopped-{rank}.json").read_text()) for rank in (0, 1)]
    assert [text.replace(str(tmp_path), str(folder)) for text, _ in found] == [said, said]
    assert [step for _, step in found] == [done, done]
    examples, dropped, first, steps = told(tmp_path / "run")
    first = [fault.replace(str(tmp_path), str(folder)) for fault in first]
    assert (examples, dropped, first, steps) == told(folder / "run")


def test_what_the_log_tells_is_known_again():
    lines = [{"step": 1}, {"step": 2, "bad_examples": {"7": "a", "3": "b"}}, {"bad_examples": {"5": "c"}}]  # fmt: skip
    assert list(BadExamples.logged(lines).items()) == [(7, "a"), (3, "b"), (5, "c")]
