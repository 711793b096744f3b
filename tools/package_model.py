"""A finished run as a model that comes with the package: `core/sfumato/models/NAME`.

    python tools/package_model.py runs/shapes shapes --dtype bfloat16

Settings, lock, record and the newest checkpoint are kept; the log, pictures, earlier checkpoints
and what only training needs are not. Weights are cast to `--dtype`, and computed with in float32
wherever they are loaded. `run.json` keeps all that it says, so its results are those of the weights
before the cast; `packaged` says to what they were cast, and the hashes that they had.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import TYPE_CHECKING

import torch

from sfumato import checkpoint, lock, references
from sfumato.errors import ConfigError
from sfumato.runs import RECORD, Run

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 12_000_000
DTYPES = ("float32", "bfloat16", "float16")


def package(run: str, folder: Path, dtype: str, most: int = MOST_BYTES) -> int:
    """Makes the folder, whole or not at all, and returns its size in bytes.

    Raises:
        ConfigError: the run is not completed, the folder is there, or it would be too large.
        CheckpointError: the weights cannot be read, or are not finite in this dtype.
    """
    opened = Run.open(run)
    if (status := opened.record().get("status")) != "completed":
        raise ConfigError(f"is {status}", place=run, remedy="finish it first")
    if folder.exists():
        raise ConfigError("is there already", place=str(folder), remedy="remove it first")
    newest = opened.newest_checkpoint()
    states, files = checkpoint.read(newest, without={checkpoint.TRAINING})
    cast = {
        slot: {
            name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()
        }
        for slot, state in states.items()
    }
    draft = Run(folder.with_name(f".{folder.name}"))
    try:
        checkpoint.write(
            draft.path / newest.relative_to(opened.path), cast, files, checkpoint.facts(newest)
        )
        for name in (references.SETTINGS, lock.FILE, RECORD):
            shutil.copyfile(opened.path / name, draft.path / name)
        draft.update(packaged={"dtype": dtype, "files": checkpoint.hashes(newest)})
        size = sum(path.stat().st_size for path in draft.path.rglob("*") if path.is_file())
        if size > most:
            remedy = f"at most {most:,} are shipped; use --dtype bfloat16, or a smaller model"
            raise ConfigError(f"takes {size:,} bytes", place=str(folder), remedy=remedy)
        draft.path.rename(folder)
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)
    return size


def main() -> None:
    """Packages a run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("name", help="of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights")
    given = parser.parse_args()
    folder = references.MODELS / given.name
    size = package(given.run, folder, given.dtype)
    sys.stdout.write(f"{folder}: {size:,} bytes\n")


if __name__ == "__main__":
    main()
