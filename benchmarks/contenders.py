"""One side of `sd.py` in a process of its own: builds, compiles, checks itself, then obeys.

Both sides have the weights that diffusers draws, and the same inputs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, SCALE = 50, 7.5


@attrs.frozen
class Size:
    """A UNet, and what it is asked: latents of `side` squared, `tokens` of text."""

    unet: dict[str, Any]
    side: int
    channels: int
    tokens: int
    width: int
    steps: int
    batches: tuple[int, ...]
    train: int


SIZES = {
    "sd1": Size(
        {
            "channels": (320, 640, 1280, 1280),
            "layers": 2,
            "attention": (True, True, True, False),
            "heads": (8,),
        },
        side=64, channels=4, tokens=77, width=768, steps=STEPS, batches=(2, 8, 32), train=32,
    ),
    "60m": Size(
        {
            "channels": (128, 256, 384),
            "layers": 2,
            "attention": (False, True, True),
            "heads": (4,),
        },
        side=32, channels=4, tokens=77, width=512, steps=4, batches=(2,), train=0,
    ),
    "demo": Size(
        {
            "channels": (32, 64, 96),
            "attention": (False, False, True),
            "groups": 8,
            "pooled": True,
        },
        side=16, channels=3, tokens=16, width=128, steps=12, batches=(16,), train=0,
    ),
    "tiny": Size(
        {"channels": (16, 32), "attention": (False, True), "heads": (2,), "groups": 4},
        side=8, channels=4, tokens=5, width=12, steps=3, batches=(2,), train=2,
    ),
}  # fmt: skip


@attrs.frozen
class Contender:
    """One process: a side, how it runs, the batch that its UNet sees, and whether it trains."""

    side: str
    how: str
    batch: int
    train: bool
    size: str
    device: str

    @property
    def works(self) -> tuple[str, ...]:
        """What it is timed at."""
        if self.train:
            return ("train",)
        return ("forward", "sample") if self.batch <= 16 else ("forward",)


class Setting:
    """The inputs and the weights, alike for every contender."""

    def __init__(self, contender: Contender) -> None:
        from diffusers import UNet2DConditionModel

        from sfumato import Space
        from sfumato_schedules import ScaledLinearBeta
        from sfumato_unet import UNet

        size = self.size = SIZES[contender.size]
        self.device = torch.device(contender.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.unet, self.schedule = UNet(**size.unet), ScaledLinearBeta()
        self.space = Space(
            channels=size.channels, height=size.side, width=size.side, text_width=size.width,
            pooled_width=size.width, schedule=self.schedule,
        )  # fmt: skip
        levels = self.unet.levels()
        names = {True: "CrossAttn{}Block2D", False: "{}Block2D"}
        kinds = [names[level.attention] for level in levels]
        pooled = {
            "class_embed_type": "projection", "projection_class_embeddings_input_dim": size.width
        }  # fmt: skip
        torch.manual_seed(0)
        with self.device:
            self.theirs = UNet2DConditionModel(
                in_channels=size.channels,
                out_channels=size.channels,
                block_out_channels=self.unet.channels,
                layers_per_block=self.unet.layers,
                down_block_types=tuple(kind.format("Down") for kind in kinds),
                up_block_types=tuple(kind.format("Up") for kind in reversed(kinds)),
                cross_attention_dim=size.width,
                attention_head_dim=tuple(level.heads for level in levels),
                norm_num_groups=self.unet.groups,
                **(pooled if self.unet.pooled else {}),
            ).eval()
        batch = contender.batch
        draw = torch.Generator().manual_seed(1)
        shape = (batch, size.channels, size.side, size.side)
        self.x, self.target = (self.put(torch.randn(shape, generator=draw)) for _ in range(2))
        self.tokens = self.put(torch.randn(batch, size.tokens, size.width, generator=draw))
        self.pooled = self.put(torch.randn(batch, size.width, generator=draw))
        self.index = torch.randint(0, 1000, (batch,), generator=draw).to(self.device)

    def put(self, tensor: Tensor) -> Tensor:
        """On the device, in float32."""
        return tensor.to(self.device)

    def labels(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What diffusers wants to be told beside the tokens."""
        return {"class_labels": self.pooled.to(dtype)} if self.unet.pooled else {}


