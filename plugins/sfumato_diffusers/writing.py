"""Settings and weights of ours to a folder that diffusers' pipelines open."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs
from safetensors.torch import save_file

from sfumato import CheckpointError, ConfigError
from sfumato_diffusers import scheduler_file, text, unet, vae
from sfumato_diffusers.families import FAMILIES, INDEX, LEFT_OUT, STEM, Family
from sfumato_diffusers.options import Options
from sfumato_diffusers.scheduler import made

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from sfumato import Snapshot

ENCODERS = ("pretrained_clip", "concat")
PIPELINES = tuple(FAMILIES)
"""By the text encoder's component, the pipeline that has it."""

COUNTERPARTS = {"denoiser": ("unet",), "autoencoder": ("kl",), "text_encoder": ENCODERS}
"""By slot, the components that diffusers' pipelines have too."""


def write(snapshot: Snapshot, folder: Path) -> None:
    """All of it; see `Diffusers.write`."""
    settings = snapshot.settings
    for slot, names in COUNTERPARTS.items():
        if settings[slot]["use"] not in names:
            raise ConfigError(
                f"{settings[slot]['use']} has no counterpart in diffusers",
                place=slot,
                remedy=f"it knows {' and '.join(names)}",
            )
    name = PIPELINES[ENCODERS.index(settings["text_encoder"]["use"])]
    family = FAMILIES[name]
    encoders = _encoders(snapshot, family)
    configs = _configs(snapshot, family)
    for part, config in configs.items():
        (folder / part).mkdir()
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        _write_json(folder / part / file, config)
    for (part, tokenizer, _), (files, state) in zip(family.encoders, encoders, strict=True):
        for one in (part, tokenizer):
            (folder / one).mkdir()
        text.write(files, folder / part, folder / tokenizer)
        _write_weights(folder / part / "model.safetensors", state)
    for part, slot in (("unet", "denoiser"), ("vae", "autoencoder")):
        _write_weights(folder / part / f"{STEM}.safetensors", snapshot.states[slot])
    classes = {part: [library, known[0]] for part, (library, known) in family.parts.items()}
    classes["scheduler"][1] = configs["scheduler"]["_class_name"]
    none = {part: [None, None] for part in LEFT_OUT}
    extra: dict[str, Any] = {"requires_safety_checker": False}
    if family.stacked:
        none.pop("safety_checker")
        extra = {
            "force_zeros_for_empty_prompt": settings["text_encoder"]["null_condition"] == "zeros"
        }
    _write_json(folder / INDEX, {"_class_name": name, **none, **extra, **classes})


def _configs(snapshot: Snapshot, family: Family) -> dict[str, dict[str, Any]]:
    """The configurations of what is no text encoder, by part.

    Raises:
        ConfigError: one of them cannot say an option that the weights go with.
    """
    settings = snapshot.settings
    size, latents = settings["sampling"]["size"], settings["autoencoder"]["channels"]
    factor = 2 ** (len(settings["autoencoder"]["widths"]) - 1)
    around = (latents, *text.widths(family, snapshot.files))
    configs = {
        "unet": unet.write(settings["denoiser"], [side // factor for side in size], *around),
        "vae": vae.write(settings["autoencoder"], size),
        "scheduler": scheduler_file.write(settings, forced=family.forced),
    }
    said = {"prediction": settings["denoiser"]["prediction"]}  # by the scheduler
    _check("denoiser", settings, said | _read(unet.read, configs["unet"], *around))
    _check("autoencoder", settings, _read(vae.read, configs["vae"]))
    return configs


def _read(reader: Callable[..., dict[str, Any]], config: Mapping[str, Any], *more: Any) -> Any:
    """What comes back of a configuration; what does not is found by `_check`."""
    try:
        return reader(Options(config, "config.json"), *more)
    except CheckpointError as error:
        raise ConfigError(f"has no counterpart in diffusers: {error}") from error


def _encoders(
    snapshot: Snapshot, family: Family
) -> list[tuple[dict[str, bytes], dict[str, Tensor]]]:
    """Files and weights of each text encoder.

    Raises:
        ConfigError: they are not those of this family.
    """
    settings, files = snapshot.settings["text_encoder"], dict(snapshot.files)
    state = dict(snapshot.states["text_encoder"])
    found = [(files, state)]
    listed = [settings]
    if family.stacked:
        listed = settings["encoders"]
        found = [
            (_under(f"{index}.", files), _under(f"encoders.{index}.", state))
            for index in range(len(listed))
        ]
    wanted = family.encoder(settings.get("null_condition", "empty"))
    for own, one in zip(listed, wanted.get("encoders", [wanted]), strict=False):
        if own["use"] != one["use"] or own["layer"] != one["layer"]:
            raise ConfigError(
                f"{own['use']} with layer: {own.get('layer')} has no place there",
                place="text_encoder",
                remedy=f"it is {one['use']} with layer: {one['layer']}",
            )
    kinds = [json.loads(own["config.json"])["architectures"][0] for own, _ in found]
    if kinds != (known := [kind for _, _, kind in family.encoders]) or (
        family.stacked and settings["pooled"] != wanted["pooled"]
    ):
        raise ConfigError(
            f"{' and '.join(kinds)} have no place there",
            place="text_encoder",
            remedy=f"it takes {' and '.join(known)}, the last of them for the pooled vector",
        )
    return found


def _under(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)}


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
    path.touch()
    mode = path.stat().st_mode  # by the umask; safetensors leaves a file that only its owner reads
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)
