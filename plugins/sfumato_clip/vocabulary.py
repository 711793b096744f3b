"""A vocabulary learnt from captions: byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909).

Text is brought to NFC and lower case, its white space to single spaces. The alphabet is the 256
bytes, so nothing is ever unknown. As in Stable Diffusion, the end token pads. Knows nothing about
models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from collections.abc import Iterable

START, END = "<|startoftext|>", "<|endoftext|>"


def learn(captions: Iterable[str], size: int, positions: int) -> bytes:
    """A `tokenizer.json` of at most `size` tokens that pads to `positions` and never truncates."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[START, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_padding(length=positions, pad_id=end, pad_token=END)
    return str(tokenizer.to_str()).encode()
