"""What pictures are compared by: an encoder's vectors, or pixels, with what identifies them.

Where the settings name an encoder, it is one of
    run      the joint encoder of the pipeline itself;
    pixels   no encoder, the values of the resized picture (distances alone);
    RUN      the joint encoder of another run's newest checkpoint;
    FOLDER   a CLIP, as `pretrained_clip` reads it;
    FILE     a TorchScript file (distances alone), which is a program: name none that you do not
             trust.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional

from sfumato import ConfigError, JointEncoderModule, Pipeline, create

if TYPE_CHECKING:
    from collections.abc import Sequence

PIXELS_SIDE = 8
"""Of a picture whose pixels are features, where no size is given: 192 numbers."""
AT_ONCE = 64


@attrs.frozen(eq=False, kw_only=True)
class Extractor:
    """Pictures to vectors.

    Attributes:
        name: as the settings have it.
        sha256: of the weights; None where there are none.
        resize: the side that pictures are brought to first; None where they stay.
        compute: pictures (B, 3, H, W) in [-1, 1], resized, to (B, d).
    """

    name: str
    sha256: str | None
    resize: int | None
    compute: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, d) float64 on the CPU."""
        size = self.resize
        if size is not None and images.shape[-2:] != (size, size):
            images = functional.interpolate(
                images, (size, size), mode="bilinear", antialias=True, align_corners=False
            )
        pieces = [self.compute(piece).double().cpu() for piece in torch.split(images, AT_ONCE)]
        return torch.cat(pieces).flatten(1)

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it."""
        return {"extractor": self.name, "sha256": self.sha256, "resize": self.resize}


def extractor(named: str, resize: int | None, pipeline: Pipeline, place: str) -> Extractor:
    """What `named` stands for.

    Raises:
        ConfigError: nothing that can be had, or that looks at pictures.
    """
    if named == "pixels":
        side = PIXELS_SIDE if resize is None else resize
        return Extractor(name=named, sha256=None, resize=side, compute=lambda images: images)
    if Path(named).is_file():
        return Extractor(
            name=named,
            sha256=hashlib.sha256(Path(named).read_bytes()).hexdigest(),
            resize=resize,
            compute=_script(named, pipeline.device, place),
        )
    encoder = joint_encoder(named, pipeline, place)
    device = next(encoder.parameters()).device
    return Extractor(
        name=named,
        sha256=fingerprint(encoder),
        resize=resize,
        compute=lambda images: encoder.encode_images(images.to(device)),
    )


def joint_encoder(named: str, pipeline: Pipeline, place: str) -> JointEncoderModule:
    """The encoder of texts and pictures that `named` stands for.

    Raises:
        ConfigError: there is none, or it encodes texts only.
    """
    if named == "run":
        encoder: Any = pipeline.text_encoder
    elif Path(named).is_dir() and not (Path(named) / "settings.yaml").is_file():
        encoder = create("text_encoder", "pretrained_clip", source=named).build({})
        encoder.eval().requires_grad_(False).to(pipeline.device)
    else:
        encoder = Pipeline.load(named, device=str(pipeline.device)).text_encoder
    if not isinstance(encoder, JointEncoderModule):
        raise ConfigError(
            f"the text encoder {type(encoder).__name__} has no image encoder beside it",
            place=place,
            remedy="use a joint text_encoder such as clip, or leave this out",
        )
    return encoder


@attrs.frozen(eq=False, kw_only=True)
class Scorer:
    """Who judges how pictures fit their prompts.

    Attributes:
        name: as the settings have it.
        encoder: of both.
    """

    name: str
    encoder: JointEncoderModule

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it."""
        return {"scorer": self.name, "sha256": fingerprint(self.encoder)}


def scorer(named: str, pipeline: Pipeline, place: str) -> Scorer:
    """A joint encoder that judges how pictures fit their prompts; the run's own with a warning."""
    encoder = joint_encoder(named, pipeline, place)
    if named == "run":
        warnings.warn(
            f"{place}: the scorer is the run's own text encoder, which its pictures were drawn "
            "for; name another with scorer: RUN to compare runs",
            stacklevel=2,
        )
    return Scorer(name=named, encoder=encoder)


def fingerprint(module: torch.nn.Module) -> str:
    """The SHA-256 of the weights: of each name and its values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _script(file: str, device: torch.device, place: str) -> Callable[[Tensor], Tensor]:
    try:
        module = torch.jit.load(file, map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{file} is no TorchScript file", place=place) from error
    return lambda images: module(images.to(device))


@torch.no_grad()
def embeddings(
    encoder: JointEncoderModule, captions: Sequence[str], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, P) float32 on the CPU for captions and for images (B, 3, H, W)."""
    texts = encoder.encode(captions).pooled
    pictures = encoder.encode_images(images.to(texts.device))
    return functional.normalize(texts.float().cpu()), functional.normalize(pictures.float().cpu())
