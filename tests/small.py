"""A registry small enough to train in a second, and where the repository is."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMALL = """
version: 1
noise_schedule:
  linear: {use: linear, beta_start: 1e-4, beta_end: 0.02, steps: 1000}
text_encoder:
  clip: {use: clip, vocabulary: 300, positions: 40, width: 16, layers: 1, heads: 2, projection: 16,
         image_size: 16, patch: 8, image_width: 16, image_layers: 1, image_heads: 2}
denoiser:
  unet: {use: unet, channels: [16, 16], attention: [false, true], groups: 4, heads: [2]}
guidance:
  negative: {use: negative_prompt, positive_scale: 3.0, negative_scale: 2.0}
sampler:
  clipped: {use: ddim, clip_x0: 1.0}
data:
  shapes: {use: shapes, size: 16, count: 64, held_out: 16}
pipelines:
  shapes:
    data: shapes
    autoencoder: pixels
    text_encoder: clip
    noise_schedule: linear
    denoiser: unet
    loss: mse
    time_sampler: uniform
    time_grid: trailing
    sampler: clipped
    guidance: cfg
experiments:
  small:
    pipeline: shapes
    seed: 3
    stages:
      clip: {objective: contrastive, steps: 4, batch: 8}
      denoiser: {objective: denoising, steps: 6, batch: 8, text_dropout: 0.2, ema: 0.9}
    sampling: {steps: 3}
    evaluation: {metrics: [shape_attributes], count: 6, batch: 4}
  cosine: {from: small, set: {noise_schedule: cosine}}
  strong: {from: small, set: {guidance: {scale: 9}}}
"""
