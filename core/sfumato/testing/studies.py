"""Laws of studies: the same answer for the same seed, from a pipeline that stays as it is."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

from sfumato.measurements import as_json
from sfumato.testing import assembly
from sfumato.testing.laws import Broken, expect, law, subject
from sfumato.testing.modules import expect_same_state, random_state_kept, state_of

if TYPE_CHECKING:
    from sfumato.interfaces import Study
    from sfumato.records import Finding

SEED = 5
SIDES = (32, 8000)
"""Pixels that a picture may be high and wide."""


class Subject:
    """A study and a pipeline that it accepts."""

    def __init__(self, settings: Study) -> None:
        self.settings, self.pipeline = settings, assembly.pipeline()
        settings.check(self.pipeline)

    @functools.cached_property
    def finding(self) -> Finding:
        """What it found first; it is run no more often than the laws need."""
        return self.settings.run(self.pipeline, SEED)


@subject("study")
def accepts(settings: Study) -> Subject:
    """`check` accepts a small pipeline."""
    return Subject(settings)


@law("study")
def leaves_things_alone(study: Subject) -> None:
    """The pipeline's weights and modes and torch's random state stay as they are."""
    modules = study.pipeline.modules()
    before = {slot: state_of(module) for slot, module in modules.items()}
    with random_state_kept():
        _ = study.finding
    for slot, module in modules.items():
        expect_same_state(module, before[slot], f"the {slot}")
        expect(not module.training, f"the {slot} in eval mode", "train mode")
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        expect(frozen, f"the {slot} frozen", "trainable parameters")


def _json(finding: Finding) -> str:
    """Numbers and details as the run folder stores them."""
    found = {"numbers": as_json(finding.numbers), "details": dict(finding.details)}
    try:
        return json.dumps(found, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise Broken("finite numbers and details that fit JSON", str(error)) from error


@law("study")
def gives_numbers(study: Subject) -> None:
    """It finds at least one number; numbers and details are finite and fit JSON."""
    _json(study.finding)
    expect(len(study.finding.numbers) > 0, "a number", "none")


@law("study")
def repeatable(study: Subject) -> None:
    """The same seed gives the same numbers, details and picture."""
    again = study.settings.run(study.pipeline, SEED)
    first, second = _json(study.finding), _json(again)
    expect(first == second, "the same numbers and details again", second[:200])
    pictures = [one.picture and one.picture.tobytes() for one in (study.finding, again)]
    expect(pictures[0] == pictures[1], "the same picture again", "another")


@law("study")
def its_picture_can_be_looked_at(study: Subject) -> None:
    """Where it draws a picture, that is of a size to look at, and not blank."""
    picture = study.finding.picture
    if picture is not None:
        low, high = SIDES
        sensible = all(low <= side <= high for side in picture.size)
        expect(sensible, f"{low} to {high} pixels a side", f"{picture.size}")
        colors = picture.convert("RGB").getcolors(maxcolors=1)
        expect(colors is None, "a picture", "one color")
