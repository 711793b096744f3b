"""`sfumato sample --like`: the same pixels again, one thing changed, and what is no longer the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato import checkpoint, drawing, pictures, runs
from sfumato.errors import ConfigError
from small import SMALL

PROMPTS = ["a red circle", "a square"]
WHOLE = {
    "--count": "2", "--seed": "7", "--steps": "4", "--negative": "a blue shape",
    "guidance": "negative", "guidance.positive_scale": "2", "sampler": "ddpm",
}  # fmt: skip


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the small run at `runs/small`, to be changed."""
    (tmp_path / "registry.yaml").write_text(SMALL)
    return shutil.copytree(small_run, tmp_path / "runs" / "small")


@pytest.fixture
def png(run, call):
    """What the command draws with swaps, a negative, another grid and two prompts."""
    code, out, err = call("sample", "runs/small", *PROMPTS, *arguments(WHOLE))
    assert (code, out, err) == (0, "runs/small/samples/a-red-circle-7.png\n", "")
    return out.strip()


def arguments(options):
    """As the command line has them; what is no option is a setting."""
    pairs = (
        (name, value) if name.startswith("--") else ("--set", f"{name}={value}")
        for name, value in options.items()
    )
    return [part for pair in pairs for part in pair]


def pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


def facts(path):
    return pictures.facts(Path(path))


def rewritten(path, **changes):
    """The same picture, saying something else."""
    with Image.open(path) as image:
        pictures.save(image.copy(), Path("changed.png"), {**facts(path), **changes})
    return "changed.png"


def test_the_same_picture_again_to_the_bit(call, png, tmp_path):
    (tmp_path / "registry.yaml").write_text(
        SMALL.replace("positive_scale: 3.0", "positive_scale: 9.0")
    )
    code, out, err = call("sample", "--like", png)
    assert (code, out, err) == (0, "runs/small/samples/a-red-circle-7-2.png\n", "")
    assert pixels(out.strip()) == pixels(png)
    first, second = facts(png), facts(out.strip())
    assert first == {**second, "run": first["run"]}
    assert second["run"] == "runs/small"
    assert first["overrides"] == ["guidance=negative", "guidance.positive_scale=2", "sampler=ddpm"]
    assert first["checkpoint"] == {
        "step": 10, "sha256": json.loads(Path("runs/small/checkpoints/step-00000010/manifest.json").read_text())["sha256"],
    }  # fmt: skip


def test_what_is_given_beside_it_is_what_differs(call, png):
    """The picture is that of the whole command with this one thing changed."""
    for change in (
        {"--seed": "8"}, {"--steps": "5"}, {"--negative": "a green shape"},
        {"guidance.positive_scale": "5"}, {"sampler": "ddim"},
    ):  # fmt: skip
        assert call("sample", "--like", png, *arguments(change), "--out", "a.png")[0] == 0
        whole = ["runs/small", *PROMPTS, *arguments(WHOLE | change), "--out", "b.png"]
        assert call("sample", *whole)[0] == 0
        assert pixels("a.png") == pixels("b.png") != pixels(png)


def test_another_prompt_needs_the_run_too(call, png):
    assert call("sample", "runs/small", "a triangle", "--like", png, "--out", "a.png")[0] == 0
    assert facts("a.png")["prompts"] == ["a triangle"]
    assert (facts("a.png")["seed"], facts("a.png")["negative"]) == (7, ["a blue shape"])


def test_another_prompt_without_the_run_is_told_how(call, png):
    assert call("sample", "a triangle", "--like", png)[::2] == (
        2, "error: a triangle: is not a run folder: it has no settings.yaml; "
        f'name the run before another prompt: sfumato sample RUN "a triangle" --like {png}\n',
    )  # fmt: skip


def test_an_edit_again_and_the_picture_that_went_in(call, run, tmp_path):
    pictures.picture(torch.zeros(3, 16, 16)).save("photo.png")
    arguments = [
        "runs/small",
        "a red circle",
        "--image",
        "photo.png",
        "--strength",
        "0.5",
        "--count",
        "1",
    ]
    assert call("sample", *arguments, "--out", "a.png")[0] == 0
    assert call("sample", "--like", "a.png", "--out", "b.png")[0] == 0
    assert pixels("a.png") == pixels("b.png")
    pictures.picture(torch.ones(3, 16, 16)).save("photo.png")
    assert call("sample", "--like", "a.png", "--out", "b.png") == (
        2, "", "error: a.png: its image photo.png is not the same any more (another SHA-256); give the "
        "picture with --image\n",
    )  # fmt: skip
    Path("photo.png").rename("moved.png")
    assert call("sample", "--like", "a.png") == (
        2, "", "error: a.png: its image photo.png cannot be read: No such file or directory; give the "
        "picture with --image\n",
    )  # fmt: skip
    assert call("sample", "--like", "a.png", "--image", "moved.png", "--out", "b.png")[0] == 0
    assert (facts("b.png")["strength"], facts("b.png")["image"]["path"]) == (0.5, "moved.png")


def test_an_image_beside_a_picture_that_had_none_has_the_usual_strength(call, png):
    pictures.picture(torch.zeros(3, 16, 16)).save("photo.png")
    assert call("sample", "--like", png, "--image", "photo.png", "--out", "a.png")[0] == 0
    assert (facts(png)["strength"], facts("a.png")["strength"]) == (1.0, 0.6)


