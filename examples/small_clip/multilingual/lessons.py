"""What the tower is taught: texts in every language, each with the place where it must land.

Reads   WORK/train.parquet, WORK/heldout.parquet (made by examples.small_clip.pairs), CLDR's names

A text in English must land where the teacher puts that same text. A text in another language must
land where the teacher puts the English captions of the emoji that it names: one for a name, the
mean of several for a keyword ("gato" is said of eleven cats). Emoji held out from the teacher are
held out here, whole: neither their names nor their keywords, in no language, nor their characters.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from examples.small_clip.multilingual.names import (
    LANGUAGES,
    Emoji,
    file_names,
    read_emoji,
    read_words,
)
from examples.small_clip.pairs import HELD_OUT, hash_of

NAME_WEIGHT = 4
"""Of an emoji's name against a keyword of it, where one text is both."""
Counts = dict[str, dict[int, float]]
Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Split:
    train: list[Emoji]
    held_out: list[Emoji]
    captions: list[str]
    """All English captions that the teacher was trained on, clip art's included."""


@dataclass(frozen=True)
class Lessons:
    texts: list[str]
    targets: torch.Tensor
    """[n, d], unit rows: where each text must land."""
    shares: list[dict[int, float]]
    """Which emoji of Split.train each text names, summing to 1; none where it is clip art."""
    captions: torch.Tensor
    """[e, d], unit rows: where the teacher puts the caption of each emoji of Split.train."""


def read_split(work: Path, *, validation: bool) -> Split:
    """`validation`: a tenth of the training groups stands in for what is held out."""
    rows = pq.read_table(work / "train.parquet").to_pylist()
    held_out = file_names(pq.read_table(work / "heldout.parquet").to_pylist())
    if validation:
        is_held = [hash_of(f"validation {row['group']}") < HELD_OUT * 2**64 for row in rows]
        held_out = file_names(row for row, held in zip(rows, is_held, strict=True) if held)
        rows = [row for row, held in zip(rows, is_held, strict=True) if not held]
    train = file_names(rows)
    emoji = read_emoji()
    return Split(
        train=[one for one in emoji if one.file_name in train],
        held_out=[one for one in emoji if one.file_name in held_out],
        captions=sorted({row["caption"] for row in rows}),
    )


def make_lessons(split: Split, cldr: Path, encode: Encode) -> Lessons:
    counts, english = _named(split, cldr)
    texts = sorted(counts.keys() | english)
    shares = [_shares(counts.get(text, {})) for text in texts]
    captions = encode([emoji.caption for emoji in split.train])
    targets = np.empty((len(texts), captions.shape[1]), np.float32)
    is_english = np.array([text in english for text in texts])
    targets[is_english] = encode([text for text in texts if text in english])
    for place in np.flatnonzero(~is_english):
        found = shares[place]
        targets[place] = np.array(list(found.values()), np.float32) @ captions[list(found)]
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    return Lessons(texts, torch.from_numpy(targets), shares, torch.from_numpy(captions))


def _named(split: Split, cldr: Path) -> tuple[Counts, set[str]]:
    """How often each text stands for which emoji, and the texts that are English."""
    counts: Counts = defaultdict(lambda: defaultdict(float))
    english = set(split.captions)
    for language in LANGUAGES:
        words = read_words(cldr, language)
        for index, emoji in enumerate(split.train):
            if found := words.get(emoji.characters):
                counts[found.name][index] += NAME_WEIGHT
                for keyword in found.keywords:
                    counts[keyword][index] += 1
                if language == "en":
                    english |= {found.name, *found.keywords}
    for index, emoji in enumerate(split.train):
        counts[emoji.characters][index] += NAME_WEIGHT
        counts[emoji.caption][index] += NAME_WEIGHT
    return counts, english


def _shares(counts: dict[int, float]) -> dict[int, float]:
    total = sum(counts.values())
    return {index: count / total for index, count in counts.items()}
