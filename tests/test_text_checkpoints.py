"""Text encoders of checkpoints: those of Stable Diffusion 1, 2 and XL beside diffusers' pipelines,
open_clip's folders beside transformers' model, and runs whose sources have vanished.
"""

import json
import re
import shutil

import attrs
import pytest
import torch
import transformers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from clip_folders import ids_of, make_model, write_model, write_tokenizer
from relative_error import relative
from sfumato import CheckpointError, ConfigError, Pipeline, checkpoint
from sfumato.registry import Registry
from sfumato.training import train
from sfumato_clip import Clip, Concat, PretrainedClip
from sfumato_clip.open_clip import CONFIG, WEIGHTS

PROMPTS = ["a red cat", "cat!", ""]
LEGACY = {"eos_token_id": 2}
"""What the configurations of all three families call the end token: pooled is at the highest id."""


def tokenizer_of(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder)


def sd_peer(folder, model):
    return StableDiffusionPipeline(
        vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None,
        text_encoder=model, tokenizer=tokenizer_of(folder), requires_safety_checker=False,
    )  # fmt: skip


def sdxl(folder):
    """Two folders as SDXL has them, the encoder of ours, and diffusers' pipeline."""
    first = write_model(
        folder / "text_encoder", hidden_act="quick_gelu", num_hidden_layers=3, **LEGACY
    )
    second = write_model(
        folder / "text_encoder_2", transformers.CLIPTextModelWithProjection, pad="!",
        hidden_act="gelu", hidden_size=48, projection_dim=20, **LEGACY,
    )  # fmt: skip
    peer = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None, text_encoder=first, text_encoder_2=second,
        tokenizer=tokenizer_of(folder / "text_encoder"),
        tokenizer_2=tokenizer_of(folder / "text_encoder_2"),
    )  # fmt: skip
    encoders = tuple(
        PretrainedClip(source=str(folder / name), layer="penultimate")
        for name in ("text_encoder", "text_encoder_2")
    )
    return Concat(encoders=encoders, null_condition="zeros"), peer


class TestFamilies:
    @torch.no_grad()
    @pytest.mark.parametrize(
        ("pad", "act"), [("<|endoftext|>", "quick_gelu"), ("!", "gelu")], ids=["sd1", "sd2"]
    )
    def test_stable_diffusion(self, tmp_path, pad, act, parity):
        model = write_model(tmp_path, pad=pad, hidden_act=act, **LEGACY)
        peer = sd_peer(tmp_path, model)
        prompts, negatives = peer.encode_prompt(PROMPTS, "cpu", 1, True, ["red", "", "x"])
        ours = PretrainedClip(source=str(tmp_path)).build({})
        assert ours.encode(PROMPTS).tokens.shape == (3, 12, 32)
        what = f"tokens of StableDiffusionPipeline, {act}, float32"
        error = parity(PretrainedClip(), "diffusers", what, ours.encode(PROMPTS).tokens, prompts)
        assert error < 1e-5
        assert relative(ours.encode(["red", "", "x"]).tokens, negatives) < 1e-5
        absent = peer.encode_prompt(PROMPTS, "cpu", 1, True)[1]
        assert relative(ours.null(3).tokens, absent) < 1e-5

    @torch.no_grad()
    def test_xl(self, tmp_path, parity):
        settings, peer = sdxl(tmp_path)
        prompts, null, pooled, null_pooled = peer.encode_prompt(PROMPTS)
        _, negative, _, negative_pooled = peer.encode_prompt(
            PROMPTS, negative_prompt=["red", "", "x"]
        )
        ours = settings.build({})
        text, opposite = ours.encode(PROMPTS), ours.encode(["red", "", "x"])
        assert text.tokens.shape == (3, 12, 80)
        assert (ours.width, ours.pooled_width, ours.positions) == (80, 20, 12)
        what = "of StableDiffusionXLPipeline, float32"
        assert parity(settings, "diffusers", f"tokens {what}", text.tokens, prompts) < 1e-5
        assert parity(settings, "diffusers", f"pooled {what}", text.pooled, pooled) < 1e-5
        assert relative(opposite.tokens, negative) < 1e-5
        assert relative(opposite.pooled, negative_pooled) < 1e-5
        assert not null.any() and not null_pooled.any()
        assert torch.equal(ours.null(3).tokens, null)
        assert torch.equal(ours.null(3).pooled, null_pooled)
        empty = attrs.evolve(settings, null_condition="empty").build({})
        assert torch.equal(empty.null(2).tokens, ours.encode(["", ""]).tokens)

    def test_weights_have_the_names_that_they_have_in_the_files(self, tmp_path):
        settings, _ = sdxl(tmp_path)
        names = {}
        for index, folder in enumerate(("text_encoder", "text_encoder_2")):
            stored = load_file(tmp_path / folder / "model.safetensors")
            for name, weight in stored.items():
                inner = name.startswith(("text_model.", "text_projection."))
                names[f"encoders.{index}.{'' if inner else 'text_model.'}{name}"] = weight
        state = settings.build({}).state_dict()
        assert state.keys() == names.keys()
        assert all(torch.equal(state[name], weight) for name, weight in names.items())

    def test_the_text_tower_of_vit_l_14_has_its_number_of_parameters(self, tmp_path):
        write_model(tmp_path)
        config = transformers.CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            architectures=["CLIPTextModel"],
        )  # fmt: skip
        files = dict(PretrainedClip(source=str(tmp_path)).build({}).files)
        files["config.json"] = json.dumps(config.to_dict()).encode()
        with torch.device("meta"):
            module = PretrainedClip().build(files)
        assert sum(parameter.numel() for parameter in module.parameters()) == 123_060_480


