"""`augmented`: a variation is a function of its word, what is held out never varies, and what may not be mirrored is not."""

import json

import attrs
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sfumato import ConfigError, Split, batches
from sfumato.training import train as trained
from sfumato_data import Augmented, ImageFolder, OpenMoji, Shapes
from sfumato_data.kept import Kept
from sfumato_data.mirroring import may_mirror
from sfumato_data.pictures import to_image, to_tensor
from sfumato_data.varied import Varied

SHAPES = Shapes(size=24, count=40, held_out=8)
EVERYTHING = Augmented(
    data=SHAPES, size=16, crop=0.7, captions=0.5, templates=("{}", "a picture of {}"), keep=True
)
WORDS = [word * 0x9E3779B97F4A7C15 % 2**64 for word in range(1, 400)]
SHORT = ["stages.clip.steps=3", "stages.denoiser.steps=5", "evaluation={metrics: [], count: 1}"]
VARIED = "data={use: augmented, data: {use: shapes, size: 24, count: 64, held_out: 16}, size: 16, crop: 0.7, captions: 0.5, templates: ['{}', 'see {}'], keep: true}"


@attrs.frozen
class One(Split):
    """A picture, dark on the left."""

    said: tuple[str, ...] = ("a dog",)
    size: int = 16

    def __len__(self):
        return 1

    def caption(self, index):
        self.refuse_outside(index)
        return self.said[0]

    def phrasings(self, index):
        self.refuse_outside(index)
        return self.said

    def example(self, index):
        caption = self.caption(index)
        return torch.linspace(-1, 1, self.size).expand(3, self.size, self.size), caption


def varied(inner, **options):
    return Varied(inner, Augmented(**{"data": Shapes(size=16), **options}))


def pictures(split, words=WORDS):
    return [split.variation(0, word)[0] for word in words]


def test_the_same_word_gives_the_same_and_another_word_another():
    one, other = EVERYTHING.split("train"), EVERYTHING.split("train")
    for index in (0, 7, 39):
        for word in WORDS[:5]:
            picture, caption = one.variation(index, word)
            again, said = other.variation(index, word)
            assert torch.equal(picture, again)
            assert caption == said
    assert len({picture.numpy().tobytes() for picture in pictures(one, WORDS[:50])}) == 50


def test_a_crop_is_pillow_s_and_shows_the_share_that_is_stated():
    inner = SHAPES.split("train")
    image = to_image(inner.example(3)[0])
    settings = Augmented(data=SHAPES, size=16, crop=0.8)
    split = settings.split("train")
    seen = []
    for word in WORDS[:100]:
        picture, _ = split.variation(3, word)
        u = __import__("random").Random(word)
        side = 24 * np.sqrt(0.8 + 0.2 * u.random())
        x, y = (24 - side) * u.random(), (24 - side) * u.random()
        box = (x, y, min(x + side, 24), min(y + side, 24))
        expected = to_tensor(image.resize((16, 16), Image.Resampling.LANCZOS, box))
        assert (picture - expected).abs().max() <= 2 / 127.5
        seen.append(side**2 / 24**2)
    assert 0.8 <= min(seen) < 0.82
    assert 0.98 < max(seen) <= 1


def test_half_of_the_pictures_are_mirrored_and_none_that_tells_a_direction():
    plain = to_tensor(to_image(One().example(0)[0]))
    shown = pictures(varied(One(), flip=True))
    mirrored = sum(torch.equal(picture, plain.flip(-1)) for picture in shown)
    assert mirrored + sum(torch.equal(picture, plain) for picture in shown) == len(shown)
    assert 0.4 < mirrored / len(shown) < 0.6
    for said in (("a dog on the left",), ("a dog", "a dog, arrow"), ("route 66",)):
        assert all(torch.equal(p, plain) for p in pictures(varied(One(said), flip=True)))
    assert all(torch.equal(p, plain) for p in pictures(varied(One())))


@pytest.mark.parametrize(
    "text", ["left arrow", "keycap 6", "flag of france", "waning crescent moon", "ABC button",
             "clock face", "backhand index pointing right", "a small circle at the Left"]
)  # fmt: skip
def test_what_a_mirror_would_make_wrong(text):
    assert not may_mirror([text])
    assert not may_mirror(["a dog", text])


