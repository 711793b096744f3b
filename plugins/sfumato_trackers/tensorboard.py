"""Event files for TensorBoard, through the writer that comes with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from sfumato_trackers.following import Sink, library, resumed_at, settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class EventFiles(Sink):
    """`RUN/tensorboard`. Where a run goes on, what it had said of later steps is taken back."""

    def __init__(self, run: Path) -> None:
        """Begins a file.

        Raises:
            ConfigError: tensorboard is not installed.
        """
        library("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        step = resumed_at(run)
        purged = None if step is None else step + 1
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=purged, flush_secs=10)
        text = yaml.safe_dump(settings(run), sort_keys=False, allow_unicode=True)
        self.writer.add_text("settings", f"```yaml\n{text}```", step or 0)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """The PNG as an image."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.writer.add_image(name, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes what is queued."""
        self.writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()
