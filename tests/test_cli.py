"""The commands: what they print, how they end, and that bad input leaves nothing behind."""

import json

import pytest

from sfumato import __version__
from sfumato.cli import main
from small import SMALL

MINE = '''
import attrs
from sfumato import NoiseSchedule, hookimpl, option

@attrs.frozen(kw_only=True)
class Power(NoiseSchedule):
    """alpha_bar = 1 - t^power."""

    name = "power"
    power: float = option(2.0, "how late the noise comes")

    def alpha_sigma(self, t):
        noise = 0.999 * t**self.power
        return (1 - noise).sqrt(), noise.sqrt()

@hookimpl
def sfumato_components():
    return [Power]
'''


def test_plugins_lists_what_is_installed(call):
    code, out, _ = call("plugins", "--json")
    listed = json.loads(out)
    assert code == 0
    assert {
        "kind": "sampler",
        "name": "ddim",
        "distribution": "sfumato",
        "version": __version__,
    } in listed["components"]
    assert listed["broken"] == []
    assert "noise_schedule  linear" in call("plugins")[1]


def test_describe_shows_options_bounds_and_paper(call):
    code, out, _ = call("describe", "noise_schedule", "linear")
    assert code == 0
    assert "beta_start: number > 0 and < 1, default 0.0001" in out
    assert "arXiv:2006.11239" in out


def test_show_says_where_each_value_came_from(call, registry_file):
    code, out, _ = call("show", "small", "--set", "guidance.scale=7.5")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 0
    assert rows["guidance.scale"] == ["7.5", "--set"]
    assert rows["noise_schedule.beta_end"] == ["0.02", "registry.yaml:4"]
    assert rows["stages.denoiser.objective.text_dropout"] == ["0.2", "registry.yaml:34"]
    assert rows["sampler.eta"] == ["0.0", "default"]


def test_doctor_finds_this_machine_well(call):
    code, out, err = call("doctor")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "all is well"


def test_train_then_sample(call, registry_file, tmp_path):
    code, out, err = call("train", "small", "--set", "trackers=[progress]")
    assert code == 0
    assert out.startswith("\nTrained small in ")
    assert "stage denoiser: 6 steps" in err
    run = tmp_path / "runs" / "small"
    code, out, _ = call(
        "sample", run, "a red circle", "a square", "--count", "2", "--seed", "7",
        "--set", "guidance=negative", "--negative", "a blue shape",
    )  # fmt: skip
    assert code == 0
    assert out == f"{run / 'samples' / 'a-red-circle-7.png'}\n"
    from PIL import Image

    with Image.open(out.strip()) as image:
        facts = json.loads(image.text["sfumato"])
    assert facts["prompts"] == ["a red circle", "a square"]
    assert facts["negative"] == ["a blue shape"]
    assert facts["settings"]["guidance"]["use"] == "negative_prompt"
    assert facts["steps"] == 3


def test_a_local_file_brings_a_schedule(call, registry_file, tmp_path):
    assert len(MINE.strip().splitlines()) <= 40
    (tmp_path / "mine.py").write_text(MINE)
    code, _, _ = call(
        "--plugin", "mine.py", "train", "small", "--out", "run",
        "--set", "noise_schedule=power", "--set", "noise_schedule.power=3", "--set", "stages.clip.steps=1",
    )  # fmt: skip
    assert code == 0
    assert "use: power\n  power: 3.0" in (tmp_path / "run" / "settings.yaml").read_text()
    # without the file the run cannot be opened, and says why
    code, _, err = call("sample", "run", "a red circle")
    assert code == 2
    assert "no noise_schedule is named 'power'" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "smal"], 2, "error: no experiment is named 'smal'; did you mean 'small'?\n"),
        (["train", "small", "--set", "noise_schedule.beta_strat=1"], 2,
         "error: --set: noise_schedule.beta_strat: unknown option of LinearBeta; did you mean 'beta_start'?\n"),
        (["train", "small", "--set", "guidance=cgf"], 2,
         "error: --set: guidance: no guidance is named 'cgf'; did you mean 'cfg'?\n"),
        (["--registry", "none.yaml", "train", "small"], 2,
         "error: none.yaml: cannot be read: No such file or directory\n"),
        (["--plugin", "none.py", "plugins"], 2, "error: none.py: there is no such file\n"),
        (["describe", "noise_schedule", "linaer"], 2,
         "error: noise_schedule: no noise_schedule is named 'linaer'; did you mean 'linear'?\n"),
        (["sample", "runs/none", "a"], 2, "error: runs/none: is not a run folder: it has no settings.yaml\n"),
        (["train", "small", "--out", "registry.yaml"], 2,
         "error: registry.yaml: is a file, or is in one; a run is a folder; choose another --out\n"),
        (["train", "small", "--out", "/proc/run"], 2,
         "error: /proc/run: cannot be written: No such file or directory\n"),
        (["train", "small", "--set", "data={use: image_folder, folder: none}"], 2,
         "error: none: there is no such folder; relative folders start at CWD\n"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_writes_nothing(
    call, registry_file, tmp_path, arguments, code, message
):
    before = sorted(tmp_path.rglob("*"))
    ended, out, err = call(*arguments)
    assert (ended, out, err) == (code, "", message.replace("CWD", str(tmp_path)))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_picture_is_a_message(call, small_run):
    code, _, err = call("sample", small_run, "a circle", "--out", "/proc/a.png", "--count", "1")
    assert (code, err) == (2, "error: /proc/a.png: cannot be written: No such file or directory\n")


def test_a_picture_that_cannot_be_read_stops_with_its_name(call, tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a red thing")
    (tmp_path / "pictures" / "1.png").write_text("<html>")
    (tmp_path / "registry.yaml").write_text(SMALL)
    data = "data={use: image_folder, folder: pictures, size: 16, held_out: 0.2}"
    code, _, err = call("train", "small", "--set", data)
    assert (code, err) == (2, "error: pictures/1.png: is not a PNG, JPEG, WebP, BMP or GIF picture; "
                           "repair or remove it, or set on_bad_example: skip\n")  # fmt: skip
    small = [f"--set=stages.{stage}.batch=4" for stage in ("clip", "denoiser")]
    code, _, err = call(
        "train", "small", "--set", data[:-1] + ", on_bad_example: skip, bad_share: 0.2}", *small
    )
    assert (code, err) == (2, "error: metric.shape_attributes: data 'image_folder' has no palette, "
                           "backgrounds and attributes to compare with; use data: shapes, or leave "
                           "this metric out\n")  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from sfumato.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "--registry", "none.yaml", "show", "small"])


def test_the_command_answers_in_a_process_of_its_own(sfumato):
    done = sfumato("--help")
    assert done.returncode == 0
    assert "train" in done.stdout
