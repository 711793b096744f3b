"""The conformance kit, for authors of plugins and for sfumato itself."""

from sfumato.testing import conformance
from sfumato.testing.conformance import Failure, LawsBroken, Report

__all__ = ["Failure", "LawsBroken", "Report", "conformance"]