@pytest.mark.parametrize("text", ["red apple", "thumbs up", "woman firefighter", "leftover stew"])
def test_what_a_mirror_leaves_right(text):
    assert may_mirror([text])


def test_captions_are_said_otherwise_as_often_as_stated_and_each_way_alike():
    split = varied(One(("a dog", "a hound")), captions=0.5, templates=("{}", "see {}"))
    said = [split.variation(0, word)[1] for word in WORDS]
    assert split.phrasings(0) == ("a dog", "see a dog", "a hound", "see a hound")
    shares = {text: said.count(text) / len(said) for text in split.phrasings(0)}
    assert shares == pytest.approx(
        dict(zip(shares, (5 / 8, 1 / 8, 1 / 8, 1 / 8), strict=True)), abs=0.06
    )
    assert split.caption(0) == "a dog"
    prints = [varied(One(said)).fingerprint() for said in (split.phrasings(0), ("a dog", "a cur"))]
    assert prints[0] != prints[1]
    plain = varied(One(("a dog", "a hound")), templates=("see {}",))
    assert {plain.variation(0, word)[1] for word in WORDS} == {"a dog"} == {*plain.phrasings(0)}


def test_one_option_leaves_the_draws_of_the_others_alone():
    said = [
        [varied(One(("a", "b")), captions=0.5, **more).variation(0, word)[1] for word in WORDS[:40]]
        for more in ({}, {"crop": 0.5}, {"flip": True})
    ]
    assert said[0] == said[1] == said[2]


def test_what_is_held_out_is_shown_whole_and_never_varies():
    split, inner = EVERYTHING.split("test"), SHAPES.split("test")
    assert not split.varies
    for index in range(len(split)):
        picture, caption = inner.example(index)
        whole = to_tensor(to_image(picture).resize((16, 16), Image.Resampling.LANCZOS))
        for word in WORDS[:3]:
            assert torch.equal(split.variation(index, word)[0], whole)
            assert split.variation(index, word)[1] == caption
    assert isinstance(attrs.evolve(EVERYTHING, size=None).split("test"), type(inner))


def test_a_row_of_a_step_varies_alike_whoever_asks():
    split = EVERYTHING.split("train")

    def batch(step, rows=None):
        return batches.batch_at(split, 5, "stage", 8, step, torch.device("cpu"), rows)

    whole, part = batch(2), batch(2, range(4, 8))
    assert torch.equal(whole.images[4:], part.images)
    assert whole.captions[4:] == part.captions
    words = [batches.variation_words(5, "stage", step, range(8)) for step in range(20)]
    assert len({word for row in words for word in row}) == 160
    assert all(0 <= word < 2**64 for row in words for word in row)
    assert max(map(max, words)) > 2**63


def losses(registry, out, *overrides, **options):
    experiment = registry.experiment("small", [*SHORT, VARIED, *overrides])
    return [step.loss for step in trained(experiment, out, device="cpu", **options)]


def test_workers_and_a_resume_change_nothing(registry, tmp_path):
    whole = losses(registry, tmp_path / "whole")
    assert losses(registry, tmp_path / "workers", "workers=2") == whole
    experiment = registry.experiment("small", [*SHORT, VARIED, "checkpoints.every=2"])
    steps = trained(experiment, tmp_path / "cut", device="cpu")
    begun = [next(steps).loss for _ in range(5)]
    steps.close()
    rest = losses(registry, tmp_path / "cut", "checkpoints.every=2", resume=True)
    assert begun[:4] + rest == whole
    plain = "data={use: shapes, size: 16, count: 64, held_out: 16}"
    assert losses(registry, tmp_path / "plain", plain) != whole


def test_the_vocabulary_is_that_of_all_phrasings(registry, tmp_path):
    other = VARIED.replace("see {}", "zzyzx {}").replace("captions: 0.5", "captions: 1.0")
    losses(registry, tmp_path / "run", other)
    (tokenizer,) = (tmp_path / "run" / "checkpoints").glob("*8/tokenizer.json")
    assert any("zzyzx" in token for token in json.loads(tokenizer.read_text())["model"]["vocab"])


def test_a_cache_of_what_varies_is_refused_before_anything_is_trained(registry, tmp_path):
    with pytest.raises(ConfigError) as error:
        losses(registry, tmp_path / "run", f"stages.denoiser.cache={tmp_path / 'cache'}")
    assert str(error.value) == (
        "stages.denoiser.cache: training sees each example differently each time, and a cache "
        "holds it once; leave it out, or the augmentation"
    )
    assert not (tmp_path / "run").exists()