def test_a_run_that_was_trained_on_still_draws_what_it_drew(call, png, run):
    shutil.copytree(run / "checkpoints/step-00000004", run / "checkpoints/step-00000012")
    assert call("sample", "--like", png, "--out", "a.png")[0] == 0
    assert pixels("a.png") == pixels(png)
    assert facts("a.png")["checkpoint"]["step"] == 10


def retrained(run):
    """Its checkpoint with other weights of the denoiser."""
    path = run / "checkpoints/step-00000010"
    states, files = checkpoint.read(path)
    said = checkpoint.facts(path)
    shutil.rmtree(path)
    states["denoiser"] = {name: value * 0.9 for name, value in states["denoiser"].items()}
    checkpoint.write(path, states, files, said)


def test_other_weights_are_refused_unless_the_run_is_named(call, png, run):
    retrained(run)
    assert call("sample", "--like", png) == (
        2, "", f"error: runs/small@10 does not have the weights any more that drew {png} (another SHA-256); "
        f"sfumato sample RUN --like {png} draws with those that a run has now\n",
    )  # fmt: skip
    with pytest.warns(UserWarning, match=f"^runs/small does not have the weights that drew {png}$"):
        assert call("sample", "runs/small", "--like", png, "--out", "a.png")[0] == 0
    assert pixels("a.png") != pixels(png)


def test_a_run_that_is_gone_or_a_checkpoint_is_told_with_the_way_out(call, png, run):
    Path(png).rename("a.png")
    run.rename(run.with_name("moved"))
    assert call("sample", "--like", "a.png") == (
        2, "", "error: a.png: was drawn by runs/small@10: runs/small: is not a run folder: it has no "
        "settings.yaml; sfumato sample RUN --like a.png draws with the weights of another\n",
    )  # fmt: skip
    assert call("sample", "runs/moved", "--like", "a.png", "--out", "b.png")[::2] == (0, "")
    assert pixels("a.png") == pixels("b.png")


def test_the_weaker_model_is_pinned_too(call, run, tmp_path):
    weak = shutil.copytree(run, tmp_path / "runs/weak")
    options = ["--set", "guidance=autoguidance", "--set", "sampling.weak=runs/weak", "--count", "1"]
    assert call("sample", "runs/small", "a red circle", *options, "--out", "a.png")[0] == 0
    shutil.copytree(weak / "checkpoints/step-00000010", weak / "checkpoints/step-00000011")
    assert call("sample", "--like", "a.png", "--out", "b.png")[0] == 0
    assert pixels("a.png") == pixels("b.png")
    assert facts("b.png")["settings"]["sampling"]["weak"] == "runs/weak@10"
    retrained(weak)
    code, _, err = call("sample", "--like", "a.png")
    assert code == 2
    assert err.startswith("error: runs/weak@10 does not have the weights any more that drew a.png")


def test_files_that_say_nothing(call, run):
    Image.new("RGB", (8, 8)).save("plain.png")
    needed = (
        "does not say from which checkpoint, and with what settings, it was drawn; give a PNG that "
    )
    needed += "`sfumato sample` of this version has made"
    for path in ("plain.png", next(iter((run / "samples").glob("step-*.png")))):
        assert call("sample", "--like", path) == (2, "", f"error: {path}: {needed}\n")
    Image.new("RGB", (8, 8)).save("photo.jpg")
    assert call("sample", "--like", "photo.jpg") == (2, "", "error: photo.jpg: is not a PNG\n")
    info = PngInfo()
    info.add_itxt("sfumato", "{")
    Image.new("RGB", (8, 8)).save("broken.png", pnginfo=info)
    assert call("sample", "--like", "broken.png")[2].startswith(
        "error: broken.png: cannot be read (JSON"
    )


def test_facts_that_were_changed_have_their_place(call, png):
    path = rewritten(png, seed="seven", checkpoint={"step": 10})
    assert call("sample", "--like", path)[::2] == (
        2, "error: changed.png: checkpoint: 'sha256' is missing; of its manifest, which has the hash of each "
        "file\nchanged.png: seed: expected int, got the text 'seven'\n",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [("count", 10**9), ("seed", -4), ("steps", 0)])
def test_what_no_command_could_ask_for_is_refused_in_a_picture_too(call, png, name, value):
    code, _, said = call("sample", "--like", rewritten(png, **{name: value}))
    assert code == 2 and said.startswith(f"error: changed.png: {name}: ")


def test_other_versions_are_said(call, png):
    path = rewritten(png, versions={**runs.versions(), "torch": "1.0"})
    with pytest.warns(UserWarning) as said:
        assert call("sample", "--like", path, "--out", "a.png")[0] == 0
    now = runs.versions()["torch"]
    assert str(said[0].message) == (
        f"not bit for bit: changed.png was drawn with torch 1.0 -> {now}"
    )
    assert pixels("a.png") == pixels(png)


def test_a_run_and_prompts_are_needed_otherwise(call):
    wanted = (2, "", "error: expected a run and at least one prompt; or --like PNG\n")
    assert call("sample") == call("sample", "runs/small") == wanted


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_drawn(
    run, registry, monkeypatch
):
    monkeypatch.setattr(drawing.Pipeline, "sample", lambda *_, **__: pytest.fail("was drawn"))
    order = drawing.Order(run=str(run), prompts=("a red circle",))
    for path, problem in (("/proc/a.png", "No such file or directory"), (run, "Is a directory")):
        with pytest.raises(ConfigError, match=f"{path}: cannot be written: {problem}$"):
            drawing.draw(order, registry, Path(path))