class TestConcat:
    @torch.no_grad()
    def test_files_and_weights_make_it_again_without_the_folders(self, tmp_path):
        settings, _ = sdxl(tmp_path / "folders")
        first = settings.build({})
        shutil.rmtree(tmp_path / "folders")
        imported = attrs.evolve(
            settings, encoders=tuple(attrs.evolve(one, source=None) for one in settings.encoders)
        )
        assert set(first.files) == {f"{i}.{name}.json" for i in (0, 1) for name in ("config", "tokenizer")}  # fmt: skip
        for again in (settings, imported):
            second = again.build(first.files)
            second.load_state_dict(first.state_dict())
            assert torch.equal(second.encode(PROMPTS).tokens, first.encode(PROMPTS).tokens)
            assert second.files == first.files

    @torch.no_grad()
    def test_pooled_of_all(self, tmp_path):
        settings, _ = sdxl(tmp_path)
        both = attrs.evolve(settings, pooled="all").build({})
        each = [encoder.build({}).encode(PROMPTS).pooled for encoder in settings.encoders]
        assert both.pooled_width == 52
        assert torch.equal(both.encode(PROMPTS).pooled, torch.cat(each, dim=-1))

    def test_each_learns_a_vocabulary_from_the_same_captions(self):
        small = Clip(width=16, heads=2, layers=1, positions=16, vocabulary=260)
        settings = Concat(encoders=(small, attrs.evolve(small, vocabulary=270)))
        captions = ["a red cat", "a blue cat on a red cat"]
        files = settings.fit(iter(captions))
        assert files["0.tokenizer.json"] == small.fit(captions)["tokenizer.json"]
        assert files["1.tokenizer.json"] != files["0.tokenizer.json"]
        assert settings.build(files).files == files

    def test_a_prompt_is_too_long_for_all_or_for_none(self, tmp_path):
        settings, _ = sdxl(tmp_path)
        long = "red cat " * 9
        with pytest.raises(ConfigError, match="20 tokens with start and end, but the text encoder"):
            settings.build({}).check([long])
        splitting = tuple(attrs.evolve(one, long_prompts="chunks") for one in settings.encoders)
        module = attrs.evolve(settings, encoders=splitting).build({})
        module.check([long])
        assert module.encode([long]).tokens.shape == (1, 24, 80)

    def test_encoders_that_read_different_numbers_of_tokens(self):
        small = Clip(width=16, heads=2, layers=1, positions=16, vocabulary=280)
        settings = Concat(encoders=(small, attrs.evolve(small, positions=12)))
        with pytest.raises(ConfigError) as caught:
            settings.build(settings.fit(["a"]))
        assert str(caught.value) == (
            "text_encoder concat: its encoders read 12 and 16 tokens, which do not stand side by "
            "side; use encoders with the same number of positions"
        )


# open_clip's names and shapes, from its source: `CLIP`, `VisionTransformer` and
# `ResidualAttentionBlock` (nn.MultiheadAttention) in src/open_clip/{model,transformer}.py.


