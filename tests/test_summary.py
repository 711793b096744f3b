"""The tables of a sweep."""

import csv
import io

import attrs
import pytest

from sfumato import Pipeline, summary
from sfumato.measurements import Measured
from sfumato.runs import Run
from sfumato.summary import Row
from sfumato.training import train


def row(scale, seed, value=None, **more):
    results = {} if value is None else {"accuracy": Measured(value, value - 0.02, value + 0.02, 50)}
    status = "completed" if results else "error: boom"
    settings = {"guidance.scale": scale, "seed": seed, **more}
    return Row(
        name=f"scale={scale},seed={seed}",
        settings=settings,
        seed=seed,
        status=status,
        complete=bool(results),
        results=results,
    )


ROWS = [
    *(row(1, seed, value) for seed, value in enumerate((0.2, 0.25, 0.22))),
    *(row(4, seed, value) for seed, value in enumerate((0.6, 0.66, 0.63))),
    row(9, 0),
]


def test_the_csv_has_a_line_for_each_run_with_every_number():
    lines = list(csv.DictReader(io.StringIO(summary.table(ROWS))))
    assert len(lines) == 7
    assert lines[3] == {
        "run": "scale=4,seed=0",
        "scale": "4",
        "seed": "0",
        "status": "completed",
        "accuracy": "0.6",
        "accuracy.low": "0.58",
        "accuracy.high": "0.62",
        "accuracy.n": "50",
    }
    assert lines[6]["status"] == "error: boom"
    assert lines[6]["accuracy"] == ""


def test_the_page_pools_seeds_and_marks_what_differs():
    lines = summary.page("demo", ROWS, trained=True).splitlines()
    assert lines[0] == "# demo: 6 of 7 runs"
    assert "- `scale=9,seed=0`: error: boom" in lines
    head = lines.index("## accuracy") + 2
    assert lines[head] == "| scale | seeds | samples | mean | 95 % | difference | 95 % |  |"
    assert lines[head + 2] == "| 1 | 3 | 150 | 0.2233 | 0.1608 to 0.2858 |  |  |  |"
    assert lines[head + 3].startswith("| 4 | 3 | 150 | 0.63 | 0.5555 to 0.7045 | +0.4067 | +0.3")
    assert lines[head + 3].endswith(" | * |")


def test_equal_settings_with_another_label_are_another_row_that_nothing_marks():
    again = [row(1, seed, value, label="again") for seed, value in ((3, 0.24), (4, 0.21), (5, 0.2))]
    lines = summary.page("demo", [*ROWS[:3], *again], trained=True).splitlines()
    last = lines[-1]
    assert last.startswith("| 1 | again | 3 | 150 | 0.2167 |")
    assert last.endswith("|  |")


def test_one_seed_of_a_training_is_never_marked_and_one_noise_may_be():
    for some in ([ROWS[0], ROWS[3]], [ROWS[0], *ROWS[3:6]], [*ROWS[:3], ROWS[3]]):
        trained, drawn = (summary.page("demo", some, trained=kind) for kind in (True, False))
        assert trained.endswith(" |  |\n")
        assert drawn.endswith(" | * |\n")
        assert "A seed is a training" in trained
        assert "A seed is the noise of pictures alone" in drawn


def test_a_run_that_measures_nothing_is_done():
    page = summary.page("demo", [attrs.evolve(row(9, 0), complete=True)], trained=True)
    assert page.splitlines()[0] == "# demo: 1 of 1 runs"
    assert "Not in the tables" not in page


def test_nothing_done_is_a_page_too():
    page = summary.page("demo", [row(9, 0)], trained=True)
    assert page.splitlines()[0] == "# demo: 0 of 1 runs"
    assert "- `scale=9,seed=0`: error: boom" in page


def roughness(run, seed):
    """Of 24 pictures: the mean difference of neighbouring pixels, with the interval of the mean."""
    pipeline = Pipeline.load(run)
    images = pipeline.sample(["a small red circle on a gray background"] * 24, steps=4, seed=seed)
    each = images.diff(dim=-1).abs().flatten(1).mean(1)
    half = 1.96 * float(each.std()) / len(each) ** 0.5
    mean = float(each.mean())
    return Measured(mean, mean - half, mean + half, len(each))


@pytest.mark.slow
def test_trained_runs_are_separated_where_they_differ_and_not_where_they_do_not(registry, tmp_path):
    """A step of training against 120, and the former twice: three seeds each."""

    def trained(steps, seed, **more):
        out = tmp_path / f"{steps}-{seed}"
        overrides = [f"stages.denoiser.steps={steps}", f"seed={seed}", "evaluation.metrics=[]"]
        overrides += ["stages.denoiser.learning_rate=5e-3"]
        for _ in train(registry.experiment("small", overrides), out, reuse=tmp_path):
            pass
        return Row(
            name=out.name,
            settings={"steps": steps, "seed": seed, **more},
            seed=seed,
            status="completed",
            complete=True,
            results={"roughness": roughness(out, seed)},
        )

    rows = [trained(1, seed) for seed in (0, 1, 2)]
    rows += [trained(1, seed, label="again") for seed in (3, 4, 5)]
    rows += [trained(120, seed) for seed in (0, 1, 2)]
    assert Run(tmp_path / "120-1").record()["stages"]["clip"]["taken"] == f"{tmp_path / '1-1'}@4"
    again, longer = summary.page("small", rows, trained=True).splitlines()[-2:]
    assert again.startswith("| 1 | again | 3 | 72 | ")
    assert again.endswith(" |  |")
    assert longer.startswith("| 120 |  | 3 | 72 | ")
    assert longer.endswith(" | * |")
