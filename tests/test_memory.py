"""An enormous picture is refused with the bytes that it needs, before anything is drawn."""

import pytest
import torch

from sfumato import ConfigError, Pipeline, memory


@pytest.mark.fault("samples")
def test_an_enormous_size_is_refused_before_sampling(small_run):
    pipeline = Pipeline.load(small_run, ["sampling.size=[100000,100000]"])
    with pytest.raises(ConfigError) as error:
        pipeline.sample(["a red circle"])
    assert str(error.value).startswith(
        "sampling.size: 1 picture of 100000 x 100000 need at least 720 GB on cpu, of which "
    )
    assert str(error.value).endswith("B are free; draw smaller pictures, or fewer at once")


def test_the_message(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 10**6)
    arguments = ((100, 200), (4, 10, 20))
    with pytest.raises(ConfigError) as error:
        memory.check_sampling(*arguments, 3, 2, torch.device("cpu"))
    # Five pictures of 3 x 100 x 200 float32, and four tensors of two latents each.
    assert str(error.value) == (
        "sampling.size: 3 pictures of 100 x 200 need at least 1.23 MB on cpu, of which 1 MB are "
        "free; draw smaller pictures, or fewer at once"
    )
    memory.check_sampling(*arguments, 2, 1, torch.device("cpu"))


def test_where_nobody_says_what_is_free_nothing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.free(torch.device("cpu")) is None
    memory.check_sampling((10**6, 10**6), (3, 10**6, 10**6), 1, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (999, "999 "), (1000, "1 k"), (123_456, "123 k"), (999_600, "1 M"), (2e19, "20 E")],
)
def test_scaled(value, text):
    assert memory.scaled(value) == text
