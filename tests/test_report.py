"""The page about runs: what it says of them, in whatever state they are, and in a real browser."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from chromium import Browser, needs_chromium
from sfumato.report import comparing, curves, reading

HOSTILE = "<script>alert('x')</script> & \"$x_1$\""


@pytest.fixture
def runs(small_run, tmp_path):
    """A finished run, and one like it with other settings, a hostile name and a log that ends in the middle of a line."""
    finished, killed = tmp_path / "finished", tmp_path / "killed"
    shutil.copytree(small_run, finished)
    shutil.copytree(small_run, killed)
    change(killed, lambda record: record.update(name=HOSTILE, status="running", results={}))
    settings = yaml.safe_load((killed / "settings.yaml").read_text())
    settings["guidance"]["scale"] = 9.0
    (killed / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    lines = (killed / "metrics.jsonl").read_text().splitlines()
    (killed / "metrics.jsonl").write_text("\n".join([*lines[:7], lines[7][:20]]))
    return finished, killed


def change(run, how):
    record = json.loads((run / "run.json").read_text())
    how(record)
    (run / "run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def text_of(path):
    """What the page says, its markup left out."""
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>", " ", path.read_text(), flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


@pytest.mark.slow
@needs_chromium
def test_the_page_in_a_browser(call, runs, browser, tmp_path):
    """Light and dark, wide and narrow: every picture decoded, nothing asked for, nothing complained of, nothing cut off."""
    code, out, err = call("report", *runs, "--out", tmp_path / "page.html")
    assert (code, out) == (0, f"{tmp_path / 'page.html'}\n")
    too_few = "no picture of clip_similarity: the test split has 12 distinct full captions, and 32 are needed"
    assert err.count("warning: ") == err.count(too_few) == 2, err
    for width, dark in ((1280, False), (1280, True), (390, False)):
        browser.open(tmp_path / "page.html", width=width, dark=dark)
        widths = browser.value("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 2 + 2 * 3 and min(widths) > 0
        asked = {
            one["request"]["url"].partition(":")[0]
            for one in browser.happened("Network.requestWillBeSent")
        }
        assert asked == {"file", "data"}
        complaints = (
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Network.loadingFailed",
        )
        assert browser.happened(*complaints) == []
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        light = browser.value(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] > 128"
        )
        assert light is not dark
        assert browser.value("[...document.images].every(image => image.alt.trim())")
        assert browser.value("document.querySelectorAll('svg').length") >= 8
        assert browser.value(
            "new Set([...document.querySelectorAll('[id]')].map(one => one.id)).size == document.querySelectorAll('[id]').length"
        )
        assert browser.value(
            "[...document.querySelectorAll('nav a')].every(one => document.querySelector(one.getAttribute('href')))"
        )
        assert browser.value("document.scripts.length") == 0
    browser.screenshot(tmp_path / "page.png")
    assert reading.picture(tmp_path / "page.png").height > 2000


@needs_chromium
def test_a_browser_would_tell(browser, tmp_path):
    """The measurements of the test above see what they are to see."""
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="none.png"><p style="width: 9000px">x</p><script>missing()</script>')
    browser.open(bad)
    assert browser.value("document.images[0].naturalWidth") == 0
    assert browser.happened("Runtime.exceptionThrown") and browser.happened("Network.loadingFailed")
    assert not browser.value("document.documentElement.scrollWidth <= innerWidth")


def test_what_the_page_says(call, runs, tmp_path):
    call("report", *runs, "--no-studies", "--out", tmp_path / "page.html")
    page, said = (tmp_path / "page.html").read_text(), text_of(tmp_path / "page.html")
    assert "guidance.scale 4.0 9.0" in said and "guidance.use" not in said
    assert "steps logged 10 7" in said
    assert HOSTILE not in page and "&lt;script&gt;alert(" in page
    assert "How it works" not in said
    results = json.loads((runs[0] / "run.json").read_text())["results"]
    color = results["color_accuracy"]
    assert (
        f"color_accuracy {color['value']:.4g} {color['low']:.4g} to {color['high']:.4g} n\xa0=\xa0{color['n']}"
        in said
    )


def test_a_page_for_whatever_is_left_of_a_run(call, small_run, tmp_path):
    (tmp_path / "empty").mkdir()
    damaged = shutil.copytree(small_run, tmp_path / "damaged")
    (damaged / "run.json").write_text("{")
    (damaged / "settings.yaml").write_text("a: [")
    (damaged / "metrics.jsonl").write_bytes(b"\xff\xfe")
    (damaged / "clip_similarity.png").write_text("<html>")
    code, _, err = call("report", tmp_path / "empty", damaged, "--out", tmp_path / "page.html")
    said = text_of(tmp_path / "page.html")
    assert code == 0 and "Traceback" not in err
    for problem in (
        "empty : run.json is missing: nothing says what this run is",
        "empty : metrics.jsonl is missing: no step was logged",
        f"damaged : {damaged}/run.json: cannot be read",
        f"damaged : {damaged}/settings.yaml:1",
        "damaged : metrics.jsonl cannot be read: UnicodeDecodeError",
        "damaged : clip_similarity.png cannot be shown: it is no picture",
        "damaged : explaining pictures could not be made:",
    ):
        assert problem in said
    assert err.count("warning: ") == said.count("empty : ") + said.count("damaged : ")


def test_a_run_that_is_not_there_is_bad_input(call, tmp_path):
    assert call("report", "nothing") == (
        2, "", "error: nothing: there is no such run; name a run folder, or train one first\n",
    )  # fmt: skip
    assert not (tmp_path / "report.html").exists()


def test_where_the_page_goes(call, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    call("report", "one")
    assert (tmp_path / "one" / "report.html").is_file()
    call("report", "one", "two")
    assert (tmp_path / "report.html").is_file()
    code, _, err = call("report", "one", "--out", "/proc/page.html")
    assert (code, err) == (
        2,
        "error: /proc/page.html: cannot be written: No such file or directory\n",
    )


def test_a_long_log_is_thinned_and_no_spike_is_lost(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as log:
        for step in range(1, 5001):
            loss = 1e6 if step == 3333 else 1.0
            log.write(json.dumps({"stage": "s", "step": step + 100, "loss": loss}) + "\n")
    stages, count = reading.curves(tmp_path / "metrics.jsonl")
    line = curves.thinned(stages["s"], "loss")
    assert count == 5000 and len(line.step) == curves.BUCKETS
    assert line.high.max() == 1e6 and line.low.max() == 1.0
    assert line.step[0] >= 1 and line.step[-1] <= 5000
    sizes = 5000 / curves.BUCKETS
    assert line.mean.max() == pytest.approx(1 + 1e6 / sizes, rel=0.06)


def test_a_short_log_is_shown_as_it_is(tmp_path):
    values = [3.0, 1.0, 2.0]
    lines = [{"stage": "s", "step": k + 1, "loss": value} for k, value in enumerate(values)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    line = curves.thinned(reading.curves(tmp_path / "metrics.jsonl")[0]["s"], "loss")
    assert line.step.tolist() == [1, 2, 3]
    assert line.mean.tolist() == line.low.tolist() == line.high.tolist() == values


def test_settings_by_their_path():
    settings = {"a": {"b": [1, 2]}, "c": [{"use": "x"}, "y"], "d": None}
    assert dict(comparing.leaves(settings)) == {
        "a.b": "[1, 2]",
        "c.0.use": "x",
        "c.1": "y",
        "d": "null",
    }


def test_runs_of_one_name_are_told_apart_by_their_paths():
    assert reading.names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert reading.names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]
