"""The files of a foreign folder, and what is not to be read from them.

Nothing outside of the folder is opened, whatever a name or a link says; weights are safetensors
only, mapped into memory and not copied; no code is run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import attrs

from sfumato import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

WEIGHTS, INDEX = ".safetensors", ".safetensors.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack", ".h5")


@attrs.frozen(eq=False)
class Folder:
    """A folder that somebody else has written.

    Attributes:
        root: where it is.
        hashes: SHA-256 of each file of weights that was read, by its name in the folder.
    """

    root: Path
    hashes: dict[str, str] = attrs.field(factory=dict)

    def path(self, name: str) -> Path:
        """Where a file of the folder is, or would be.

        Raises:
            CheckpointError: it would be elsewhere.
        """
        path, root = self.root / name, self.root.resolve()
        if PurePosixPath(name).is_absolute() or not path.resolve().is_relative_to(root):
            raise CheckpointError(
                "leaves the folder",
                place=str(path),
                remedy="copy the folder with what its links point to (cp -rL)",
            )
        return path

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.path(name).is_file()

    def bytes(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            CheckpointError: it is missing, or cannot be read.
        """
        path = self.path(name)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError("is missing", place=str(path)) from error
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error.strerror}", place=str(path)) from error

    def json(self, name: str) -> dict[str, Any]:
        """A file that holds one JSON object.

        Raises:
            CheckpointError: it is missing, or holds something else.
        """
        content = self.bytes(name)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            first = str(error).splitlines()[0]
            raise CheckpointError(f"is not JSON: {first}", place=str(self.path(name))) from error
        if not isinstance(found, dict):
            raise CheckpointError("holds no JSON object", place=str(self.path(name)))
        return found

    def weights(self, part: str, stem: str) -> dict[str, Tensor]:
        """The weights of a part: `stem.safetensors`, its shards, or those of a variant (fp16).

        Raises:
            CheckpointError: there are none, or they cannot be read.
        """
        folder = self.path(part)
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        whole = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]  # before any variant
        for name in sorted(names, key=lambda name: name not in whole):
            if name.startswith(f"{stem}.") and name.endswith(WEIGHTS) and "-of-" not in name:
                return self._tensors(f"{part}/{name}")
            if name.startswith(f"{stem}.safetensors.index.") and name.endswith(".json"):
                return self._shards(part, name)
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise CheckpointError(
                f"holds its weights as a pickle ({pickles[0]}), which can run any code",
                place=str(folder),
                remedy="convert it where you trust it: save_pretrained(safe_serialization=True)",
            )
        raise CheckpointError("is missing", place=str(folder / f"{stem}{WEIGHTS}"))

    def _shards(self, part: str, index: str) -> dict[str, Tensor]:
        place = str(self.path(f"{part}/{index}"))
        listed = self.json(f"{part}/{index}").get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise CheckpointError("has no weight_map of names to files", place=place)
        found: dict[str, Tensor] = {}
        for name in sorted(set(listed.values())):
            if PurePosixPath(name).name != name or not name.endswith(WEIGHTS):
                raise CheckpointError(
                    f"names {name!r}, which is no {WEIGHTS} file beside it", place=place
                )
            found |= self._tensors(f"{part}/{name}")
        if wrong := sorted(found.keys() ^ listed.keys()):
            where = "the files that it names" if wrong[0] in listed else "it"
            raise CheckpointError(f"{wrong[0]} is missing in {where}", place=place)
        return found

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.path(name)
        try:
            found = load_file(path)
            with path.open("rb") as file:
                self.hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise CheckpointError("is missing", place=str(path)) from error
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"is not safetensors: {error}", place=str(path)) from error
        return found


def renamed(state: Mapping[str, Tensor], rules: Mapping[str, str], place: str) -> dict[str, Tensor]:
    """With parts of names replaced.

    Raises:
        CheckpointError: two names become one.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for old, by in rules.items():
            new = new.replace(old, by)
        if new in found:
            raise CheckpointError(f"holds {new} twice", place=place)
        found[new] = tensor
    return found
