"""Settings and weights of ours to a folder that diffusers' pipelines open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
from safetensors.torch import save_file

from sfumato import ConfigError
from sfumato_diffusers import scheduler, text, unet, vae
from sfumato_diffusers.options import Options
from sfumato_diffusers.reading import INDEX, LEFT_OUT, PIPELINES, STEM
from sfumato_diffusers.scheduler import made

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from sfumato import Snapshot

COUNTERPARTS = {
    "denoiser": ("unet", unet.CLASS),
    "autoencoder": ("kl", vae.CLASS),
    "text_encoder": ("pretrained_clip", text.ENCODER),
}


def write(snapshot: Snapshot, folder: Path) -> None:
    """All of it; see `Diffusers.write`."""
    settings = snapshot.settings
    for slot, (name, theirs) in COUNTERPARTS.items():
        if settings[slot]["use"] != name:
            raise ConfigError(
                f"{settings[slot]['use']} has no counterpart in diffusers",
                place=slot,
                remedy=f"{name} alone has, which is {theirs}",
            )
    kind = json.loads(snapshot.files["config.json"])["architectures"][0]
    if kind != text.ENCODER:
        raise ConfigError(
            f"{kind} has no place in {PIPELINES[0]}",
            place="text_encoder",
            remedy=f"it has a {text.ENCODER}",
        )
    width, latents = text.width(snapshot.files), settings["autoencoder"]["channels"]
    size = settings["sampling"]["size"]
    factor = 2 ** (len(settings["autoencoder"]["widths"]) - 1)
    configs = {
        "unet": unet.write(settings["denoiser"], latents, width, [side // factor for side in size]),
        "vae": vae.write(settings["autoencoder"], size),
        "scheduler": scheduler.write(settings, forced=True),
    }
    said = {"prediction": settings["denoiser"]["prediction"]}  # by the scheduler
    _check("denoiser", settings, said | unet.read(_options(configs["unet"]), latents, width))
    _check("autoencoder", settings, vae.read(_options(configs["vae"])))
    said = {"use": "pretrained_clip", "source": settings["text_encoder"]["source"]}
    _check("text_encoder", settings, said)

    index = {
        "_class_name": PIPELINES[0],
        **{part: [None, None] for part in LEFT_OUT},
        "requires_safety_checker": False,
        "scheduler": ["diffusers", configs["scheduler"]["_class_name"]],
        "text_encoder": ["transformers", kind],
        "tokenizer": ["transformers", text.TOKENIZERS[0]],
        "unet": ["diffusers", unet.CLASS],
        "vae": ["diffusers", vae.CLASS],
    }
    _write_json(folder / INDEX, index)
    for part in ("text_encoder", "tokenizer", *configs):
        (folder / part).mkdir()
    for part, content in configs.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        _write_json(folder / part / name, content)
    text.write(snapshot.files, folder / "text_encoder", folder / "tokenizer")
    states = snapshot.states
    _write_weights(folder / "unet" / f"{STEM}.safetensors", states["denoiser"])
    _write_weights(folder / "vae" / f"{STEM}.safetensors", states["autoencoder"])
    _write_weights(folder / "text_encoder" / "model.safetensors", states["text_encoder"])


def _options(config: Mapping[str, Any]) -> Options:
    return Options(config, "config.json")


def _check(slot: str, settings: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Raises ConfigError where an option that the weights go with would not come back."""
    wanted, found = made(slot, settings[slot]), made(slot, read)
    for field in attrs.fields(type(wanted)):
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name not in wanted.adjustable and ours != theirs:
            raise ConfigError(
                f"is {ours}, which a folder of diffusers cannot say",
                place=f"{slot}.{field.name}",
                remedy=f"it says {theirs}",
            )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """As diffusers and transformers look for them: the format is named."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})
