"""Whether there is room: how much memory is free, and the least that pictures need.

It knows sizes alone. What a network needs beside is not estimated here.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sfumato.errors import ConfigError

FLOAT32 = 4
LATENTS = 4
"""Tensors like x that every sampler holds at once: x, its noise or the next x, x0 and eps."""
MEMINFO = Path("/proc/meminfo")


def free(device: torch.device) -> int | None:
    """Bytes that can still be had there; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def scaled(value: float) -> str:
    """Three digits and a decimal prefix: 1.23 G, to be followed by a unit."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} E"


def check_sampling(
    size: tuple[int, int],
    latent_shape: tuple[int, int, int],
    count: int,
    at_once: int,
    device: torch.device,
) -> None:
    """Raises ConfigError where `count` pictures, or the latents of a batch, would not fit.

    Args:
        size: height and width of a picture, which are kept on the CPU.
        latent_shape: (C, H, W) of what is diffused.
        count: pictures in all.
        at_once: those of the largest batch.
        device: of the network.
    """
    (height, width), (channels, rows, columns) = size, latent_shape
    pictures = 3 * height * width * FLOAT32 * (count + at_once)
    latents = LATENTS * channels * rows * columns * FLOAT32 * at_once
    host = torch.device("cpu")
    needs = (
        {host: pictures + latents} if device.type == "cpu" else {host: pictures, device: latents}
    )
    for place, need in needs.items():
        room = free(place)
        if room is not None and need > room:
            one = "picture" if count == 1 else "pictures"
            raise ConfigError(
                f"{count} {one} of {height} x {width} need at least {scaled(need)}B on "
                f"{place.type}, of which {scaled(room)}B are free",
                place="sampling.size",
                remedy="draw smaller pictures, or fewer at once",
            )
