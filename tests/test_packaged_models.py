"""Models that come with the package: found by name from anywhere, and never written in."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from sfumato import Pipeline, references
from sfumato.errors import ConfigError
from small import ROOT

spec = importlib.util.spec_from_file_location("package_model", ROOT / "tools" / "package_model.py")
package_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package_model)


@pytest.fixture(scope="module")
def model(small_run, tmp_path_factory):
    """The small run, packaged as `tiny`."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    package_model.package(str(small_run), folder, "bfloat16")
    return folder


@pytest.fixture(autouse=True)
def models(model, monkeypatch):
    monkeypatch.setattr(references, "MODELS", model.parent)


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_packaged_model_is_a_run_without_what_only_training_needs(model, small_run):
    assert sorted(contents(model)) == [
        "checkpoints/step-00000010/denoiser.safetensors",
        "checkpoints/step-00000010/manifest.json",
        "checkpoints/step-00000010/text_encoder.safetensors",
        "checkpoints/step-00000010/tokenizer.json",
        "plugins.lock",
        "run.json",
        "settings.yaml",
    ]
    before, after = (json.loads((run / "run.json").read_text()) for run in (small_run, model))
    manifest = json.loads((small_run / "checkpoints/step-00000010/manifest.json").read_text())
    packaged = after.pop("packaged")
    assert packaged == {"dtype": "bfloat16", "files": manifest["files"]}
    assert {**after, "updated": None} == {**before, "updated": None}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_of_any_dtype_are_computed_with_in_float32(small_run, tmp_path, dtype):
    package_model.package(str(small_run), tmp_path / "cast", dtype)
    stored = load_file(tmp_path / "cast/checkpoints/step-00000010/denoiser.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}
    whole, cast = Pipeline.load(small_run), Pipeline.load(tmp_path / "cast")
    for name, weight in whole.denoiser.state_dict().items():
        assert cast.denoiser.state_dict()[name].equal(weight.to(getattr(torch, dtype)).float())
    pictures = [pipeline.sample(["a red circle"], steps=2) for pipeline in (whole, cast)]
    assert pictures[1].dtype == torch.float32
    assert (pictures[0] - pictures[1]).abs().max() <= (0 if dtype == "float32" else 0.05)


def test_the_name_works_anywhere_and_samples_go_to_the_working_directory(call, model, tmp_path):
    before = contents(model)
    code, out, err = call("sample", "tiny", "a red circle", "--count", "1", "--steps", "1")
    assert (code, out, err) == (0, "samples/a-red-circle-0.png\n", "")
    assert (tmp_path / "samples/a-red-circle-0.png").is_file()
    code, _, err = call(
        "sample", "tiny@10", "a red circle", "--count", "1", "--steps", "1", "--locked"
    )
    assert (code, err) == (0, "")
    assert contents(model) == before


def test_training_and_exporting_leave_the_package_alone(call, model, tmp_path):
    before = contents(model)
    small = ["stages.clip.steps=1", "stages.denoiser.steps=1", "evaluation.metrics=[]"]
    code, _, err = call("train", "tiny", *(f"--set={change}" for change in small))
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "runs/small/run.json").read_text())
    assert record["start"]["checkpoint"] == str(model / "checkpoints/step-00000010")
    code, _, _ = call("export", "tiny", "exported")
    assert code == 2  # the small pipeline has no counterpart there
    assert contents(model) == before


def test_start_and_weak_name_packaged_models(registry, model):
    assert registry.experiment("small", ["start=tiny@10"]).start == "tiny@10"
    weak = Pipeline.load("tiny", ["guidance=autoguidance", "sampling.weak=tiny"], registry).weak
    assert weak.path == model / "checkpoints/step-00000010"


def test_a_run_folder_of_that_name_comes_first_and_says_so(model, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert (
        references.located("tiny") == model
    )  # a folder that is no run is nothing to mix it up with
    shutil.copy(small_run / "settings.yaml", "tiny")
    with pytest.warns(UserWarning) as warned:
        assert references.located("tiny") == references.Path("tiny")
    assert [str(one.message) for one in warned] == [
        "tiny is the run folder here, not the model of that name that comes with sfumato; ./tiny "
        "says so without this warning"
    ]
    assert references.located("./tiny") == references.Path("tiny")


def test_a_name_that_is_neither_is_refused_with_what_there_is(call):
    assert call("sample", "tinny", "a") == (
        2, "", "error: tinny: is not a run folder: it has no settings.yaml; models that come with "
        "sfumato: tiny\n",
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"^runs/tiny: is not a run folder: it has no settings\.yaml$"
    ):
        Pipeline.load("runs/tiny")


def test_only_whole_runs_of_a_shippable_size_are_packaged(small_run, tmp_path, model):
    with pytest.raises(ConfigError, match="is there already; remove it first$"):
        package_model.package(str(small_run), model, "float32")
    with pytest.raises(ConfigError, match="at most 1,000 are shipped; use --dtype bfloat16, or a"):
        package_model.package(str(small_run), tmp_path / "large", "float32", most=1000)
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "run.json").write_text('{"status": "running"}')
    with pytest.raises(ConfigError, match="run: is running; finish it first$"):
        package_model.package(str(run), tmp_path / "early", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.slow
def test_the_wheel_holds_models_whole(model, tmp_path):
    """Built from a copy of what is shipped, with a model in its place, and used from there."""
    source = tmp_path / "source"
    for name in ("core", "plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "registry.yaml", ".gitignore"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(model, source / "core/sfumato/models/boxed")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    assert contents(tmp_path / "installed/sfumato/models/boxed") == contents(model)
    done = subprocess.run(
        [sys.executable, "-m", "sfumato.cli", "sample", "boxed", "a red circle", "--steps", "1"],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "samples/a-red-circle-0.png\n"), done.stderr
