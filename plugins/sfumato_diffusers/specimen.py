"""A Stable Diffusion of a few channels: what the conformance kit writes and reads."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from sfumato import Snapshot, Space, create
from sfumato_diffusers import text
from sfumato_diffusers.options import Options
from sfumato_diffusers.scheduler import made

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS: dict[str, Any] = {
    "noise_schedule": {"use": "scaled_linear"},
    "text_encoder": {"use": "pretrained_clip"},
    "denoiser": {"use": "unet", "channels": [8, 16], "attention": [True, False], "heads": [2],
                 "groups": 4, "prediction": "v"},
    "autoencoder": {"use": "kl", "widths": [8, 8], "layers": 1, "groups": 4},
    "loss": {"use": "mse"},
    "time_sampler": {"use": "uniform"},
    "time_grid": {"use": "leading", "offset": 1, "final": "first"},
    "sampler": {"use": "ddim"},
    "guidance": {"use": "negative_prompt", "positive_scale": 7.5, "negative_scale": 6.5},
    "sampling": {"steps": 50, "size": [8, 8]},
}  # fmt: skip


def make() -> Snapshot:
    """Always with the same weights."""
    kind = type(create("text_encoder", "pretrained_clip"))
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = kind.example(Path(folder)).build({})
        autoencoder = made("autoencoder", SETTINGS["autoencoder"])
        space = Space(
            channels=autoencoder.channels,
            height=4,
            width=4,
            text_width=encoder.width,
            pooled_width=encoder.pooled_width,
            schedule=made("noise_schedule", SETTINGS["noise_schedule"]),
        )
        modules = {
            "text_encoder": encoder,
            "denoiser": made("denoiser", SETTINGS["denoiser"]).build(space),
            "autoencoder": autoencoder.build(),
        }
    states = {slot: module.state_dict() for slot, module in modules.items()}
    tower = {k: v for k, v in states["text_encoder"].items() if k.startswith(text.TOWER)}
    stated = Options(json.loads(encoder.files["config.json"]), "config.json")
    config = text.configuration(stated, text.PLAIN)
    return Snapshot(
        settings={slot: _stated(slot, tree) for slot, tree in SETTINGS.items()},
        states={**states, "text_encoder": tower},
        files={**encoder.files, "config.json": json.dumps(config).encode()},
    )


def _stated(slot: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a component with all its options, lists as YAML has them."""
    if "use" not in tree:
        return dict(tree)
    options = attrs.asdict(made(slot, tree)).items()
    return {**tree, **{k: list(v) if isinstance(v, tuple) else v for k, v in options}}
