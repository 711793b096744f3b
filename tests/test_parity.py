"""The page of errors beside peers is whole, dated, and says nothing that a test would not accept."""

import re

import pytest
import torch

from relative_error import relative
from small import ROOT

KINDS = {
    "noise_schedule", "time_grid", "time_sampler", "sampler", "guidance", "loss", "loss_weight",
    "denoiser", "text_encoder", "autoencoder", "objective",
}  # fmt: skip
PAGE = (ROOT / "docs" / "parity.md").read_text()


def rows():
    """(kind, name, peer, what, error) of every line of the page."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        kind = section.partition("\n")[0].lower().replace(" ", "_")
        for name, peer, what, error in re.findall(
            r"^\| `(\w+)` \| (.+) \| (.+) \| (\S+) \|$", section, re.MULTILINE
        ):
            yield kind, name, peer, what, float(error)


def test_every_component_stands_beside_something(catalogue):
    ours = {
        (offer.component.kind, offer.component.name)
        for offer in catalogue.offers
        if offer.component.kind in KINDS and offer.distribution == "sfumato"
    }
    missing = ours - {(kind, name) for kind, name, *_ in rows()}
    assert not missing, "tell the fixture `parity` of them, then run benchmarks/parity.py"


def test_the_page_says_when_and_with_what():
    made = re.search(r"^Made by `python benchmarks/parity.py` on 20\d\d-\d\d-\d\d with\n(.+)\.$", PAGE, re.M)  # fmt: skip
    assert made
    assert [entry.split()[0] for entry in made[1].split(", ")] == [
        "torch", "diffusers", "k-diffusion", "transformers", "scipy",
    ]  # fmt: skip


def test_errors_are_rounding():
    """In float64 that of a long computation, in float32 that of a trajectory, or of a peer's table."""
    for kind, name, peer, what, error in rows():
        bound = 1e-8 if "float64" in what and "table" not in what else 1e-4
        bound = 2e-4 if "its float32 table" in what else bound
        assert error <= bound, (kind, name, peer, what)


def test_the_measure():
    assert relative([1.0, 200.0], [1.0, 100.0]) == 1.0
    assert relative([0.0, 1.0], [0.0, 1.0]) == 0.0
    assert relative([1e-9], [0.0]) == float("inf")
    assert relative(0.1, [0.1][0]) == 0.0  # not float32's 0.1
    picture = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    picture[..., 0, 0] = 4
    assert relative(picture + 0.01, picture) == pytest.approx(0.0025, rel=1e-6)
    with pytest.raises(AssertionError, match=r"^\(1,\) beside \(2,\)"):
        relative([1.0], [1.0, 2.0])
