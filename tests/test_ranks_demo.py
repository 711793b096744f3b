"""Both stages of the shipped demo, their components and sizes: two ranks are one process."""

import pytest
from safetensors.torch import load_file

import two_ranks
from sfumato.engine import Single
from sfumato.training import train
from test_ranks import check_metrics, differences, logged, program, record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* pictures are saturated"),
]
DEMO = {"EXPERIMENT": "demo"}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Twenty steps of each stage in one process, and the gradients of one."""
    folder = tmp_path_factory.mktemp("single")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPERIMENT", "demo")
        settings = two_ranks.experiment(folder)
        gradients = {
            stage: two_ranks.gradients(settings, stage, Single("cpu")) for stage in settings.stages
        }
        for _ in train(settings, folder / "run"):
            pass
    return folder / "run", gradients


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same on two ranks: with whole weights, with shards, and left half-way."""
    folder = tmp_path_factory.mktemp("both")
    program("demo", folder, **DEMO)
    return folder


@pytest.mark.fault("world size")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", ["clip", "denoiser"])
def test_gradients_are_those_of_one_process(single, both, stage, parallel, record_property):
    expected = single[1][stage]
    found = load_file(both / f"gradients-{stage}-{parallel}.safetensors")
    assert found.keys() == expected.keys()
    largest = max(float(one.abs().max()) for one in expected.values())
    away = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    record_property("away", away)
    assert largest > 0.1
    assert away <= 1e-6 * max(1.0, largest)


@pytest.mark.fault("world size")
def test_losses_rates_and_metrics_are_those_of_one_process(single, both, record_property):
    run = single[0]
    away, of_shards = (differences(run, both / name) for name in ("run", "shards"))
    record_property("away", max(away))
    record_property("shards away", max(of_shards))
    assert len(away) == len(of_shards) == 40
    assert max(away) <= 1e-6
    assert max(differences(both / "run", both / "shards")) <= 1e-5
    rates = [[line["learning_rate"] for line in logged(one)] for one in (run, both / "run")]
    assert rates[0] == rates[1]
    check_metrics(record(run)["results"], record(both / "run")["results"])


@pytest.mark.fault("world size")
def test_each_example_is_seen_once_an_epoch(both):
    lines = [two_ranks.seen(both, rank) for rank in (0, 1)]
    for stage, batch in (("clip", 128), ("denoiser", 24)):
        pairs = zip(*lines, strict=True)
        order = [
            one for first, second in pairs if first[0] == stage for one in first[2] + second[2]
        ]
        assert len(order) == 20 * batch
        for epoch in range(len(order) // 256):
            assert sorted(order[256 * epoch :][:256]) == list(range(256))


@pytest.mark.fault("world size")
def test_two_ranks_one_and_two_again(single, both, monkeypatch, record_property):
    monkeypatch.setenv("EXPERIMENT", "demo")
    settings = two_ranks.experiment(both, *two_ranks.DUE)
    two_ranks.left_at(28, settings, both / "resumed", resume=True)
    program("demo_to_the_end", both, **DEMO)
    found = record(both / "resumed")
    assert found["status"] == "completed"
    assert [(one["step"], one["world_size"]) for one in found["resumed"]] == [(10, 1), (25, 2)]
    away = max(differences(single[0], both / "resumed"))
    record_property("away", away)
    assert away <= 1e-5
