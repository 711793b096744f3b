"""The model in the box: small, measured, and as good as its record says."""

import json

import pytest
import torch

import sfumato
from sfumato import references

MODEL = references.MODELS / "shapes"
RECORD = json.loads((MODEL / "run.json").read_text())
PROMPTS = [
    f"a large {color} {shape} in the center on a {ground} background"
    for color, shape, ground in (
        ("red", "circle", "gray"), ("cyan", "triangle", "black"), ("purple", "square", "white"),
        ("blue", "circle", "white"), ("yellow", "triangle", "gray"), ("green", "circle", "black"),
    )
]  # fmt: skip


def test_it_draws_what_it_is_asked_for():
    pipeline = sfumato.Pipeline.load("shapes")
    texts = [prompt for prompt in PROMPTS for _ in range(4)]
    state = sfumato.create("metric", "shape_attributes").build(pipeline)
    state.update(pipeline.sample(texts, seed=1), texts)
    found = state.compute(torch.arange(len(texts)))
    assert found["color_accuracy"] == found["background_accuracy"] == 1
    assert found["shape_accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("name", "least"),
    [("color_accuracy", 0.98), ("shape_accuracy", 0.95), ("background_accuracy", 0.98)],
)
def test_its_record_says_how_good_it_is(name, least):
    found = RECORD["results"][name]
    assert least <= found["low"] <= found["value"] <= found["high"]
    assert RECORD["results"]["clip_score"]["n"] >= 1000
    assert RECORD["held_out_pairs"]["results"][name]["n"] == found["n"]


def test_it_is_small_and_carries_what_it_was_made_with():
    size = sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file())
    assert size <= 12_000_000
    assert (RECORD["seed"], RECORD["name"], RECORD["packaged"]["dtype"]) == (
        0,
        "shapes-32",
        "float16",
    )
    settings = (MODEL / "settings.yaml").read_text()
    assert "use: patches" in settings and "size: 32" in settings
