"""AutoencoderKL and the autoencoder `kl`, whose parameters have the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sfumato_diffusers.folder import renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sfumato_diffusers.options import Options

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "out_channels": 3,
}
"""What our network does, and no other way."""

UNUSED = ("sample_size", "force_upcast")
"""A size that the weights do not know, and a wish about half precision."""

OLD_NAMES = {
    f".attentions.0.{old}.": f".attentions.0.{new}."
    for old, new in (
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    )
}
"""Of attention, before diffusers 0.18: Stable Diffusion 1 was published with these."""


def read(options: Options) -> dict[str, Any]:
    """The settings of the autoencoder.

    Raises:
        CheckpointError: a value has no counterpart.
    """
    widths = options.take("block_out_channels", [64])
    for key, kind in (("down_block_types", DOWN), ("up_block_types", UP)):
        kinds = options.take(key, [kind])
        if kinds != [kind] * len(widths):
            raise options.refusal(key, kinds, f"{kind} for each level alone is known")
    quant_conv = options.take("use_quant_conv", True)
    options.fixed(use_post_quant_conv=quant_conv)
    settings = {
        "use": "kl",
        "channels": options.take("latent_channels", 4),
        "widths": widths,
        "layers": options.take("layers_per_block", 1),
        "groups": options.take("norm_num_groups", 32),
        "quant_conv": quant_conv,
        "scaling": options.take("scaling_factor", 0.18215),
        "shift": options.take_or_none("shift_factor", 0.0) or 0.0,
    }
    options.fixed(**FIXED)
    options.ignore(*UNUSED)
    options.close()
    return settings


def weights(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """By the names that attention has today."""
    return renamed(state, OLD_NAMES, place)


def write(settings: Mapping[str, Any], size: list[int]) -> dict[str, Any]:
    """The configuration of a `kl`, for pictures of this height and width."""
    levels = len(settings["widths"])
    return {
        "_class_name": CLASS,
        **FIXED,
        "block_out_channels": settings["widths"],
        "down_block_types": [DOWN] * levels,
        "up_block_types": [UP] * levels,
        "latent_channels": settings["channels"],
        "layers_per_block": settings["layers"],
        "norm_num_groups": settings["groups"],
        "sample_size": max(size),
        "scaling_factor": settings["scaling"],
        "shift_factor": settings["shift"] or None,
        "use_quant_conv": settings["quant_conv"],
        "use_post_quant_conv": settings["quant_conv"],
    }
