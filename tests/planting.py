"""Deliberately wrong components, each with the laws that it breaks."""

import attrs
import pytest


class Planted(list):
    """Collects wrong components as parameters of a test."""

    def breaks(self, *laws):
        """Marks a component as one that breaks these laws, the first of them first."""

        def mark(component):
            component = attrs.frozen(kw_only=True)(component)
            self.append(pytest.param(component, laws, id=component.__name__))
            return component

        return mark
