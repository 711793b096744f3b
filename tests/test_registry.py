"""Layers, swaps and messages of registry.yaml."""

import attrs
import pytest

import sfumato
from sfumato import plugins, settings
from sfumato.errors import ConfigError
from sfumato.registry import Registry
from small import ROOT, SMALL


def load(tmp_path, catalogue, *replacements):
    text = SMALL
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "registry.yaml"
    path.write_text(text)
    return Registry.load(path, catalogue)


def message(call, *arguments):
    with pytest.raises(ConfigError) as error:
        call(*arguments)
    return str(error.value)


def test_an_experiment_is_its_pipeline_and_its_body(registry):
    experiment = registry.experiment("small")
    assert experiment.name == "small"
    assert experiment.noise_schedule.beta_end == 0.02
    assert experiment.stages["denoiser"].objective.text_dropout == 0.2
    assert experiment.stages["denoiser"].ema == 0.9
    assert experiment.sampling.steps == 3


def test_a_name_swaps_and_a_mapping_changes(registry):
    small, cosine, strong = map(registry.experiment, ("small", "cosine", "strong"))
    assert cosine.noise_schedule.name == "cosine"
    assert strong.guidance == attrs.evolve(small.guidance, scale=9.0)
    assert attrs.evolve(strong, name="small", guidance=small.guidance) == small


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("guidance.scale=7.5", lambda e: e.guidance.scale, 7.5),
        ("noise_schedule=cosine", lambda e: e.noise_schedule.name, "cosine"),
        ("guidance=negative", lambda e: e.guidance.positive_scale, 3.0),
        ("guidance={use: cfg, scale: 2}", lambda e: e.guidance.scale, 2.0),
        ("stages.denoiser.steps=500", lambda e: e.stages["denoiser"].steps, 500),
        (
            "stages.denoiser.text_dropout=0.05",
            lambda e: e.stages["denoiser"].objective.text_dropout,
            0.05,
        ),
        (
            "stages.denoiser.objective.text_dropout=0.05",
            lambda e: e.stages["denoiser"].objective.text_dropout,
            0.05,
        ),
        ("stages.denoiser.learning_rate=1e-5", lambda e: e.stages["denoiser"].learning_rate, 1e-5),
        ("evaluation.metrics=[]", lambda e: e.evaluation.metrics, ()),
        ("denoiser.channels.1=32", lambda e: e.denoiser.channels, (16, 32)),
        ("denoiser.depth.0=2", lambda e: e.denoiser.depth, (2,)),
        ("seed=7", lambda e: e.seed, 7),
    ],
)
def test_overrides_reach_inside(registry, override, get, value):
    assert get(registry.experiment("small", [override])) == value


def test_a_pipeline_comes_before_what_is_inherited(tmp_path, catalogue):
    registry = load(
        tmp_path, catalogue,
        ("experiments:\n", "  other: {data: shapes, autoencoder: patches, text_encoder: clip, "
         "noise_schedule: linear, denoiser: unet, loss: mse, time_sampler: uniform, time_grid: leading, "
         "sampler: ddpm, guidance: none}\nexperiments:\n  moved: {from: strong, pipeline: other, set: {guidance: cfg}}\n"
         "  late: {from: cosine, pipeline: other}\n"),
    )  # fmt: skip
    moved, late = registry.experiment("moved"), registry.experiment("late")
    assert (moved.sampler.name, moved.autoencoder.name) == ("ddpm", "patches")
    assert moved.stages == registry.experiment("small").stages
    assert late.noise_schedule.name == "cosine"


def test_within_a_layer_swaps_come_before_options(registry):
    overrides = ["guidance.positive_scale=5", "guidance=negative"]
    assert registry.experiment("small", overrides).guidance.positive_scale == 5.0


def test_a_stage_keeps_options_given_beside_its_objective(registry):
    overrides = ["stages.denoiser.text_dropout=0.05", "stages.denoiser.objective=denoising"]
    stage = registry.experiment("small", overrides).stages["denoiser"]
    assert stage.objective.text_dropout == 0.05
    overrides = ["stages.x.steps=5", "stages.x.batch=4", "stages.x.objective=denoising"]
    assert registry.experiment("small", overrides).stages["x"].batch == 4


