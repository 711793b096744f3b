"""UNet2DConditionModel and the denoiser `unet`, whose parameters have the same names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sfumato_diffusers.options import Options

CLASS = "UNet2DConditionModel"
DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
MIDDLE = "UNetMidBlock2DCrossAttn"

FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": MIDDLE,
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""What our network does, and no other way."""

PRECISION = ("upcast_attention",)
"""What changes numbers in half precision alone, where ours attends in float32 anyway."""

UNUSED = ("addition_embed_type_num_heads",)
"""What says something about parts that are left out."""

SIZES = 6
"""Numbers that say how large a picture is: its height and width, where it was cut, and again."""


def read(
    options: Options, latents: int, text_width: int, pooled_width: int | None = None
) -> dict[str, Any]:
    """The settings of the denoiser.

    Args:
        options: of the UNet.
        latents: channels of the autoencoder's latents.
        text_width: of the tokens that the text encoder gives.
        pooled_width: of the pooled vector, where it is heard, with the picture's size.

    Raises:
        CheckpointError: a value has no counterpart, or does not fit its neighbours.
    """
    default = [DOWN[True], DOWN[True], DOWN[True], DOWN[False]]
    down = options.take("down_block_types", default)
    for kind in down:
        if kind not in DOWN.values():
            raise options.refusal("down_block_types", kind, f"known: {', '.join(DOWN.values())}")
    attention = [kind == DOWN[True] for kind in down]
    wanted = [UP[attends] for attends in reversed(attention)]
    up = options.take("up_block_types", [UP[False], *[UP[True]] * 3])
    if up != wanted:
        raise options.refusal("up_block_types", up, "they must mirror down_block_types")
    for key in ("in_channels", "out_channels"):
        if (channels := options.take(key, 4)) != latents:
            raise options.refusal(key, channels, f"latents have {latents} channels")
    if (width := options.count("cross_attention_dim", 1280)) != text_width:
        raise options.refusal("cross_attention_dim", width, f"the text has {text_width}")
    settings = {
        "use": "unet",
        "channels": options.take("block_out_channels", [320, 640, 1280, 1280]),
        "layers": options.count("layers_per_block", 2),
        "attention": attention,
        "depth": _listed(options.take("transformer_layers_per_block", 1)),
        "heads": _listed(options.take("attention_head_dim", 8)),  # diffusers' name is wrong
        "linear_projection": options.take("use_linear_projection", False),
        "groups": options.take("norm_num_groups", 32),
        "dropout": options.take("dropout", 0.0),
        **_added(options, pooled_width),
    }
    options.fixed(**FIXED)
    options.ignore("sample_size", *PRECISION, *UNUSED)
    options.close()
    return settings


def _added(options: Options, pooled_width: int | None) -> dict[str, Any]:
    """What is added to the embedding of the time."""
    if pooled_width is None:
        options.fixed(addition_embed_type=None)
        options.ignore("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        return {}
    options.choice("addition_embed_type", "none", ("text_time",))
    width = options.count("addition_time_embed_dim", 256)
    inputs = options.count("projection_class_embeddings_input_dim", 2816)
    if inputs != pooled_width + SIZES * width:
        remedy = f"the pooled text has {pooled_width}, and {SIZES} sizes {width} each"
        raise options.refusal("projection_class_embeddings_input_dim", inputs, remedy)
    return {"size_width": width}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def write(
    settings: Mapping[str, Any],
    size: list[int],
    latents: int,
    text_width: int,
    pooled_width: int | None,
) -> dict[str, Any]:
    """The configuration of a `unet`.

    Args:
        settings: of the denoiser, all options written out.
        size: height and width of the latents.
        latents: as for `read`.
        text_width: as for `read`.
        pooled_width: as for `read`.
    """
    count = len(settings["channels"])
    attention = [*settings["attention"]] * (count if len(settings["attention"]) == 1 else 1)
    added = {}
    if pooled_width is not None and settings["size_width"] is not None:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": settings["size_width"],
            "projection_class_embeddings_input_dim": pooled_width + SIZES * settings["size_width"],
        }
    return {
        "_class_name": CLASS,
        "in_channels": latents,
        "out_channels": latents,
        "sample_size": size[0] if size[0] == size[1] else size,
        "block_out_channels": settings["channels"],
        "layers_per_block": settings["layers"],
        "down_block_types": [DOWN[attends] for attends in attention],
        "mid_block_type": MIDDLE,
        "up_block_types": [UP[attends] for attends in reversed(attention)],
        "transformer_layers_per_block": _by_level(settings["depth"], count),
        "attention_head_dim": _by_level(settings["heads"], count),
        "cross_attention_dim": text_width,
        "use_linear_projection": settings["linear_projection"],
        "norm_num_groups": settings["groups"],
        "dropout": settings["dropout"],
        **{name: FIXED[name] for name in ("act_fn", "flip_sin_to_cos", "freq_shift", "norm_eps")},
        **added,
    }


def _by_level(values: list[int], count: int) -> int | list[int]:
    return values[0] if len(values) == 1 or len(set(values)) == 1 else values
