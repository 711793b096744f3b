"""A pipeline's folder, from its `model_index.json` on, to settings and weights of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sfumato import Snapshot
from sfumato_diffusers import scheduler, text, unet, vae
from sfumato_diffusers.families import FAMILIES, INDEX, LEFT_OUT, STEM, Family
from sfumato_diffusers.folder import Folder
from sfumato_diffusers.options import Options

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def read(folder: Path) -> Snapshot:
    """All of it; see `Diffusers.read`."""
    files = Folder(folder)
    family, null, remarks = _family(files)
    encoder, encoder_files, encoder_state = _encoder(files, family, null)
    autoencoder = vae.read(_options(files, family, "vae"))
    clock = scheduler.read(
        _options(files, family, "scheduler", "scheduler_config.json"), forced=family.forced
    )
    options = _options(files, family, "unet")
    side = options.take("sample_size", 64)
    denoiser = unet.read(options, autoencoder["channels"], *text.widths(family, encoder_files))
    factor = 2 ** (len(autoencoder["widths"]) - 1)
    return Snapshot(
        settings={
            "noise_schedule": clock.noise_schedule,
            "text_encoder": encoder,
            "denoiser": {**denoiser, "prediction": clock.prediction},
            "autoencoder": autoencoder,
            "loss": {"use": "mse"},
            "time_sampler": {"use": "uniform"},
            "time_grid": clock.time_grid,
            "sampler": clock.sampler,
            "guidance": {
                "use": "negative_prompt",
                "positive_scale": family.scale,
                "negative_scale": family.scale - 1,
            },
            "sampling": {
                "steps": family.steps,
                "size": [one * factor for one in (side if isinstance(side, list) else [side] * 2)],
            },
        },
        states={
            "text_encoder": encoder_state,
            "denoiser": files.weights("unet", STEM),
            "autoencoder": vae.weights(files.weights("vae", STEM), str(folder / "vae")),
        },
        files=encoder_files,
        facts={"null_condition": "zeros" if null == "zeros" else "the empty prompt"},
        sources=files.hashes,
        remarks=remarks,
    )


def _encoder(
    folder: Folder, family: Family, null: str
) -> tuple[dict[str, Any], dict[str, bytes], dict[str, Tensor]]:
    """The settings of the text encoder, its files and its weights."""
    parts = [text.read(folder, *parts) for parts in family.encoders]
    if not family.stacked:
        return family.encoder(null), *parts[0]
    files = {f"{i}.{name}": one for i, (own, _) in enumerate(parts) for name, one in own.items()}
    state = {
        f"encoders.{i}.{name}": tensor
        for i, (_, own) in enumerate(parts)
        for name, tensor in own.items()
    }
    return family.encoder(null), files, state


def _options(folder: Folder, family: Family, part: str, name: str = "config.json") -> Options:
    """The settings of a part, which is of a class that is known."""
    options = Options(folder.json(f"{part}/{name}"), str(folder.path(f"{part}/{name}")))
    known = family.parts[part][1]
    if options.class_name not in known:
        raise options.refusal("_class_name", options.class_name, f"known: {', '.join(known)}")
    return options


def _family(folder: Folder) -> tuple[Family, str, tuple[str, ...]]:
    """Which kind of pipeline it is, its null condition, and what is left out.

    Raises:
        CheckpointError: it is none that we know.
    """
    index = folder.json(INDEX)
    options = Options(index, str(folder.path(INDEX)))
    name = options.class_name
    if not isinstance(name, str) or name not in FAMILIES:
        code = isinstance(name, list)
        remedy = "code is never read from a folder" if code else f"known: {', '.join(FAMILIES)}"
        raise options.refusal("_class_name", name, remedy)
    family = FAMILIES[name]
    for part, (library, classes) in family.parts.items():
        named = options.raw(part)
        if not isinstance(named, list) or named not in [[library, one] for one in classes]:
            remedy = f"known: {', '.join(f'{library}.{one}' for one in classes)}"
            raise options.refusal(part, named, remedy)
    remarks = []
    for part in LEFT_OUT:
        named = index.get(part)
        if isinstance(named, list) and any(named):
            remarks.append(f"{part} is left out: it has no say in what is drawn")
    null = "empty"
    if family.stacked:
        options.fixed(add_watermarker=None)
        null = "zeros" if options.take("force_zeros_for_empty_prompt", True) else "empty"
    options.ignore(*LEFT_OUT, "requires_safety_checker")
    options.close()
    return family, null, tuple(remarks)