def test_a_swap_drops_earlier_changes_to_what_it_replaces(registry):
    assert registry.experiment("strong", ["guidance=cfg"]).guidance.scale == 4.0


def test_what_goes_around_its_own_kind_goes_around_what_stands_there(registry):
    set_first = ["noise_schedule={use: shifted, shift: 3}", "noise_schedule.shift=2"]
    found = registry.experiment("cosine", set_first).noise_schedule
    assert (found.name, found.shift, found.schedule.name) == ("shifted", 2, "cosine")
    found = registry.experiment("small", ["noise_schedule=zero_terminal_snr"]).noise_schedule
    assert (found.name, found.schedule.name) == ("zero_terminal_snr", "linear")
    said = ["noise_schedule={use: shifted, shift: 3, schedule: cosine}"]
    assert registry.experiment("small", said).noise_schedule.schedule.name == "cosine"


def test_an_option_of_another_component_is_an_error_not_ignored(registry):
    overrides = ["noise_schedule=cosine", "noise_schedule.beta_end=0.03"]
    assert message(registry.experiment, "small", overrides) == (
        "--set: noise_schedule.beta_end: unknown option of Cosine; did you mean 'beta_max'?"
    )


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stages.x={objective: null, steps: 1, batch: 1}", "--set: stages.x.objective: expected an objective, got null"),
        ("stages.x.steps=5", "--set: stages.x: there is no such stage; stages: clip, denoiser; a new one is given whole: --set 'stages.x={objective: ..., ...}'"),
        ("guidanse.scale=3", "--set: guidanse: unknown option of Experiment; did you mean 'guidance'?"),
        ("guidance=cgf", "--set: guidance: no guidance is named 'cgf'; did you mean 'cfg'?"),
        ("guidance", "--set guidance: expected PATH=VALUE"),
        ("seed=", "--set: seed: is empty"),
        ("evaluation.use=other", "--set: evaluation.use: unknown option of Evaluation; known: batch, count, metrics, studies"),
        ("name=other", "--set: name: an experiment is named by its key, not by an option"),
        ("stages.denoiser.stpes=3", "--set: stages.denoiser.stpes: unknown option of Stage; "
         "did you mean 'steps'?"),
        ("stages.denoiser.txt_dropout=0.2", "--set: stages.denoiser.txt_dropout: unknown option of "
         "Denoising; did you mean 'text_dropout'?"),
        ("denoiser.channels.5=3", "--set: denoiser.channels.5: expected an index below 2"),
        ("guidance.scale=high", "--set: guidance.scale: expected number, got the text 'high'"),
    ],
)  # fmt: skip
def test_wrong_overrides(registry, override, text):
    assert message(registry.experiment, "small", [override]) == text


@pytest.mark.fault("mistakes in YAML")
def test_every_error_of_a_file_is_reported_once_with_its_line(tmp_path, catalogue):
    text = message(
        load, tmp_path, catalogue,
        ("beta_start", "beta_strat"), ("steps: 6,", "steps: 6.5,"), ("guidance: cfg", "guidance: cgf"),
    )  # fmt: skip
    assert text.replace(str(tmp_path) + "/", "").splitlines() == [
        "registry.yaml:4: noise_schedule.linear.beta_strat: unknown option of LinearBeta; "
        "did you mean 'beta_start'?",
        "registry.yaml:27: pipelines.shapes.guidance: no guidance is named 'cgf'; "
        "did you mean 'cfg'?",
        "registry.yaml:34: experiments.small.stages.denoiser.steps: expected int, got 6.5",
    ]


