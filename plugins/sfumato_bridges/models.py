"""A network of diffusers as a module of ours.

What its `forward` takes says what it is given; an argument without a default that nobody can give
is a reason to refuse it, and so is a forward pass on the meta device that fails: both before any
weight is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sfumato import ConfigError, DenoiserModule, TextEmbedding
from sfumato_bridges import library

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sfumato import Opposed, Space
    from sfumato_bridges import DiffusersModel

PLACE = "denoiser diffusers_model"
OWNER = "the pictures, the autoencoder, the text encoder and `learned_sigma`"

TEXT_WIDTH = (
    *("caption_channels", "joint_attention_dim", "cap_feat_dim", "context_in_dim"),
    "cross_attention_dim",
)
"""What the width of the text tokens is called: the first of these that a network has."""
PICTURE = ("sample", "hidden_states")
TOKENS = "encoder_hidden_states"
MASK = "encoder_attention_mask"
POOLED = "pooled_projections"
PROJECTED = ("projection", "simple_projection")
"""Of `class_embed_type`: a UNet that adds a projected vector to its time embedding."""
SIZED = "text_time"
"""Of `addition_embed_type`: SDXL's UNet, which adds the pooled vector and sizes of the picture."""
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
         ValueError)  # fmt: skip
"""What a network raises whose configuration does not fit itself, or its inputs."""
REFUSED = {"Transformer2DModel": "a part of networks, which hears no time"}
GIVEN = {*PICTURE, "timestep", TOKENS, MASK, POOLED}


def patch(settings: DiffusersModel) -> int:
    """The side of a patch; 1 where there are none."""
    known = library.parameters(_class(settings).__init__)
    default = known["patch_size"].default if "patch_size" in known else 1
    size = settings.config.get("patch_size", default)
    return size if isinstance(size, int) else 1


class DiffusersModule(DenoiserModule):
    """See `DiffusersModel`.

    Attributes:
        network: that of diffusers.
    """

    def __init__(self, settings: DiffusersModel, space: Space) -> None:
        super().__init__()
        cls, config = _class(settings), configuration(settings, space)
        self.schedule, self.channels = space.schedule, space.channels
        self.takes = frozenset(library.parameters(cls.forward))
        self.mask = settings.mask
        self.factor = space.factor
        self.pooled_class = config.get("class_embed_type") in PROJECTED
        self.sized = config.get("addition_embed_type") == SIZED
        try:
            with torch.device("meta"):
                self.network = cls(**config)
            self._try(space)
        except UNFIT as error:
            what = f"{settings.model} does not run on {space.channels} x {space.height} x "
            problem = f"{what}{space.width} with this config: {error}"
            raise ConfigError(problem, place=f"{PLACE}, config") from error
        self.network = cls(**config)

    def _try(self, space: Space) -> None:
        """One pass without values; what the meta device cannot do is left to the first step."""
        with torch.device("meta"):
            x_t = torch.zeros(2, space.channels, space.height, space.width)
            text = TextEmbedding(
                tokens=torch.zeros(2, 3, space.text_width),
                mask=torch.ones(2, 3, dtype=torch.bool),
                pooled=torch.zeros(2, space.pooled_width),
            )
            try:
                found = self.network(x_t, **self._arguments(x_t, torch.ones(2), text))[0]
            except NotImplementedError:
                return
        if found.shape[0] != 2 or found.shape[2:] != x_t.shape[2:]:
            raise ValueError(f"{tuple(x_t.shape)} became {tuple(found.shape)}")

    def _arguments(self, x_t: Tensor, timestep: Tensor, text: TextEmbedding) -> dict[str, Any]:
        """What the network is given beside x_t."""
        given: dict[str, Any] = {
            "timestep": timestep,
            TOKENS: text.tokens,
            MASK: text.mask if self.mask else None,
            POOLED: text.pooled,
            "class_labels": text.pooled if self.pooled_class else None,
            "added_cond_kwargs": self._sizes(x_t, text) if self.sized else None,
            "return_dict": False,
        }
        return {name: value for name, value in given.items() if name in self.takes}

    def _sizes(self, x_t: Tensor, text: TextEmbedding) -> dict[str, Tensor]:
        """The pooled vector, and that the picture was neither resized nor cropped."""
        height, width = (side * self.factor for side in x_t.shape[2:])
        ids = torch.tensor([height, width, 0, 0, height, width], device=x_t.device)
        return {"text_embeds": text.pooled, "time_ids": ids.expand(len(x_t), 6)}

    def forward(
        self, x_t: Tensor, t: Tensor, condition: TextEmbedding | Opposed, variant: str | None = None
    ) -> Tensor:
        """See `DenoiserModule.forward`.

        Raises:
            ConfigError: a variant is asked for.
        """
        if variant is not None or not isinstance(condition, TextEmbedding):
            raise ConfigError(f"a network of diffusers has no variant {variant!r}", place=PLACE)
        timestep = self.schedule.timestep(t).float()
        found: Tensor = self.network(x_t, **self._arguments(x_t, timestep, condition))[0]
        return found[:, : self.channels]


def configuration(settings: DiffusersModel, space: Space) -> dict[str, Any]:
    """What the network is made with: `config`, and what its neighbours impose.

    Raises:
        ConfigError: the network or its config is not supported.
    """
    known = library.parameters(_class(settings).__init__)
    imposed = _imposed(settings, known, space)
    library.check_names(settings.config, known, imposed, f"{PLACE}, config", OWNER)
    return {**settings.config, **imposed}


def _imposed(settings: DiffusersModel, known: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The part of a configuration that the space says."""
    outputs = space.channels * (2 if settings.learned_sigma else 1)
    if settings.learned_sigma and "out_channels" not in known:
        raise ConfigError(f"{settings.model} has as many channels out as in", place=PLACE)
    text_width = next((name for name in TEXT_WIDTH if name in known), None)
    imposed = {
        "in_channels": space.channels,
        "out_channels": outputs,
        "sample_size": max(space.height, space.width),
        "pooled_projection_dim": space.pooled_width,
    }
    if text_width is not None:
        imposed[text_width] = space.text_width
    if settings.config.get("class_embed_type") in PROJECTED:
        imposed["projection_class_embeddings_input_dim"] = space.pooled_width
    if settings.config.get("addition_embed_type") == SIZED:
        width = settings.config.get("addition_time_embed_dim") or 0
        imposed["projection_class_embeddings_input_dim"] = space.pooled_width + 6 * width
    return {name: value for name, value in imposed.items() if name in known}


def _class(settings: DiffusersModel) -> Any:
    """The class, which takes text and nothing that is not there.

    Raises:
        ConfigError: it does not.
    """
    cls = library.subclass(settings.model, "ModelMixin", PLACE)
    if settings.model in REFUSED:
        raise ConfigError(f"{settings.model} is {REFUSED[settings.model]}", place=PLACE)
    takes = library.parameters(cls.forward)
    if TOKENS not in takes:
        instead = "classes" if "class_labels" in takes else "something else"
        raise ConfigError(
            f"{settings.model} is conditioned on {instead}, not on text",
            place=PLACE,
            remedy=f"use one whose forward takes {TOKENS}, such as PixArtTransformer2DModel",
        )
    wanted = [name for name, one in takes.items() if one.default is one.empty and name not in GIVEN]
    if wanted or next(iter(takes)) not in PICTURE:
        what = ", ".join(wanted) or "no picture"
        raise ConfigError(f"{settings.model} wants {what}, which is not there", place=PLACE)
    return cls