def test_pictures_are_only_ever_reduced():
    with pytest.raises(ConfigError) as error:
        Augmented(data=SHAPES, size=32)
    assert str(error.value) == (
        "augmented.size: size 32 cannot be reduced from 24 x 24; leave it out, or make the "
        "pictures of the data larger squares"
    )


def test_kept_pictures_are_decoded_once_and_seen_by_a_forked_process():
    import os

    kept, calls = Kept(3, 2, 2), []

    def decode():
        calls.append(1)
        return np.full((2, 2, 3), 7, np.uint8)

    child = os.fork()
    if not child:
        kept.picture(1, decode)
        os._exit(0)
    os.waitpid(child, 0)
    assert kept.picture(1, decode).tolist() == np.full((2, 2, 3), 7).tolist()
    assert not calls
    assert kept.picture(0, lambda: None) is None
    kept.picture(0, decode)
    kept.picture(0, decode)
    assert len(calls) == 1


def test_keeping_changes_no_picture():
    plain = attrs.evolve(EVERYTHING, keep=False).split("train")
    split = EVERYTHING.split("train")
    for word in (*WORDS[:3], *WORDS[:3]):
        assert torch.equal(split.variation(4, word)[0], plain.variation(4, word)[0])


@pytest.mark.fault("bad pictures")
def test_a_broken_picture_is_replaced_with_the_caption_of_the_other(tmp_path):
    for number, color in enumerate(["red", "blue"]):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"all {color}")
    broken = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(broken[:45])
    folder = ImageFolder(
        folder=str(tmp_path), size=8, held_out=0.0, on_bad_example="skip", bad_share=0.5
    )
    split = Augmented(data=folder, captions=1.0, templates=("see {}",), keep=True).split("train")
    for word in WORDS[:4]:
        picture, caption = split.variation(0, word)
        assert caption == "see all blue"
        assert picture[2].min() == 1
        assert "cannot be decoded" in split.fault(0)


@pytest.fixture(scope="module")
def sequences():
    data = OpenMoji(size=16, sequences=True)
    return {name: data.split(name) for name in ("train", "test")}


def captions(split):
    return {split.caption(index): index for index in range(len(split))}


def test_sequences_are_named_as_in_the_cldr_with_their_keywords(sequences):
    known = {
        split.caption(i): split.phrasings(i)
        for split in sequences.values()
        for i in range(len(split))
    }
    assert len(known) > 3000
    assert "woman firefighter with dark skin tone" in known
    assert "flag of france" in known
    assert "red apple, fruit" in known["red apple"]
    assert "thumbs up sign with dark skin tone" in known["thumbs up with dark skin tone"]
    assert not any("black" in text for text in known["red heart"])
    assert all(phrasings[0] == name for name, phrasings in known.items())


def test_skin_tones_of_one_emoji_are_held_out_together(sequences):
    bases = [
        {text.rpartition(" with ")[0] for text in captions(split) if "skin tone" in text}
        for split in sequences.values()
    ]
    assert all(bases)
    assert not bases[0] & bases[1]


def test_a_sequence_is_one_drawing_and_a_skin_tone_changes_it(sequences):
    from sfumato_data.openmoji_font import draw

    plain, dark, mirrored = draw("👩‍🚒", 32), draw("👩🏿‍🚒", 32), ImageOps.mirror(draw("👩‍🚒", 32))
    difference = np.abs(np.asarray(plain).astype(int) - np.asarray(dark)).mean()
    assert 2 < difference < np.abs(np.asarray(plain).astype(int) - np.asarray(mirrored)).mean()
    # Two drawings side by side would fill the margin.
    assert np.asarray(plain)[:, -1].min() > 250


def test_without_raqm_sequences_are_refused(monkeypatch):
    from sfumato import DataError
    from sfumato_data import openmoji_font

    openmoji_font.draw.cache_clear()
    monkeypatch.setattr(openmoji_font.features, "check", lambda name: False)
    with pytest.raises(DataError) as error:
        openmoji_font.draw("👩‍🚒", 24)
    assert str(error.value) == (
        "openmoji: emoji of several code points need a Pillow built with Raqm; set sequences: "
        "false, or install Pillow's own wheel"
    )
    openmoji_font.draw("🍎", 24)