@pytest.mark.fault("code in YAML")
@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("version: 1", "version: 2", "registry.yaml:2: version: expected version: 1"),
        ("version: 1", "versoin: 1", "versoin: unknown section; did you mean 'version'?"),
        ("loss: mse", "lsos: mse", "pipelines.shapes.lsos: unknown slot of a pipeline; did you mean 'loss'?"),
        ("    loss: mse\n", "", "registry.yaml:17: pipelines.shapes: 'loss' is missing; "
         "compares a prediction with its target"),
        ("{from: small, set: {noise", "{from: smal, set: {noise", "experiments.cosine.from: no experiment is named 'smal'"),
        ("{from: small, set: {noise", "{from: cosine, set: {noise", "experiments inherit from each other in a circle"),
        ("{from: small, set: {guidance: {scale: 9}}}", "{from: small, guidance: cfg}",
         "experiments.strong.guidance: unknown key of an experiment; put it under `set`"),
        ("  negative: {use: negative_prompt, positive_scale: 3.0, negative_scale: 2.0}", "  cfg: cfg",
         "guidance.cfg: expected {use: NAME, ...}"),
        ("{from: small, set: {guidance: {scale: 9}}}", "{from: small, set: [guidance]}",
         "experiments.strong.set: expected a mapping"),
        ("guidance: cfg", "guidance: os.system", "no guidance is named 'os.system'"),
        ("{use: negative_prompt,", "{_target_: os.system,", "guidance.negative: expected {use: NAME, ...}"),
    ],
)  # fmt: skip
def test_messages_about_the_file(tmp_path, catalogue, old, new, text):
    assert text in message(load, tmp_path, catalogue, (old, new))


def test_create_makes_one_component():
    schedule = sfumato.create("noise_schedule", "linear", steps=10)
    assert schedule.points == 10
    assert message(lambda: sfumato.create("noise_schedule", "linear", step=10)) == (
        "create('noise_schedule', 'linear'): step: unknown option of LinearBeta; "
        "did you mean 'steps'?"
    )


def test_the_packaged_registry_is_the_one_at_the_root():
    from sfumato.registry import PACKAGED

    assert PACKAGED.read_bytes() == (ROOT / "registry.yaml").read_bytes()
    assert "demo" in Registry.load().experiments


CLASH = """
import attrs
from sfumato import NoiseSchedule, hookimpl

@attrs.frozen(kw_only=True)
class Other(NoiseSchedule):
    name = "linear"

    def alpha_sigma(self, t):
        return 1 - t, t

@hookimpl
def sfumato_components():
    return [Other]
"""


def test_a_name_that_two_plugins_offer_stops_only_those_who_use_it(registry_file):
    plugin = registry_file.with_name("clash.py")
    plugin.write_text(CLASH)
    registry = Registry.load(registry_file, plugins.load([plugin]))
    assert registry.experiment("cosine").noise_schedule.name == "cosine"
    assert message(registry.experiment, "small") == (
        f"{registry_file}:4: noise_schedule.linear.use: two plugins offer the noise_schedule 'linear'; "
        "write 'sfumato:linear' or 'clash.py:linear'"
    )


def test_an_experiment_comes_from_a_name(registry_file, catalogue):
    registry_file.write_text(SMALL + "  odd: {from: 5}\n")
    text = message(Registry.load, registry_file, catalogue)
    assert text.endswith("experiments.odd.from: expected the name of an experiment")


@attrs.frozen(kw_only=True)
class Excluding:
    value: int = attrs.field(default=3, validator=attrs.validators.not_(attrs.validators.gt(5)))


def test_what_is_excluded_is_no_bound():
    assert str(settings.bounds(settings.fields(Excluding)["value"])) == ""


@pytest.mark.fault("code in YAML")
@pytest.mark.parametrize(
    "argument", ["trust_remote_code", "attn_implementation", "use_safetensors"]
)
def test_arguments_of_loaders_are_no_options(registry, argument):
    encoder = f"{{use: pretrained_clip, source: somewhere, {argument}: x}}"
    with pytest.raises(ConfigError) as error:
        registry.experiment("small", [f"text_encoder={encoder}"])
    assert str(error.value).startswith(
        f"--set: text_encoder.{argument}: unknown option of PretrainedClip"
    )