def diffusers_works(setting: Setting, contender: Contender) -> dict[str, Callable[[], Tensor]]:
    """The UNet of diffusers, and the loop of its StableDiffusionPipeline around it."""
    from diffusers import DDIMScheduler

    unet = setting.theirs.requires_grad_(False).to(setting.dtype)
    forward: Any = unet
    if contender.how == "compiled":
        unet.fuse_qkv_projections()
        if setting.device.type == "cuda":
            unet.to(memory_format=torch.channels_last)
        mode = "reduce-overhead" if setting.device.type == "cuda" else "default"
        forward = torch.compile(unet, mode=mode, fullgraph=True)
    x, tokens = setting.x.to(setting.dtype), setting.tokens.to(setting.dtype)
    labels = setting.labels(setting.dtype)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    index = torch.tensor(501, device=setting.device)

    def sample() -> Tensor:
        scheduler.set_timesteps(setting.size.steps, device=setting.device)
        latents = x[: len(x) // 2]
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            said = forward(both, t, encoder_hidden_states=tokens, return_dict=False, **labels)[0]
            null, prompt = said.chunk(2)
            said = null + SCALE * (prompt - null)
            latents = scheduler.step(said, t, latents, return_dict=False)[0]
        return latents

    def once() -> Tensor:
        return forward(x, index, tokens, return_dict=False, **labels)[0]  # type: ignore[no-any-return]

    return {"forward": once, "sample": sample}


def our_works(setting: Setting, contender: Contender) -> dict[str, Callable[[], Tensor]]:
    """Our UNet with diffusers' weights, and our sampler with our guidance around it."""
    from sfumato.compiling import Compiled
    from sfumato.sampling import GuidedDenoiser, Model, Texts, reverse
    from sfumato_guidance.linear import ClassifierFreeGuidance
    from sfumato_samplers import DDIM
    from sfumato_schedules.grids import Leading

    with torch.device(setting.device):
        module = setting.unet.build(setting.space).eval()
    module.load_state_dict(setting.theirs.state_dict())
    setting.theirs.cpu()
    module.requires_grad_(False).to(setting.dtype).to(memory_format=torch.channels_last)
    network = Compiled(module) if contender.how == "compiled" else module
    text = embedding(setting, setting.dtype)
    half = len(setting.x) // 2
    null, prompt = (text.map(lambda one, rows=rows: one[rows])
                    for rows in (slice(0, half), slice(half, None)))  # fmt: skip
    schedule = setting.schedule
    grid, ddim, guidance = Leading(offset=1), DDIM(), ClassifierFreeGuidance(scale=SCALE)
    model = Model(module=network, settings=setting.unet, schedule=schedule, dtype=setting.dtype)
    times = grid.times(setting.size.steps, schedule).cpu()

    def sample() -> Tensor:
        texts = Texts(prompt=prompt, null=null)
        denoise = GuidedDenoiser({"main": model}, guidance, schedule, texts, times)
        start = setting.x[:half]
        for step in reverse(ddim, denoise, schedule, start, times, lambda: start):
            denoise.index = step.index + 1
            latents = step.x
        return latents

    t = torch.tensor(0.502, dtype=torch.float64)
    x = setting.x.to(setting.dtype)
    condition = network.at(network.precompute(text, t[None]), t)
    time = t.to(setting.device).expand(len(x))
    return {"forward": lambda: network(x, time, condition), "sample": sample}


def embedding(setting: Setting, dtype: torch.dtype) -> Any:
    """The text as our networks take it."""
    from sfumato import TextEmbedding

    tokens = setting.tokens.to(dtype)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=setting.device)
    return TextEmbedding(tokens=tokens, mask=mask, pooled=setting.pooled.to(dtype))


def training_step(setting: Setting, contender: Contender) -> Callable[[], Tensor]:
    """Forward, backward and AdamW; the optimiser and the layout are the same for both sides."""
    from sfumato.compiling import convolutions_tried

    ours = contender.side == "ours"
    module: nn.Module = setting.theirs
    if ours:
        with torch.device(setting.device):
            module = setting.unet.build(setting.space)
        module.load_state_dict(setting.theirs.state_dict())
        setting.theirs.cpu()
    module.to(memory_format=torch.channels_last).train()
    forward: Any = torch.compile(module) if contender.how == "compiled" else module
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)
    x = setting.x.to(memory_format=torch.channels_last)
    text, labels = embedding(setting, torch.float32), setting.labels(torch.float32)
    time = (setting.index + 1).double() / 1000
    device = setting.device.type

    def step() -> Tensor:
        with convolutions_tried(setting.device if ours else torch.device("cpu")):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                if ours:
                    said = forward(x, time, text)
                else:
                    said = forward(x, setting.index, setting.tokens, return_dict=False, **labels)[0]
                loss = F.mse_loss(said.float(), setting.target)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds."""
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def contend(contender: Contender) -> None:
    """A contender's process: says that it is ready and how far off it is, then obeys the starter,
    who sends the name of a work for each time that it is to be done.
    """
    torch.set_float32_matmul_precision("high")
    setting = Setting(contender)
    device = setting.device
    facts: dict[str, Any] = {}
    began = time.perf_counter()
    if contender.train:
        step = training_step(setting, contender)
        facts["loss"] = float(step())
        works: dict[str, Callable[[], Any]] = {"train": step}
    else:
        with torch.no_grad():
            said = setting.theirs(
                setting.x[:2], 501, setting.tokens[:2], return_dict=False,
                **{name: value[:2] for name, value in setting.labels(torch.float32).items()},
            )[0]  # fmt: skip
            make = our_works if contender.side == "ours" else diffusers_works
            works = {**make(setting, contender)}
            began = time.perf_counter()
            off = works["forward"]()[:2].float() - said
            facts["error"] = float(off.norm() / said.norm())
    facts["ready_s"] = round(time.perf_counter() - began, 1)
    with torch.set_grad_enabled(contender.train):
        for _ in range(2):
            works[contender.works[0]]()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(json.dumps(facts), flush=True)  # noqa: T201
        for line in sys.stdin:
            facts = {"ms": timed(works[line.strip()], device)}
            if device.type == "cuda":
                facts["GiB"] = torch.cuda.max_memory_allocated() / 2**30
            print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    contend(Contender(**json.loads(sys.argv[1])))
