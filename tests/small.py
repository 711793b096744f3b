"""A registry small enough to train in a second, and where the repository is."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMALL = (ROOT / "core" / "sfumato" / "testing" / "registry.yaml").read_text()
"""The conformance kit's own."""
