"""The tower's vocabulary: byte-level pieces of words, learned from the texts that it is taught."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence

PADDING = "<pad>"
DROPOUT = 0.1
"""Of merges in training: a word is met in several cuts (BPE-dropout, arXiv:1910.13267)."""
POOL_BATCHES = 50
"""So many batches are drawn at once and sorted by length, which leaves little padding."""


def learn_pieces(texts: Sequence[str], vocab_size: int, context_length: int) -> Tokenizer:
    """Of bytes, so that no script is unknown. Words end at spaces and punctuation alone: vowel
    signs belong to them, while GPT-2's pattern would cut Hindi and Thai at each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace("\ufe0f", ""),  # "as a picture": keyboards write it, CLDR doesn't
            normalizers.Replace("i\u0307", "i"),  # the lower case of Turkish's I with a dot
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PADDING],  # its number is 0
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(pad_id=0, pad_token=PADDING)
    return tokenizer


def shuffled_batches(
    tokenizer: Tokenizer, texts: Sequence[str], batch_size: int, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Places in `texts` and their tokens [n, L]; each text once, those of like length together."""
    cut = cut_texts(tokenizer, texts, DROPOUT)
    lengths = np.array([len(tokens) for tokens in cut])
    order = generator.permutation(len(texts))
    batches: list[np.ndarray] = []
    for start in range(0, len(texts), POOL_BATCHES * batch_size):
        pool = order[start : start + POOL_BATCHES * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.split(pool, range(batch_size, len(pool), batch_size))
    for index in generator.permutation(len(batches)):
        places = batches[index]
        yield places, pad_sequence([cut[place] for place in places], batch_first=True)


def cut_texts(tokenizer: Tokenizer, texts: Sequence[str], dropout: float) -> list[torch.Tensor]:
    """The tokens of each, unpadded; which merges drop out is the library's own random choice."""
    tokenizer.no_padding()
    tokenizer.model.dropout = dropout
    encodings = tokenizer.encode_batch(list(texts))
    tokenizer.model.dropout = None
    tokenizer.enable_padding(pad_id=0, pad_token=PADDING)
    return [torch.tensor(encoding.ids) for encoding in encodings]
