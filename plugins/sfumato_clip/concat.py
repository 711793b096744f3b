"""Several text encoders side by side, as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sfumato import ConfigError, TextEmbedding, TextEncoderModule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sfumato_clip import Concat


class ConcatModule(TextEncoderModule):
    """See `Concat`."""

    encoders: Any

    def __init__(self, concat: Concat, files: Mapping[str, bytes]) -> None:
        super().__init__()
        modules = [
            settings.build(_of(index, files)) for index, settings in enumerate(concat.encoders)
        ]
        counts = {module.positions for module in modules}
        if len(counts) > 1:
            raise ConfigError(
                f"its encoders read {' and '.join(map(str, sorted(counts)))} tokens, which do not "
                "stand side by side",
                place="text_encoder concat",
                remedy="use encoders with the same number of positions",
            )
        self.encoders = nn.ModuleList(modules)
        self._pooling = slice(None) if concat.pooled == "all" else slice(-1, None)
        self._zeros = concat.null_condition == "zeros"
        self.width = sum(module.width for module in modules)
        self.pooled_width = sum(module.pooled_width for module in modules[self._pooling])
        self.positions = counts.pop()
        self.files = {
            f"{index}.{name}": content
            for index, module in enumerate(modules)
            for name, content in module.files.items()
        }

    def check(self, prompts: Iterable[str]) -> None:
        """Raises ConfigError where one of them would refuse a prompt."""
        prompts = list(prompts)
        for encoder in self.encoders:
            encoder.check(prompts)

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """Tokens (B, L, D), a token belonging to its prompt if it does for one of the encoders;
        pooled (B, P).

        Raises:
            ConfigError: one of them refuses a prompt, or they make different numbers of tokens.
        """
        parts: list[TextEmbedding] = [encoder.encode(prompts) for encoder in self.encoders]
        lengths = {part.tokens.shape[1] for part in parts}
        if len(lengths) > 1:
            raise ConfigError(
                f"its encoders make {' and '.join(map(str, sorted(lengths)))} tokens of a prompt",
                place="text_encoder concat",
                remedy="have all of them split long prompts, or none",
            )
        return TextEmbedding(
            tokens=torch.cat([part.tokens for part in parts], dim=-1),
            mask=torch.stack([part.mask for part in parts]).any(dim=0),
            pooled=torch.cat([part.pooled for part in parts[self._pooling]], dim=-1),
        )

    def null(self, batch: int) -> TextEmbedding:
        """The empty prompt, or as many zeros."""
        empty = super().null(batch)
        if not self._zeros:
            return empty
        return TextEmbedding(
            tokens=torch.zeros_like(empty.tokens),
            mask=empty.mask,
            pooled=torch.zeros_like(empty.pooled),
        )


def _of(index: int, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of one encoder, under its own names."""
    start = f"{index}."
    return {
        name.removeprefix(start): content
        for name, content in files.items()
        if name.startswith(start)
    }
