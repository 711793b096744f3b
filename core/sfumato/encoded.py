"""What frozen encoders say of each example, computed once and kept in files.

A stage that trains the denoiser asks autoencoder and text encoder the same things in every epoch.
With `cache` the answers are computed before its first step, into a folder whose name is a hash of
all that they depend on, to the bit: the settings, weights and files of both encoders, the precision
and how many are encoded at once, the settings of the data and the fingerprint of the split, the
software, sources of plugins too, and the device. Where any of it changes there is another folder,
so nothing stale is ever read, and what a stage reads is all in its content key; and some answers
are computed anew to be compared, so that data or encoders that say something else each time are
found out.

    FOLDER/KEY/  latents-00000.safetensors  texts-00000.safetensors ...

Each file is whole or absent, so that a process that is killed goes on where it was. A text stands
there once, however many pictures it has.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato import content, settings, stage_keys
from sfumato.errors import ConfigError, SfumatoError
from sfumato.memory import scaled
from sfumato.records import Batch, TextEmbedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sfumato.engine import Single
    from sfumato.experiment import Experiment, Stage
    from sfumato.pipeline import Pipeline
    from sfumato.plugins import Catalogue
    from sfumato.split import Split

SHARD = 512
"""Examples, or texts, in one file."""
TOLERANCE = 0.02
"""How far an answer may be from the same one computed anew, relative to its largest value: among
other rows it is rounded otherwise, in half precision by up to a hundredth."""
PARTS = ("tokens", "mask", "pooled")


@attrs.frozen
class Encoded:
    """The answers for one split, read as they are asked for; goes to worker processes as it is.

    Attributes:
        folder: of the files.
        captions: the distinct ones, in the order of their numbers.
    """

    folder: Path
    captions: tuple[str, ...]

    def batch(self, examples: Sequence[int]) -> Batch:
        """These examples as rows 0, 1 ... of a batch, without pictures."""
        latents, numbers, replaced = [], [], {}
        for example in examples:
            path = self.folder / _name("latents", example // SHARD)
            file, faults = _open(path), _faults(path)
            if str(example) in faults:
                replaced[example] = faults[str(example)]
            latents.append(file.get_tensor(f"latent.{example}"))
            numbers.append(int(file.get_tensor(f"text.{example}")))
        rows = torch.arange(len(examples))
        return Batch(
            images=torch.empty(len(examples), 3, 0, 0),
            captions=tuple(self.captions[number] for number in numbers),
            examples=torch.tensor(examples),
            rows=rows,
            total=len(examples),
            latents=torch.stack(latents),
            text=TextEmbedding.cat(*map(self._text, numbers)),
            replaced=replaced,
        )

    def _text(self, number: int) -> TextEmbedding:
        file = _open(self.folder / _name("texts", number // SHARD))
        parts = {part: file.get_tensor(f"{part}.{number}")[None] for part in PARTS}
        return TextEmbedding(**parts)


class Encoding:
    """The answers of one pipeline about one split, under way."""

    def __init__(
        self,
        experiment: Experiment,
        pipeline: Pipeline,
        split: Split,
        stage: Stage,
        engine: Single,
        catalogue: Catalogue,
    ) -> None:
        """`stage` says the precision, and how many are encoded at once."""
        self.pipeline, self.split, self.stage, self.engine = pipeline, split, stage, engine
        self.captions = tuple(dict.fromkeys(map(split.caption, range(len(split)))))
        read = _read(experiment, pipeline, split, stage, catalogue)
        told = json.dumps([read, stage_keys.surroundings(engine)], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()[:32]
        self.folder = Path(str(stage.cache)).expanduser() / key

    def complete(self) -> Encoded:
        """Computes what is not there yet, and compares some of what is.

        Raises:
            ConfigError: there is no room, or the answers are others each time.
            SfumatoError: a file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            latents = self._missing("latents", len(self.split))
            texts = self._missing("texts", len(self.captions))
            self._check_room(sum(map(len, [*latents.values(), *texts.values()])))
            for path, numbers in texts.items():
                _write(path, self._texts(numbers), {})
            for path, examples in latents.items():
                tensors = self._latents(examples)
                faults = {str(i): fault for i in examples if (fault := self.split.fault(i))}
                _write(path, tensors, faults)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}"
            raise SfumatoError(problem, place=str(self.folder)) from error
        encoded = Encoded(self.folder, self.captions)
        self._compare(encoded)
        return encoded

    def _missing(self, kind: str, count: int) -> dict[Path, range]:
        """The files that are not there, and what belongs into each."""
        paths = {self.folder / _name(kind, n): part for n, part in enumerate(_parts(count, SHARD))}
        return {path: part for path, part in paths.items() if not _is_whole(path)}

    def _latents(self, examples: range) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        numbers = {caption: number for number, caption in enumerate(self.captions)}
        for part in self._batches(examples):
            batch = self._fresh(part)
            latents, _ = self._ask(batch)
            for row, example in enumerate(part):
                found[f"latent.{example}"] = latents[row].clone()
                found[f"text.{example}"] = torch.tensor(numbers[batch.captions[row]])
        return found

    def _texts(self, numbers: range) -> dict[str, Tensor]:
        found = {}
        for part in self._batches(numbers):
            with self.engine.autocast(self.stage.precision):
                text = self.pipeline.encode([self.captions[number] for number in part])
            for name in PARTS:
                for row, number in enumerate(part):
                    found[f"{name}.{number}"] = getattr(text, name)[row].cpu().clone()
        return found

    def _batches(self, numbers: range) -> Iterator[range]:
        return (numbers[part.start : part.stop] for part in _parts(len(numbers), self.stage.batch))

    def _fresh(self, examples: Sequence[int]) -> Batch:
        images, captions = zip(*map(self.split.example, examples), strict=True)
        device, rows = self.engine.device, torch.arange(len(examples))
        return Batch(
            images=torch.stack(images).to(device),
            captions=captions,
            examples=torch.tensor(examples, device=device),
            rows=rows.to(device),
            total=len(examples),
        )

    def _ask(self, batch: Batch) -> tuple[Tensor, TextEmbedding]:
        with self.engine.autocast(self.stage.precision):
            latents, text = self.pipeline.encoded(batch)
        return latents.cpu(), text.map(Tensor.cpu)

    def _check_room(self, entries: int) -> None:
        """Raises ConfigError where `entries`, each as large as a latent and a text, do not fit."""
        latents, text = self._ask(self._fresh([0]))
        each = sum(one.nbytes for one in (latents, text.tokens, text.mask, text.pooled))
        free = _free(self.folder)
        if each * entries > free:
            raise ConfigError(
                f"needs up to {scaled(each * entries)}B, and the disk has {scaled(free)}B left",
                place=str(self.folder),
                remedy="make room, name a folder elsewhere, or leave `cache` out",
            )

    def _compare(self, encoded: Encoded) -> None:
        """Raises ConfigError where what is kept is not what the encoders say."""
        examples = sorted({0, len(self.split) // 2, len(self.split) - 1})
        latents, text = self._ask(self._fresh(examples))
        kept_latents, kept_text = self.pipeline.encoded(encoded.batch(examples))
        mine, theirs = TextEmbedding.aligned(text, kept_text)
        for name, now, then in (
            ("latents", latents, kept_latents),
            ("tokens", mine.tokens, theirs.tokens),
            ("pooled texts", mine.pooled, theirs.pooled),
        ):
            off = (now.float() - then.float()).abs().max() / now.float().abs().max().clamp(min=1e-6)
            if not off <= TOLERANCE:
                raise ConfigError(
                    f"{name} computed anew differ from those that are kept, by {float(off):.2g} of "
                    "their largest value: data or encoders say something else each time",
                    place=str(self.folder),
                    remedy="leave `cache` out, or what is random in them",
                )


def _read(
    experiment: Experiment, pipeline: Pipeline, split: Split, stage: Stage, catalogue: Catalogue
) -> dict[str, Any]:
    """All that the answers depend on, beside where they are computed."""
    encoders = {"text_encoder": pipeline.text_encoder, "autoencoder": pipeline.autoencoder}
    slots = {slot: getattr(experiment, slot) for slot in (*encoders, "data")}
    return {
        "slots": settings.plain(slots, catalogue),
        "size": experiment.picture_size,
        "precision": stage.precision,
        "batch": stage.batch,
        "data": split.fingerprint(),
        "weights": {
            slot: content.digest(module.state_dict(), getattr(module, "files", None))
            for slot, module in encoders.items()
        },
        "sources": stage_keys.sources(slots.values(), catalogue),
    }


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.safetensors"


def _parts(count: int, size: int) -> Iterator[range]:
    """0 up to `count`, in pieces."""
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def _is_whole(path: Path) -> bool:
    """Whether a file is there, and as long as its header says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _write(path: Path, tensors: Mapping[str, Tensor], faults: Mapping[str, str]) -> None:
    """Writes a file whole, readable as the umask says, with what is wrong with some examples."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, {"faults": json.dumps(faults)})
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.lru_cache(maxsize=4096)
def _open(path: Path) -> Any:
    """The file, mapped; each process opens its own."""
    return safe_open(path, "pt").__enter__()  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=4096)
def _faults(path: Path) -> dict[str, str]:
    return dict(json.loads((_open(path).metadata() or {}).get("faults", "{}")))
