"""CLIP against transformers' own models, the contrastive loss against its formula, and training."""

import copy
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from clip_folders import ids_of, write_model
from sfumato import (
    Batch,
    CheckpointError,
    ConfigError,
    JointEncoderModule,
    TextEncoderModule,
)
from sfumato_clip import Clip, Contrastive, PretrainedClip
from sfumato_clip.contrastive import contrastive_losses, labels
from sfumato_clip.encoder import fit_square
from sfumato_clip.pretrained import MEAN, STD

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1)}
CAPTIONS = [f"a {colour} picture" for colour in COLOURS]
PROMPTS = ["a red cat", "", "cat"]
TINY = {
    "projection": 24,
    "vocabulary": 300,
    "positions": 12,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "image_size": 8,
    "image_width": 32,
    "image_layers": 1,
    "image_heads": 2,
}


def tiny(**changes):
    clip = Clip(**TINY | changes)
    torch.manual_seed(0)
    return clip.build(clip.fit(CAPTIONS))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


class TestPretrained:
    @torch.no_grad()
    @pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
    def test_text_model(self, tmp_path, pad, parity):
        peer = write_model(tmp_path, pad=pad)
        module = PretrainedClip(source=str(tmp_path)).build({})
        text, inputs = module.encode(PROMPTS), ids_of(tmp_path, PROMPTS)
        expected = peer(input_ids=inputs.input_ids)
        assert inputs.input_ids[0, -1] == (0 if pad == "!" else peer.config.eos_token_id)
        parity(
            PretrainedClip(),
            "transformers",
            "tokens, float32",
            text.tokens,
            expected.last_hidden_state,
        )
        close(text.tokens, expected.last_hidden_state)
        close(text.pooled, expected.pooler_output)
        assert torch.equal(text.mask, inputs.attention_mask.bool())
        assert (module.width, module.pooled_width, module.positions) == (32, 32, 12)
        assert (text.tokens.shape, text.pooled.shape) == ((3, 12, 32), (3, 32))

    @torch.no_grad()
    def test_text_model_with_projection(self, tmp_path):
        peer = write_model(tmp_path, transformers.CLIPTextModelWithProjection)
        module = PretrainedClip(source=str(tmp_path)).build({})
        text = module.encode(PROMPTS)
        expected = peer(input_ids=ids_of(tmp_path, PROMPTS).input_ids)
        close(text.tokens, expected.last_hidden_state)
        close(text.pooled, expected.text_embeds)
        assert module.pooled_width == 16

    @torch.no_grad()
    def test_both_towers(self, tmp_path, parity):
        peer = write_model(tmp_path, transformers.CLIPModel)
        module = PretrainedClip(source=str(tmp_path)).build({})
        images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        expected = peer(
            input_ids=ids_of(tmp_path, PROMPTS).input_ids,
            pixel_values=((images + 1) / 2 - mean) / std,
        )
        text, pictures = module.encode(PROMPTS), module.encode_images(images)
        ours = functional.normalize(pictures) @ functional.normalize(text.pooled).T
        theirs = expected.image_embeds @ expected.text_embeds.T
        parity(
            PretrainedClip(), "transformers", "cosines of pictures and texts, float32", ours, theirs
        )
        close(functional.normalize(text.pooled), expected.text_embeds)
        close(functional.normalize(pictures), expected.image_embeds)
        close(
            module.log_scale.exp()
            * functional.normalize(pictures)
            @ functional.normalize(text.pooled).T,
            expected.logits_per_image,
            1e-4,
        )

    @torch.no_grad()
    def test_weights_with_the_prefix_of_older_folders(self, tmp_path):
        peer = write_model(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights = {f"text_model.{name}": value for name, value in weights.items()}
        weights["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        text = PretrainedClip(source=str(tmp_path)).build({}).encode(PROMPTS)
        close(text.tokens, peer(ids_of(tmp_path, PROMPTS).input_ids).last_hidden_state)

    @torch.no_grad()
    def test_older_configurations_call_the_end_token_2(self, tmp_path):
        peer = write_model(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": 2}
        (tmp_path / "config.json").write_text(json.dumps(config))
        text = PretrainedClip(source=str(tmp_path)).build({}).encode(PROMPTS)
        close(text.pooled, peer(ids_of(tmp_path, PROMPTS).input_ids).pooler_output)

    def test_tokenizer_beside_the_text_encoder(self, tmp_path):
        write_model(tmp_path / "text_encoder_2")
        inside = PretrainedClip(source=str(tmp_path / "text_encoder_2")).build({})
        (tmp_path / "tokenizer_2").mkdir()
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (tmp_path / "text_encoder_2" / name).rename(tmp_path / "tokenizer_2" / name)
        beside = PretrainedClip(source=str(tmp_path / "text_encoder_2")).build({})
        assert beside.files == inside.files

    @torch.no_grad()
    @pytest.mark.parametrize("model", [transformers.CLIPTextModel, transformers.CLIPModel])
    def test_rebuilt_without_the_folder(self, tmp_path, model):
        write_model(tmp_path / "model", model, pad="!")
        clip = PretrainedClip(source=str(tmp_path / "model"))
        first = clip.build({})
        shutil.rmtree(tmp_path / "model")
        second = clip.build(first.files)
        assert not torch.equal(second.encode(PROMPTS).tokens, first.encode(PROMPTS).tokens)
        second.load_state_dict(first.state_dict())
        assert torch.equal(second.encode(PROMPTS).tokens, first.encode(PROMPTS).tokens)
        assert second.files == first.files
        assert clip.fit(CAPTIONS) == {}

    @pytest.mark.parametrize("model", [transformers.CLIPTextModel, transformers.CLIPModel])
    def test_half_precision_weights_become_float32(self, tmp_path, model):
        write_model(tmp_path, model).half().save_pretrained(tmp_path)
        module = PretrainedClip(source=str(tmp_path)).build({})
        again = PretrainedClip(source=str(tmp_path)).build(module.files)
        for parameter in (*module.parameters(), *again.parameters()):
            assert parameter.dtype == torch.float32


class TestPretrainedFailures:
    def message(self, folder, kind=CheckpointError):
        with pytest.raises(kind) as caught:
            PretrainedClip(source=str(folder)).build({})
        return str(caught.value)

    def test_no_folder(self, tmp_path):
        assert self.message(tmp_path / "nowhere", ConfigError) == (
            f"pretrained {tmp_path}/nowhere: there is no such folder; "
            "give a folder with config.json, model.safetensors and a tokenizer"
        )

    def test_empty_folder(self, tmp_path):
        assert self.message(tmp_path) == (
            f"pretrained {tmp_path}: holds no config.json that names an architecture; "
            "pretrained_clip reads CLIPModel, CLIPTextModel, CLIPTextModelWithProjection"
        )

    def test_broken_configuration(self, tmp_path):
        (tmp_path / "config.json").write_text("{")
        assert f"pretrained {tmp_path}: cannot read config.json (" in self.message(tmp_path)

    def test_pickled_weights(self, tmp_path):
        model = write_model(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        assert f"pretrained {tmp_path}: cannot read model.safetensors (" in self.message(tmp_path)

    def test_broken_weights(self, tmp_path):
        write_model(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
        assert f"pretrained {tmp_path}: cannot read model.safetensors (" in self.message(tmp_path)

    def test_missing_weights(self, tmp_path):
        write_model(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["final_layer_norm.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert self.message(tmp_path) == (
            f"pretrained {tmp_path}: model.safetensors lacks 1 weights, among them "
            "final_layer_norm.weight; they must be those of the architecture in config.json"
        )

    def test_another_architecture(self, tmp_path):
        transformers.BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
        assert self.message(tmp_path) == (
            f"pretrained {tmp_path}: holds BertModel; "
            "pretrained_clip reads CLIPModel, CLIPTextModel, CLIPTextModelWithProjection"
        )

    def test_no_tokenizer(self, tmp_path):
        write_model(tmp_path)
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            (tmp_path / name).unlink()
        assert f"pretrained {tmp_path}: its tokenizer has " in self.message(tmp_path)

    def test_neither_source_nor_files(self):
        with pytest.raises(ConfigError) as caught:
            PretrainedClip().build({})
        assert str(caught.value) == (
            "text_encoder pretrained_clip: there are no files of a checkpoint to build it from; "
            "give its source"
        )


class TestFromNothing:
    @torch.no_grad()
    def test_it_is_the_model_of_transformers(self, parity):
        module = tiny()
        towers = (module.text_model.config.to_dict(), module.vision_model.config.to_dict())
        config = transformers.CLIPConfig(
            text_config=towers[0], vision_config=towers[1], projection_dim=24
        )
        peer = transformers.CLIPModel(config).eval()
        peer.load_state_dict(module.state_dict(), strict=True)
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        ids = [encoding.ids for encoding in module._tokenizer.encode_batch(PROMPTS)]
        expected = peer(input_ids=torch.tensor(ids), pixel_values=images)
        text = module.encode(PROMPTS)
        tokens = expected.text_model_output.last_hidden_state
        cosines = (
            functional.normalize(module.encode_images(images)) @ functional.normalize(text.pooled).T
        )
        theirs = expected.image_embeds @ expected.text_embeds.T
        close(text.tokens, tokens)
        close(cosines, theirs)
        parity(Clip(), "transformers", "tokens, float32", text.tokens, tokens)
        parity(Clip(), "transformers", "cosines of pictures and texts, float32", cosines, theirs)

    def test_vocabulary_does_not_depend_on_the_order(self):
        captions = [f"a {a} {b} on {c}" for a in COLOURS for b in ("circle", "star") for c in "xyz"]
        files = Clip(**TINY).fit(captions)
        assert list(files) == ["tokenizer.json"]
        assert all(Clip(**TINY).fit(captions[::step]) == files for step in (1, -1))

    def test_vocabulary_size_is_a_limit(self):
        captions = [f"word{number}" for number in range(200)]
        embeddings = [
            clip.build(clip.fit(captions)).text_model.embeddings.token_embedding
            for clip in (Clip(**TINY | {"vocabulary": size}) for size in (258, 280))
        ]
        assert [embedding.num_embeddings for embedding in embeddings] == [258, 280]

    @torch.no_grad()
    def test_case_space_and_unicode_form_do_not_matter_but_all_bytes_are_heard(self):
        module = tiny()
        one, same = module.encode(["a red caf\u00e9", "  A\tRED\n cafe\u0301 "]).pooled
        close(one, same)
        assert not torch.allclose(*module.encode(["a \N{SNOWMAN}", "a \N{COMET}"]).pooled)

    @torch.no_grad()
    def test_mask_and_null(self):
        module = tiny()
        text = module.encode(["a red picture", ""])
        assert text.mask.sum(dim=1).tolist() == [5, 2]
        close(module.null(3).tokens[2], text.tokens[1])
        close(module.null(3).pooled[2], text.pooled[1])

    @torch.no_grad()
    def test_examples_do_not_see_their_neighbours(self):
        module = tiny()
        prompts = ["a red picture", "", "a blue picture of a green picture"]
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        together, pictures = module.encode(prompts), module.encode_images(images)
        for index, prompt in enumerate(prompts):
            alone = module.encode([prompt])
            close(alone.tokens[0], together.tokens[index])
            close(alone.pooled[0], together.pooled[index])
            close(module.encode_images(images[index : index + 1])[0], pictures[index])

    @torch.no_grad()
    def test_padding_does_not_reach_the_prompt(self):
        module = tiny()
        before = module.encode(["a red picture"])
        module.text_model.embeddings.position_embedding.weight[5:] += 1
        after = module.encode(["a red picture"])
        close(after.tokens[:, :5], before.tokens[:, :5])
        close(after.pooled, before.pooled)
        assert not torch.allclose(after.tokens[:, 5:], before.tokens[:, 5:])

    def test_long_prompt(self):
        prompt = "red " * 9 + "red"
        assert tiny().encode([prompt]).mask.all()
        with pytest.raises(ConfigError) as caught:
            tiny().encode(["red", prompt + " blue picture of green"])
        assert str(caught.value) == (
            "prompt 'red red red red red red red red red red blue picture of ...': 18 tokens with "
            "start and end, but the text encoder reads 12; shorten it, or split it: "
            "long_prompts=chunks of the text encoder"
        )

    @torch.no_grad()
    def test_a_long_prompt_in_chunks_is_its_pieces_in_a_row(self):
        refusing, module = tiny(), tiny(long_prompts="chunks")
        red = ["red " * count for count in (5, 10, 25)]  # 10 tokens and start and end are 12
        five, ten = (refusing.encode([prompt]) for prompt in red[:2])
        for short, chunked in zip((five, ten), map(module.encode, zip(red[:2])), strict=True):
            assert torch.equal(short.tokens, chunked.tokens)
            assert torch.equal(short.mask, chunked.mask)
            assert torch.equal(short.pooled, chunked.pooled)
        long = module.encode(red[2:])
        close(long.tokens, torch.cat((ten.tokens, ten.tokens, five.tokens), dim=1))
        assert torch.equal(long.mask, torch.cat((ten.mask, ten.mask, five.mask), dim=1))
        close(long.pooled, (ten.pooled + ten.pooled + five.pooled) / 3)
        both = module.encode(red[1:])
        close(both.tokens, torch.cat((ten.tokens.repeat(1, 3, 1), long.tokens)))
        assert torch.equal(both.mask, torch.cat((ten.mask.repeat(1, 3), long.mask)))
        close(both.pooled, torch.cat((ten.pooled, long.pooled)))

    def test_chunks_need_a_place_for_a_token(self):
        with pytest.raises(ConfigError) as caught:
            Clip(**TINY | {"positions": 2, "long_prompts": "chunks"})
        assert str(caught.value) == (
            "clip has long_prompts: chunks, but 2 positions hold a start and an end alone; "
            "change positions"
        )

    @torch.no_grad()
    def test_rebuilt_from_its_files(self):
        first, second = tiny(), Clip(**TINY).build(tiny().files)
        second.load_state_dict(first.state_dict())
        assert torch.equal(second.encode(CAPTIONS).tokens, first.encode(CAPTIONS).tokens)
        assert torch.equal(
            copy.deepcopy(first).encode(CAPTIONS).pooled, second.encode(CAPTIONS).pooled
        )

    def test_no_vocabulary(self):
        with pytest.raises(ConfigError) as caught:
            Clip().build({})
        assert str(caught.value) == (
            "text_encoder clip: there is no vocabulary to build it with; "
            "build it from what fit(captions) returns, or use pretrained_clip"
        )

    def test_sizes_that_do_not_fit(self):
        with pytest.raises(ConfigError) as caught:
            Clip(width=100, heads=3)
        assert str(caught.value) == (
            "clip has width 100, which heads 3 does not divide; change width or heads"
        )

    def test_pictures_of_any_size(self):
        ramp = torch.linspace(-1, 1, 32).expand(1, 3, 24, 32)
        square = fit_square(ramp, 8)
        assert square.shape == (1, 3, 8, 8)
        # 32 columns become 10 of 3 (PIL's and CLIP's rounding); the middle 8 of them are kept.
        expected = functional.interpolate(ramp, (8, 10), mode="area")[..., 1:9]
        torch.testing.assert_close(square, expected, rtol=0, atol=0.05)
        edge = torch.ones(1, 3, 4, 4).triu() * 2 - 1
        assert fit_square(edge, 32).abs().max() == 1
        assert torch.equal(fit_square(ramp[..., :24], 24), ramp[..., :24])
        assert tiny().encode_images(ramp).shape == (1, 24)


def formula(images, texts, scale):
    """Figure 3 of arXiv:2103.00020, number by number."""
    cosine = [[float(functional.cosine_similarity(i, t, dim=0)) for t in texts] for i in images]
    logits = [[scale.item() * value for value in row] for row in cosine]
    count = range(len(logits))
    rows = [math.log(sum(map(math.exp, logits[k]))) - logits[k][k] for k in count]
    columns = [math.log(sum(math.exp(row[k]) for row in logits)) - logits[k][k] for k in count]
    return [(row + column) / 2 for row, column in zip(rows, columns, strict=True)]


def features(count=6, width=5):
    generator = torch.Generator().manual_seed(3)
    shape = (2, count, width)
    images, texts = torch.randn(shape, generator=generator, dtype=torch.float64)
    return images, texts, torch.tensor(7.0, dtype=torch.float64)


class TestContrastive:
    def test_formula(self, parity):
        images, texts, scale = features()
        values, _ = contrastive_losses(images, texts, scale, torch.eye(6, dtype=torch.bool))
        expected = torch.tensor(formula(images, texts, scale), dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
        parity(Contrastive(), "the paper's formula", "losses, float64", values, expected)

    def test_gradient(self):
        inputs = [tensor.requires_grad_() for tensor in features(4)]
        same = torch.eye(4, dtype=torch.bool)
        assert torch.autograd.gradcheck(lambda *x: contrastive_losses(*x, same)[0], inputs)
        # d mean / d s is the mean of sum (p - target) cosine over rows and columns.
        images, texts, scale = inputs
        contrastive_losses(images, texts, scale, same)[0].mean().backward()
        cosine = (functional.normalize(images) @ functional.normalize(texts).T).detach()
        logits, target = scale.detach() * cosine, torch.eye(4, dtype=torch.float64)
        excess = (logits.softmax(dim=1) + logits.softmax(dim=0)) / 2 - target
        torch.testing.assert_close(scale.grad, (excess * cosine).sum() / 4, rtol=1e-6, atol=0)

    def test_lengths_do_not_matter(self):
        images, texts, scale = features()
        same = torch.eye(6, dtype=torch.bool)
        values, _ = contrastive_losses(images, texts, scale, same)
        longer, _ = contrastive_losses(images * 9, texts / 9, scale, same)
        torch.testing.assert_close(longer, values)

    def test_equal_captions_are_right_answers_alike(self):
        captions = ("red", "blue", "red")
        label = labels(captions)
        same = label[:, None] == label[None, :]
        assert same.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
        directions = torch.eye(3, dtype=torch.float64)[[0, 1, 0]]
        scale = torch.tensor(50.0, dtype=torch.float64)
        values, right = contrastive_losses(directions, directions, scale, same)
        # The best that can be: an even choice between the two that are right.
        expected = torch.tensor([math.log(2), 0, math.log(2)], dtype=torch.float64)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-12)
        assert right.tolist() == [1, 1, 1]
        _, unmerged = contrastive_losses(directions, directions, scale, torch.eye(3) > 0)
        assert unmerged.sum() == 2

    def test_scale_starts_at_a_fourteenth_and_stays_in_bounds(self):
        module = tiny()
        objective = Contrastive().build(SimpleNamespace(text_encoder=module))
        assert module.log_scale.item() == pytest.approx(2.659260036932778, abs=1e-6)
        assert module.log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)
        for given, kept in ((-0.5, 0.0), (1.5, 1.5), (5.0, math.log(100))):
            with torch.no_grad():
                module.log_scale.fill_(given)
            objective.after_step()
            assert module.log_scale.item() == pytest.approx(kept, rel=1e-6)

    def test_losses_of_a_batch(self):
        module = tiny()
        batch = coloured(8, torch.Generator().manual_seed(0))
        merged, plain = (
            Contrastive(merge_equal_captions=merge)
            .build(SimpleNamespace(text_encoder=module))
            .losses(batch, draw=None)
            for merge in (True, False)
        )
        images = module.encode_images(batch.images).detach().double()
        texts = module.encode(batch.captions).pooled.detach().double()
        expected = torch.tensor(formula(images, texts, module.log_scale.exp()))
        torch.testing.assert_close(plain.values, expected, rtol=1e-4, atol=1e-5)
        assert len(set(batch.captions)) < 8
        assert not torch.allclose(merged.values, plain.values)
        assert {name: value.shape for name, value in merged.numbers.items()} == {
            "accuracy": (8,),
            "logit_scale": (8,),
        }

    def test_needs_an_image_encoder(self, tmp_path):
        write_model(tmp_path)
        module = PretrainedClip(source=str(tmp_path)).build({})
        assert isinstance(module, TextEncoderModule)
        assert not isinstance(module, JointEncoderModule)
        with pytest.raises(ConfigError) as caught:
            Contrastive().build(SimpleNamespace(text_encoder=module))
        assert str(caught.value) == (
            "objective contrastive: it trains text and image encoder together, but "
            "ClipTextEncoder has no image encoder; use a text_encoder that has one, such as clip"
        )


def coloured(count, generator):
    """Noisy pictures of one colour each, and their captions, many of them equal."""
    labels = torch.randint(len(COLOURS), (count,), generator=generator)
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    noise = 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
    rows = torch.arange(count)
    return Batch(
        images=(colours[labels][:, :, None, None] * 0.7 + noise).clamp(-1, 1),
        captions=tuple(CAPTIONS[label] for label in labels),
        examples=rows,
        rows=rows,
        total=count,
    )


def test_training_brings_pictures_to_their_captions():
    module, generator = tiny(), torch.Generator().manual_seed(0)
    objective = Contrastive().build(SimpleNamespace(text_encoder=module))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=2e-3)
    held_out = coloured(64, torch.Generator().manual_seed(99))

    @torch.no_grad()
    def retrieval():
        images = functional.normalize(module.encode_images(held_out.images))
        texts = functional.normalize(module.encode(CAPTIONS).pooled)
        found = (images @ texts.T).argmax(dim=1).tolist()
        pairs = zip(found, held_out.captions, strict=True)
        return sum(CAPTIONS[index] == caption for index, caption in pairs) / 64

    before = retrieval()
    for _ in range(40):
        optimizer.zero_grad()
        objective(coloured(32, generator), None).values.mean().backward()
        optimizer.step()
        objective.after_step()
    assert before < 0.6
    assert retrieval() > 0.95