def open_clip_tower(model, prefix, layers):
    tower = {}
    for index, layer in enumerate(layers):
        block = f"{prefix}transformer.resblocks.{index}"
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        tower[f"{block}.attn.in_proj_weight"] = torch.cat([one.weight for one in projections])
        tower[f"{block}.attn.in_proj_bias"] = torch.cat([one.bias for one in projections])
        for theirs, part in {
            "attn.out_proj": attention.out_proj,
            "ln_1": layer.layer_norm1,
            "ln_2": layer.layer_norm2,
            "mlp.c_fc": layer.mlp.fc1,
            "mlp.c_proj": layer.mlp.fc2,
        }.items():
            tower[f"{block}.{theirs}.weight"] = part.weight
            tower[f"{block}.{theirs}.bias"] = part.bias
    return tower


def open_clip_state(model):
    text, vision = model.text_model, model.vision_model
    state = {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": model.logit_scale,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "visual.ln_pre.weight": vision.pre_layrnorm.weight,
        "visual.ln_pre.bias": vision.pre_layrnorm.bias,
        "visual.ln_post.weight": vision.post_layernorm.weight,
        "visual.ln_post.bias": vision.post_layernorm.bias,
        "visual.proj": model.visual_projection.weight.T,
        **open_clip_tower(model, "", text.encoder.layers),
        **open_clip_tower(model, "visual.", vision.encoder.layers),
    }
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def open_clip_folder(folder, act):
    """The folder, with biases and norms that are not 0 and 1, and transformers' model of it."""
    size = write_tokenizer(folder, pad="!")
    model = make_model(size, transformers.CLIPModel, hidden_act=act)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    config = {
        "model_cfg": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "mlp_ratio": 2.0},
            "text_cfg": {"context_length": 12, "vocab_size": size, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bicubic"},
    }  # fmt: skip
    if act == "quick_gelu":
        config["model_cfg"]["quick_gelu"] = True
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(open_clip_state(model), folder / WEIGHTS)
    return model, config


class TestOpenClip:
    @torch.no_grad()
    @pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
    def test_both_towers(self, tmp_path, act, parity):
        peer, config = open_clip_folder(tmp_path, act)
        module = PretrainedClip(source=str(tmp_path)).build({})
        images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        mean, std = (
            torch.tensor(config["preprocess_cfg"][key])[:, None, None] for key in ("mean", "std")
        )
        expected = peer(
            input_ids=ids_of(tmp_path, PROMPTS).input_ids,
            pixel_values=((images + 1) / 2 - mean) / std,
            output_hidden_states=True,
        )
        text, pictures = module.encode(PROMPTS), module.encode_images(images)
        tokens = expected.text_model_output.last_hidden_state
        what = "tokens from open_clip's names, float32"
        assert parity(PretrainedClip(), "transformers", what, text.tokens, tokens) < 1e-6
        normalised = (torch.nn.functional.normalize(one) for one in (text.pooled, pictures))
        assert relative(next(normalised), expected.text_embeds) < 1e-6
        assert relative(next(normalised), expected.image_embeds) < 1e-6
        assert module.log_scale == peer.logit_scale
        inner = PretrainedClip(source=str(tmp_path), layer="penultimate").build({}).encode(PROMPTS)
        assert relative(inner.tokens, expected.text_model_output.hidden_states[-2]) < 1e-6

        again = PretrainedClip().build(module.files)
        again.load_state_dict(module.state_dict())
        assert torch.equal(again.encode(PROMPTS).tokens, text.tokens)
        assert torch.equal(again.encode_images(images), pictures)

    @pytest.mark.parametrize(
        ("part", "option", "value", "message"),
        [
            ("vision_cfg", "timm_model_name", "vit_base", 'vision_cfg.timm_model_name: "vit_base"'),
            ("vision_cfg", "layers", [3, 4, 6, 3], "vision_cfg.layers: [3, 4, 6, 3]"),
            ("text_cfg", "hf_model_name", "roberta-base", 'text_cfg.hf_model_name: "roberta-base"'),
            (None, "custom_text", True, "model_cfg.custom_text: true"),
        ],
    )  # fmt: skip
    def test_another_architecture(self, tmp_path, part, option, value, message):
        _, config = open_clip_folder(tmp_path, "gelu")
        model = config["model_cfg"]
        (model[part] if part else model)[option] = value
        (tmp_path / CONFIG).write_text(json.dumps(config))
        assert self.refused(tmp_path) == (
            f"pretrained {tmp_path}: open_clip_config.json has {message}, which no plain CLIP has; "
            "two transformers are read, as in ViT-B-32, ViT-L-14 or ViT-H-14"
        )

    def test_weights_that_are_not_those_of_the_configuration(self, tmp_path):
        open_clip_folder(tmp_path, "gelu")
        weights = load_file(tmp_path / WEIGHTS)
        rest = {name: weight for name, weight in weights.items() if name != "ln_final.bias"}
        own = "they must be those of the architecture in open_clip_config.json"
        save_file(rest, tmp_path / WEIGHTS)
        assert self.refused(tmp_path) == (
            f"pretrained {tmp_path}: {WEIGHTS} lacks 1 weights, among them "
            f"text_model.final_layer_norm.bias; {own}"
        )
        save_file(weights | {"logit_bias": torch.zeros(())}, tmp_path / WEIGHTS)
        assert self.refused(tmp_path) == (
            f"pretrained {tmp_path}: {WEIGHTS} has, beside its own, 1 weights, among them "
            f"logit_bias; {own}"
        )
        save_file(weights | {"ln_final.bias": torch.zeros(7)}, tmp_path / WEIGHTS)
        assert "size mismatch for text_model.final_layer_norm.bias" in self.refused(tmp_path)

    def test_broken_files(self, tmp_path):
        open_clip_folder(tmp_path, "gelu")
        (tmp_path / WEIGHTS).write_bytes(b"not weights")
        assert f"cannot read {WEIGHTS} (" in self.refused(tmp_path)
        (tmp_path / CONFIG).write_text('{"model_cfg": {}}')
        assert f"cannot read {CONFIG} (KeyError: 'vision_cfg')" in self.refused(tmp_path)

    def refused(self, folder):
        with pytest.raises(CheckpointError) as caught:
            PretrainedClip(source=str(folder)).build({})
        return str(caught.value)


