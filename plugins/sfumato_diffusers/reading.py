"""A pipeline's folder, from its `model_index.json` on, to settings and weights of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sfumato import CheckpointError, Snapshot
from sfumato_diffusers import scheduler, text, unet, vae
from sfumato_diffusers.folder import Folder
from sfumato_diffusers.options import Options

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model_index.json"
PIPELINES = ("StableDiffusionPipeline",)
PARTS = {
    "unet": ("diffusers", (unet.CLASS,)),
    "vae": ("diffusers", (vae.CLASS,)),
    "text_encoder": ("transformers", (text.ENCODER,)),
    "tokenizer": ("transformers", text.TOKENIZERS),
    "scheduler": ("diffusers", tuple(sorted(scheduler.READERS))),
}
"""What a pipeline is made of: of which library, and which classes are known."""

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that have no say in a picture from a text."""

STEM = "diffusion_pytorch_model"
SCALE = 7.5
"""Of guidance, where diffusers' pipelines are not told another; so is STEPS."""
STEPS = 50


def read(folder: Path) -> Snapshot:
    """All of it; see `Diffusers.read`."""
    files = Folder(folder)
    remarks = _check_index(files)
    encoder_files, encoder = text.read(files, "text_encoder", "tokenizer", text.ENCODER)
    autoencoder = vae.read(_options(files, "vae"))
    clock = scheduler.read(_options(files, "scheduler", "scheduler_config.json"), forced=True)
    options = _options(files, "unet")
    side = options.take("sample_size", 64)
    denoiser = unet.read(options, autoencoder["channels"], text.width(encoder_files))
    factor = 2 ** (len(autoencoder["widths"]) - 1)
    sides = side if isinstance(side, list) else [side, side]
    return Snapshot(
        settings={
            "noise_schedule": clock.noise_schedule,
            "text_encoder": {"use": "pretrained_clip"},
            "denoiser": {**denoiser, "prediction": clock.prediction},
            "autoencoder": autoencoder,
            "loss": {"use": "mse"},
            "time_sampler": {"use": "uniform"},
            "time_grid": clock.time_grid,
            "sampler": clock.sampler,
            "guidance": {
                "use": "negative_prompt",
                "positive_scale": SCALE,
                "negative_scale": SCALE - 1,
            },
            "sampling": {"steps": STEPS, "size": [side * factor for side in sides]},
        },
        states={
            "text_encoder": encoder,
            "denoiser": files.weights("unet", STEM),
            "autoencoder": vae.weights(files.weights("vae", STEM), str(folder / "vae")),
        },
        files=encoder_files,
        facts={"null_condition": "the empty prompt"},
        sources=files.hashes,
        remarks=tuple(remarks),
    )


def _options(folder: Folder, part: str, name: str = "config.json") -> Options:
    """The settings of a part, which is of a class that is known."""
    options = Options(folder.json(f"{part}/{name}"), str(folder.path(f"{part}/{name}")))
    known = PARTS[part][1]
    if options.class_name not in known:
        raise options.refusal("_class_name", options.class_name, f"known: {', '.join(known)}")
    return options


def _check_index(folder: Folder) -> list[str]:
    """Refuses what is no pipeline that we know; says what is left out."""
    index = folder.json(INDEX)
    options = Options(index, str(folder.path(INDEX)))
    if options.class_name not in PIPELINES:
        code = isinstance(options.class_name, list)
        remedy = "code is never read from a folder" if code else f"known: {', '.join(PIPELINES)}"
        raise options.refusal("_class_name", options.class_name, remedy)
    for part, (library, classes) in PARTS.items():
        named = options.take(part, [""])
        if len(named) != 2 or named[0] != library or named[1] not in classes:
            remedy = f"known: {', '.join(f'{library}.{one}' for one in classes)}"
            raise options.refusal(part, named, remedy)
    remarks = []
    for part in LEFT_OUT:
        named = index.get(part)
        if isinstance(named, list) and any(named):
            remarks.append(f"{part} is left out: it has no say in what is drawn")
    options.ignore(*LEFT_OUT, "requires_safety_checker")
    options.close()
    return remarks
