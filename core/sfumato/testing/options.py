"""Option sets for a component, drawn by Hypothesis from its own types and validators.

A draw changes a few options of a base instance and leaves the rest: so a failure shrinks to the
smallest change that shows it. Numbers are drawn within their bounds; a side without a bound reaches
as far as four times the base value, sizes as far as twice, so that what is drawn stays quick to
build. Texts, paths and mappings keep their value, and what a component itself refuses with a
ConfigError is not drawn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs
from hypothesis import reject, strategies

from sfumato import settings
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from sfumato.settings import Bounds

AT_ONCE = 3
"""Options that differ from the base in one draw, at most."""
FINENESS = 1e-6
"""How close a number comes to a bound that it may not reach, as a share of its range."""


@strategies.composite
def instances(draw: DrawFn, base: Any) -> Any:
    """Instances like `base` with some options changed."""
    drawable = {}
    cls: Any = type(base)
    for name, field in settings.fields(cls).items():
        strategy = _values(field.type, settings.bounds(field), getattr(base, name))
        if strategy is not None:
            drawable[name] = strategy
    if not drawable:
        return base
    names = strategies.lists(strategies.sampled_from(sorted(drawable)), unique=True)
    chosen = draw(names.filter(lambda found: len(found) <= AT_ONCE))
    changes = {name: draw(drawable[name]) for name in chosen}
    try:
        return attrs.evolve(base, **changes)
    except (ConfigError, ValueError):
        reject()


def _values(hint: Any, bounds: Bounds, current: Any) -> SearchStrategy[Any] | None:
    """Values for an option of this type, or None where it keeps what it has."""
    bare = settings.bare(hint)
    if bare is not hint:
        inner = _values(bare, bounds, 1 if current is None and bare in (int, float) else current)
        return inner if inner is None else strategies.none() | inner
    if bounds.choices:
        return strategies.sampled_from(list(bounds.choices))
    if hint is bool:
        return strategies.booleans()
    if hint is int:
        return _integers(bounds, current)
    if hint is float:
        return _floats(bounds, current)
    if get_origin(hint) is tuple and current:
        items = [_values(get_args(hint)[0], bounds, item) for item in current]
        if all(item is not None for item in items):
            return strategies.tuples(*(item for item in items if item is not None))
    if settings.is_component(hint) and current is not None:
        return instances(current)
    return None


def _integers(bounds: Bounds, current: int) -> SearchStrategy[int]:
    low = bounds.low if math.isfinite(bounds.low) else current - 4 * abs(current) - 4
    high = min(bounds.high, max(2 * current, current + 4))
    return strategies.integers(
        math.floor(low) + 1 if bounds.low_open else math.ceil(low),
        math.ceil(high) - 1 if bounds.high_open and high == bounds.high else math.floor(high),
    )


def _floats(bounds: Bounds, current: float) -> SearchStrategy[float]:
    reach = 4 * abs(current) or 4.0
    low = bounds.low if math.isfinite(bounds.low) else min(current - reach, bounds.high - reach)
    high = bounds.high if math.isfinite(bounds.high) else max(current + reach, bounds.low + reach)
    margin = FINENESS * (high - low)
    return strategies.floats(
        low + margin * bounds.low_open,
        high - margin * bounds.high_open,
        allow_subnormal=False,
    )