class TestRuns:
    """A run opens when the folder that its text encoder came from is gone."""

    @pytest.fixture
    def run(self, registry_file, catalogue, tmp_path):
        write_model(tmp_path / "text_encoder", max_position_embeddings=60)
        with registry_file.open("a") as file:
            file.write(
                "  short:\n    pipeline: shapes\n"
                "    stages: {denoiser: {objective: denoising, steps: 1, batch: 2}}\n"
            )
        source = f"source: {tmp_path / 'text_encoder'}, layer: penultimate"
        experiment = Registry.load(registry_file, catalogue).experiment(
            "short", [f"text_encoder={{use: pretrained_clip, {source}}}"]
        )
        for _ in train(experiment, tmp_path / "run"):
            pass
        expected = experiment.text_encoder.build({}).encode(PROMPTS)
        shutil.rmtree(tmp_path / "text_encoder")
        return tmp_path / "run", expected

    @torch.no_grad()
    def test_it_records_the_options_that_it_has_and_no_others(self, run):
        path, expected = run
        recorded = (path / "settings.yaml").read_text()
        block = re.search(r"^text_encoder:\n((?:  .+\n)+)", recorded, re.MULTILINE)[1]
        assert block == (
            f"  use: pretrained_clip\n  source: {path.parent / 'text_encoder'}\n"
            "  layer: penultimate\n  long_prompts: refuse\n"
        )
        pipeline = Pipeline.load(path)
        assert torch.equal(pipeline.encode(PROMPTS).tokens, expected.tokens)
        assert pipeline.sample(["a red cat"], steps=2).shape == (1, 3, 16, 16)

    @torch.no_grad()
    def test_an_imported_one_needs_no_source(self, run):
        path, expected = run
        (manifest,) = path.glob("checkpoints/*/manifest.json")
        for file in (path / "settings.yaml", manifest):
            text = file.read_text()
            assert text.count(str(path.parent / "text_encoder")) == 1
            text = re.sub(r'(source"?: )"?' + re.escape(str(path.parent / "text_encoder")) + '"?', r"\1null", text)  # fmt: skip
            file.write_text(text)
        stated = json.loads(manifest.read_text())
        del stated["sha256"]
        manifest.write_bytes(checkpoint.sealed(stated))
        assert torch.equal(Pipeline.load(path).encode(PROMPTS).tokens, expected.tokens)

    def test_another_source_is_refused(self, run):
        path, _ = run
        with pytest.raises(ConfigError, match="text_encoder.source: the weights were trained with"):
            Pipeline.load(path, ["text_encoder.source=elsewhere"])
