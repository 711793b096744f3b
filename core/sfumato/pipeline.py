"""An assembled system: components with weights built, prompts in, pictures out."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, Unpack, cast

import torch
from torch import Tensor, nn

from sfumato import checkpoint, compatibility, editing, forwards, memory, randomness, references
from sfumato.compiling import Compiled
from sfumato.engine import Undrawn, usable
from sfumato.errors import CheckpointError
from sfumato.records import SampleStep, Space, TextEmbedding
from sfumato.registry import Registry
from sfumato.request import Negative, Options, Request
from sfumato.runs import Run, Stored
from sfumato.sampling import GuidedDenoiser, Model
from sfumato.walk import Walk
from sfumato.watchers import Watchers
from sfumato.weak import Weak

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sfumato.engine import Single
    from sfumato.experiment import PipelineSettings
    from sfumato.interfaces import Guidance, NoiseSchedule
    from sfumato.modules import AdapterModule, DenoiserModule
    from sfumato.records import Batch

MODULES = ("text_encoder", "denoiser", "autoencoder")
SATURATED = 0.9
"""A picture with a larger share of values at the limits of [-1, 1] is no picture."""


class Pipeline:
    """One system: `settings` holds its components, the attributes its modules.

    Attributes:
        settings: a component in each slot.
        text_encoder: prompts to embeddings.
        denoiser: predicts.
        autoencoder: pixels to latents.
        trained: the slots whose weights a stage has trained; None where nobody keeps count.
        text_dropout: the share of texts that the denoiser is trained without; None where unknown.
        schedule: the noise schedule that the denoiser is trained with.
        weak: the weaker model that guidance may ask, or None.
        checkpoint: whose weights these are; None where they were drawn.
        between_steps: called after each step of sampling; what it raises ends the walk.
        sharing: the ranks that draw together; None for this process alone.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        files: Mapping[str, bytes],
        seed: int = 0,
        watchers: Watchers | None = None,
        schedule: NoiseSchedule | None = None,
        weak: Weak | None = None,
    ) -> None:
        """Builds the modules on the CPU, in eval mode, with fresh weights that depend on `seed`
        alone.

        Args:
            settings: the components.
            files: what the text encoder's `fit` returned, or a checkpoint holds.
            seed: of the weights; each slot has its own stream, so that a swap leaves the others
                alone.
            watchers: told of each step of sampling.
            schedule: what the denoiser is trained with; by default that of the settings.
            weak: the weaker model that guidance may ask.
        """
        self.settings = settings
        self._compilations: dict[str, Compiled] = {}
        self.watchers = watchers or Watchers()
        self.between_steps: Callable[[], None] = lambda: None
        self.sharing: Single | None = None
        self.trained: frozenset[str] | None = None
        self.text_dropout: float | None = None
        self.schedule = schedule or settings.noise_schedule
        with _seeded(seed, "autoencoder"):
            self.autoencoder = settings.autoencoder.build()
        with _seeded(seed, "text_encoder"):
            self.text_encoder = settings.text_encoder.build(files)
        with _seeded(seed, "denoiser"):
            self.denoiser = settings.denoiser.build(self._space(self.schedule))
        self.weak = weak
        self.checkpoint: Path | None = None
        if weak is not None:
            with _seeded(seed, "weak"):
                self._weak_denoiser = weak.build(self._space(weak.trained.noise_schedule))
        for module in self.modules().values():
            module.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        run: str | Path,
        overrides: Sequence[str] = (),
        registry: Registry | None = None,
        device: str | None = None,
        *,
        evaluates: bool = False,
    ) -> Self:
        """The newest checkpoint of a run, with components swapped or changed by `overrides`.

        Args:
            run: the folder, or the name of a packaged model; or RUN@STEP, its checkpoint of a step.
            overrides: `path=value` texts; a name is an entry of `registry` or a registered
                component.
            registry: by default the packaged one.
            device: as torch names it; by default the CPU.
            evaluates: whether `overrides` may say what is measured.

        Raises:
            CheckpointError: the folder or its weights cannot be used.
            ConfigError: an override is wrong, or does not fit the weights.
        """
        name, _ = references.parted(run)
        folder = Run.open(name)
        registry = registry or Registry.load()
        tree = folder.settings()
        as_trained = registry.structure(tree, folder.path.name)
        settings = registry.structure(registry.override(tree, overrides), folder.path.name)
        stored = Stored.find(run, "", registry.catalogue)
        compatibility.check_overrides(as_trained, settings, evaluates=evaluates)
        compatibility.check_weights(stored.trained, settings)
        compatibility.check_assembly(settings)
        weak = Weak.find(settings, registry.catalogue)
        if weak is not None:
            weak.check_neighbours(stored.path)
        pipeline = cls.restored(
            stored,
            settings,
            watchers=registry.catalogue.watchers(),
            weak=weak,
        )
        return pipeline.to(usable(device or "cpu"), getattr(torch, settings.sampling.precision))

    @classmethod
    def restored(
        cls,
        stored: Stored,
        settings: PipelineSettings,
        seed: int = 0,
        watchers: Watchers | None = None,
        schedule: NoiseSchedule | None = None,
        weak: Weak | None = None,
    ) -> Self:
        """Built on the CPU with the weights and files of a checkpoint, whose components fit.

        Args:
            stored: the checkpoint.
            settings: the components.
            seed: of the weights of an adapter that the checkpoint does not have.
            watchers: as for the class.
            schedule: as for the class; by default that of the checkpoint.
            weak: as for the class.

        Raises:
            CheckpointError: the weights cannot be used.
        """
        path, trained = stored.path, stored.trained
        states, files = checkpoint.read(path, without={checkpoint.TRAINING})
        schedule = schedule or trained.noise_schedule
        with Undrawn():
            pipeline = cls(settings, files, seed, watchers, schedule, weak)
        pipeline.checkpoint = path
        pipeline.trained = frozenset(trained.slots)
        pipeline.text_dropout = trained.text_dropout
        for slot, module in pipeline.modules().items():
            if slot in states:
                state: Mapping[str, Tensor] = states[slot]
                if compatibility.goes_around(getattr(trained, slot), getattr(settings, slot)):
                    with _seeded(seed, slot):
                        state = cast("AdapterModule", module).around(state)
                checkpoint.restore(module, state, str(path / f"{slot}.safetensors"))
            elif module.state_dict():
                raise CheckpointError(f"has no weights for the {slot}", place=str(path))
        return pipeline

    def modules(self) -> dict[str, nn.Module]:
        """The built modules by slot."""
        return {slot: getattr(self, slot) for slot in MODULES}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what is diffused."""
        autoencoder, (height, width) = self.settings.autoencoder, self.settings.picture_size
        return autoencoder.channels, height // autoencoder.factor, width // autoencoder.factor

    @property
    def device(self) -> torch.device:
        """Where the denoiser's weights are."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the denoiser's weights; between the modules everything is float32."""
        return next(self.denoiser.parameters()).dtype

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Moves all modules, and turns their weights to `dtype`.

        Those of the denoiser's convolutions are stored channels last, as its activations are: else
        a convolution turns them round at each call.
        """
        for module in self.modules().values():
            module.to(device, dtype)
        forwards.channels_last(self.denoiser)
        if self.weak is not None:
            self._weak_denoiser.to(device, dtype)
            forwards.channels_last(self._weak_denoiser)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embeds B prompts."""
        return self.text_encoder.encode(prompts)

    @torch.no_grad()
    def encoded(self, batch: Batch) -> tuple[Tensor, TextEmbedding]:
        """Latents (B, C, h, w) and text of a batch: those that it brings, else what the encoders
        say now.
        """
        if batch.latents is not None and batch.text is not None:
            return batch.latents, batch.text
        return self.autoencoder.encode(batch.images), self.text_encoder.encode(batch.captions)

    def plan(
        self,
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
        negatives: int = 0,
        strength: float = 1.0,
    ) -> compatibility.Plan:
        """What `sample` with these arguments will do, checked; nothing is computed for it.

        Args:
            steps: as for `sample`.
            guidance: as for `sample`.
            negatives: how many each prompt has.
            strength: as for `sample`.

        Raises:
            ConfigError: `sample` would refuse.
            PluginError: a component breaks its contract.
        """
        plan = compatibility.Plan(
            settings=self.settings,
            trained=self.schedule,
            text_dropout=self.text_dropout,
            guidance=guidance or self.settings.guidance,
            steps=self.settings.sampling.steps if steps is None else steps,
            negatives=negatives,
            strength=strength,
            weak=None if self.weak is None else self.weak.trained,
        )
        compatibility.check_plan(plan)
        return plan

    def sample(
        self,
        prompts: Sequence[str],
        *,
        negative: Negative = None,
        steps: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: Guidance | None = None,
        start: Tensor | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float | None = None,
        batch: int = 64,
        rows: range | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) float32 in [-1, 1], on the CPU, one for each prompt.

        Args:
            prompts: B texts.
            negative: one text for all, or one item for each prompt, which may be several texts.
            steps: intervals of the time grid; by default the run's.
            seed: one number, under which picture k is example k; or one for each picture, as its
                example 0.
            guidance: in place of the pipeline's.
            start: x at the first time, (B, C, H, W), instead of drawn noise.
            image: pictures (B, 3, H, W) in [-1, 1] to start from, noised.
            mask: (B or 1, 1, H, W), at the size of pictures or of latents: 1 where `image` is
                painted anew, 0 where the result is `image` to the bit. Beside it `start` may be
                given too.
            strength: the share, in (0, 1], of the steps that are walked, the last ones, from an
                image or a start. 1 forgets the image; by default 0.6, but 1 beside a mask or a
                start.
            batch: pictures drawn at once; changes no noise.
            rows: draw these of the pictures alone; by default all.

        Raises:
            ConfigError: the arguments do not fit each other, the pipeline or the memory.
        """
        request = Request.of(
            prompts,
            negative=negative,
            steps=steps,
            seed=seed,
            guidance=guidance,
            start=start,
            image=image,
            mask=mask,
            strength=strength,
        )
        asked = range(len(prompts)) if rows is None else rows
        if self.sharing is None:
            return self._drawn(request.only(_slice(asked)), batch)
        share = self.sharing.rows(len(asked))
        mine = asked[share.start : share.stop]
        return self.sharing.joined(self._drawn(request.only(_slice(mine)), batch))

    def _drawn(self, request: Request, batch: int) -> Tensor:
        parts = list(request.batches(batch))
        if not parts:
            return torch.empty(0, 3, *self.settings.picture_size)
        count, at_once = len(request.prompts), max(len(part.prompts) for part in parts)
        memory.check_sampling(
            self.settings.picture_size, self.latent_shape, count, at_once, self.device
        )
        pictures = []
        for part in parts:
            for step in Walk(self, part).down():
                x = step.x
            with torch.no_grad():
                pictures.append(self.autoencoder.decode(x.to(self.dtype)).float().cpu())
        found = _clamped(torch.cat(pictures))
        image, mask = request.image, request.mask
        return found if image is None or mask is None else editing.pasted(found, image, mask)

    def share(self, engine: Single) -> Self:
        """Lets ranks share out the pictures of each call of `sample`, which all of them then have
        to make; each gets all pictures. Plugins watch on the first.
        """
        self.sharing = engine
        if not engine.main:
            self.watchers = Watchers()
        return self

    def sample_steps(
        self, prompts: Sequence[str], **options: Unpack[Options]
    ) -> Iterator[SampleStep]:
        """The steps of `sample`, in latents and in one batch."""
        return Walk(self, Request.of(prompts, **options)).down()

    def denoise(
        self,
        prompts: Sequence[str],
        *,
        negative: Negative = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> GuidedDenoiser:
        """`denoise(x, t)` as a sampler calls it, prompts and guidance applied: for samplers of
        other libraries. Whoever walks moves its `index` on, along its `times`.

        Raises:
            ConfigError: the arguments, as for `sample`, do not fit.
        """
        walk = Walk(self, Request.of(prompts, negative=negative, steps=steps, guidance=guidance))
        with torch.no_grad():
            return walk.denoise(walk.plan.times)

    def invert(
        self,
        image: Tensor,
        prompts: Sequence[str],
        *,
        negative: Negative = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        strength: float = 1.0,
        batch: int = 64,
    ) -> Tensor:
        """The `start` from which `sample`, with the same arguments, comes back to the pictures.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            prompts: what each shows.
            negative: as for `sample`.
            steps: as for `sample`; the more, the nearer it comes back.
            guidance: as for `sample`; a scale of 1 comes back nearest.
            strength: the share of the steps that are walked.
            batch: pictures inverted at once.

        Returns:
            X at the first time, (B, C, H, W) float32 on the CPU.

        Raises:
            ConfigError: the sampler draws noise, or the arguments do not fit.
        """
        request = Request.of(
            prompts,
            negative=negative,
            steps=steps,
            guidance=guidance,
            image=image,
            strength=strength,
        )
        return torch.cat([Walk(self, part).up().cpu() for part in request.batches(batch)])

    def models(self) -> dict[str, Model]:
        """The denoisers by the name that branches call them."""
        settings = self.settings.denoiser
        models = {
            "main": Model(
                module=self._compiled("main", self.denoiser),
                settings=settings,
                schedule=self.schedule,
                dtype=self.dtype,
            )
        }
        if self.weak is not None:
            trained = self.weak.trained
            models["weak"] = Model(
                module=self._compiled("weak", self._weak_denoiser),
                settings=trained.denoiser,
                schedule=trained.noise_schedule,
                dtype=self.dtype,
            )
        return models

    def _compiled(self, name: str, module: DenoiserModule) -> DenoiserModule | Compiled:
        """The module itself, unless it is to be compiled; then the same object at each call."""
        if not self.settings.sampling.compile:
            return module
        known = self._compilations.get(name)
        if known is None or known.module is not module:
            known = self._compilations[name] = Compiled(module)
        return known

    def _space(self, schedule: NoiseSchedule) -> Space:
        """What surrounds a denoiser that is trained on this schedule."""
        channels, height, width = self.latent_shape
        return Space(
            channels=channels,
            height=height,
            width=width,
            factor=self.settings.autoencoder.factor,
            text_width=self.text_encoder.width,
            pooled_width=self.text_encoder.pooled_width,
            schedule=schedule,
        )


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop, rows.step)


def _clamped(pictures: Tensor) -> Tensor:
    """Within [-1, 1]; pictures of which nearly nothing was inside are flagged."""
    outside = (pictures.abs() >= 1).float().flatten(1).mean(1)
    if count := int((outside > SATURATED).sum()):
        warnings.warn(
            f"{count} of {len(pictures)} pictures are saturated: over {SATURATED:.0%} of their "
            "values lie at or beyond the limits; a smaller guidance scale may help",
            stacklevel=4,
        )
    return pictures.clamp(-1, 1)


@contextmanager
def _seeded(seed: int, slot: str) -> Iterator[None]:
    """Fresh weights draw from torch's generator, here seeded for one slot, then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.key(seed, f"weights/{slot}")[0])
        yield
