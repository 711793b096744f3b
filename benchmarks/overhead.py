"""What the framework costs: `Pipeline.sample` against the same loop written by hand.

Both sample DDIM with classifier-free guidance on the same UNet, weights, texts and noise; the
pictures are compared before anything is timed. The two take turns, so that a noisy machine is noisy
for both.

    python benchmarks/overhead.py [--pictures 8] [--steps 20] [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from sfumato import Draw, Pipeline, Registry, TextEmbedding


def by_hand(pipeline: Pipeline, prompts: list[str], steps: int) -> Tensor:
    """The textbook loop, with all that does not change taken out of it."""
    schedule, denoiser = pipeline.settings.noise_schedule, pipeline.denoiser
    times = pipeline.settings.time_grid.times(steps, schedule)
    alpha, sigma = schedule.alpha_sigma(times)
    text, null = pipeline.encode(prompts), pipeline.text_encoder.null(len(prompts))
    both: TextEmbedding = null.map(lambda *parts: torch.cat(parts), text)
    condition = denoiser.precompute(both, times[:-1])
    draw = Draw(seed=0, stream="sample", examples=torch.arange(len(prompts)))
    x = draw.normal("noise", (3, *pipeline.settings.data.picture_size))
    for i in range(steps):
        eps = denoiser(torch.cat((x, x)), times[i].expand(2 * len(x)), condition)
        eps_null, eps_text = eps.chunk(2)
        eps = eps_null + 4.0 * (eps_text - eps_null)
        x0 = (x - sigma[i] * eps) / alpha[i]
        x = alpha[i + 1] * x0 + sigma[i + 1] * eps
    return x.clamp(-1, 1)


def main() -> None:
    """Prints one line of JSON: milliseconds a step of both, medians, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    registry = Registry.load(Path(__file__).parents[1] / "registry.yaml")
    settings = registry.experiment("demo", ["sampler=ddim", "sampler.clip_x0=null"])
    captions = ["a red circle", "a large blue square on a white background"]
    pipeline = Pipeline(settings, settings.text_encoder.fit(captions))
    for parameter in pipeline.denoiser.parameters():  # fresh weights predict exactly zero
        torch.nn.init.normal_(parameter, std=0.02)
    prompts = [captions[i % 2] for i in range(options.pictures)]
    with torch.inference_mode():
        ours = pipeline.sample(prompts, steps=options.steps, seed=0)
        theirs = by_hand(pipeline, prompts, options.steps)
        difference = float((ours - theirs).abs().max())
        assert difference < 1e-4, difference
        seconds: dict[str, list[float]] = {"pipeline": [], "by_hand": []}
        for _ in range(options.rounds):
            for name, call in (
                ("pipeline", lambda: pipeline.sample(prompts, steps=options.steps, seed=0)),
                ("by_hand", lambda: by_hand(pipeline, prompts, options.steps)),
            ):
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["pipeline"], seconds["by_hand"], strict=True)]
    report = {
        **{f"{name}_ms_a_step": 1e3 * value / options.steps for name, value in medians.items()},
        "ratio": statistics.median(ratios),
        "largest_difference": difference,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "pictures": options.pictures,
    }
    print(json.dumps(report, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
