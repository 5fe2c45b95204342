"""Pairs whose captions are made wrong on purpose, as embeddings, and measures of who notices.

Reads   emoji and clip art (benchmarks/drawn.py); writes their embeddings to WORK/pairs.npz, once
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import faiss
import numpy as np

from benchmarks.drawn import Drawn, drawn, emoji_names
from retrieval.captions.neighbourhood import NEAR_DUPLICATE
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder

LANGUAGES = ("de", "fr", "es", "it", "pl", "ru", "ja", "zh", "hi", "ko", "fi", "hu")
BATCH = 256


@dataclass(frozen=True)
class Pairs:
    """n pictures and captions as unit vectors [n, d], and what their captions could become."""

    images: np.ndarray
    texts: np.ndarray
    truncated: np.ndarray
    """The first half of the words; of one word, of the letters."""
    foreign: np.ndarray
    """An emoji's name in another language, each in one of twelve."""
    is_emoji: np.ndarray
    is_seen: np.ndarray
    """By the encoder, in its training."""

    def take(self, wanted: np.ndarray) -> "Pairs":
        return Pairs(**{one.name: getattr(self, one.name)[wanted] for one in fields(self)})

    def __len__(self) -> int:
        return len(self.images)


def read_pairs(work: Path) -> Pairs:
    path = work / "pairs.npz"
    if not path.exists():
        np.savez(path, **vars(_embed(drawn(work), work)))
    with np.load(path) as arrays:
        return Pairs(**arrays)


def _embed(pictures: list[Drawn], work: Path) -> Pairs:
    encoder = load_encoder(EMBEDDED_ENCODER)
    names = {language: emoji_names(work, language) for language in LANGUAGES}
    captions = [one.caption for one in pictures]
    images = [
        encoder.encode_images([one.read() for one in pictures[start : start + BATCH]])
        for start in range(0, len(pictures), BATCH)
    ]
    return Pairs(
        images=np.concatenate(images),
        texts=encoder.encode_texts(captions),
        truncated=encoder.encode_texts([truncate(caption) for caption in captions]),
        foreign=encoder.encode_texts(
            [
                _foreign(one, names[LANGUAGES[place % len(LANGUAGES)]])
                for place, one in enumerate(pictures)
            ]
        ),
        is_emoji=np.array([one.is_emoji for one in pictures]),
        is_seen=np.array([one.is_seen for one in pictures]),
    )


def truncate(caption: str) -> str:
    words = caption.split()
    return " ".join(words[: len(words) // 2]) if len(words) > 1 else caption[: len(caption) // 2]


def _foreign(one: Drawn, names: dict[str, str]) -> str:
    """Clip art has no name in another language, and is not asked for it."""
    if not one.is_emoji:
        return ""
    return names.get(one.code) or names[one.code.replace("-FE0F", "")]


# Corruption

Corruption = Callable[[Pairs, np.ndarray], np.ndarray]
"""Pairs and the rows to spoil -> the vectors of their new captions."""


def _swapped(pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """Each gets the caption of the next: all of them stay in the corpus."""
    texts: np.ndarray = pairs.texts[np.roll(rows, 1)]
    return texts


def _neighbours(pairs: Pairs, rows: np.ndarray) -> np.ndarray:
    """That of the nearest picture which is no copy; it stays that picture's, too."""
    similarities, found = faiss.knn(
        pairs.images[rows], pairs.images, 50, faiss.METRIC_INNER_PRODUCT
    )
    is_other = (found != rows[:, None]) & (similarities <= NEAR_DUPLICATE)
    nearest = np.take_along_axis(found, is_other.argmax(axis=1)[:, None], axis=1)[:, 0]
    texts: np.ndarray = pairs.texts[nearest]
    return texts


KINDS: dict[str, Corruption] = {
    "random swap": _swapped,
    "neighbour's": _neighbours,
    "truncated": lambda pairs, rows: pairs.truncated[rows],
    "another language": lambda pairs, rows: pairs.foreign[rows],
}


def corrupt(pairs: Pairs, kind: str, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The captions [n, d], and which of them are wrong [n]; in another language, so many of the
    emoji."""
    could_be = pairs.is_emoji if kind == "another language" else np.ones(len(pairs), bool)
    rows = np.flatnonzero(could_be)
    chosen = np.random.default_rng([0, seed]).permutation(rows)[: round(rate * len(rows))]
    texts, is_wrong = pairs.texts.copy(), np.zeros(len(pairs), bool)
    if len(chosen):
        texts[chosen] = KINDS[kind](pairs, chosen)
        is_wrong[chosen] = True
    return texts, is_wrong


# Measures


def auroc(fits: np.ndarray, is_wrong: np.ndarray) -> float:
    """The chance that a sound pair scores above a wrong one; ties count half."""
    _, places, counts = np.unique(fits, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    num_sound, num_wrong = (~is_wrong).sum(), is_wrong.sum()
    above = ranks[~is_wrong].sum() - num_sound * (num_sound + 1) / 2
    return float(above / (num_sound * num_wrong))


def average_precision(fits: np.ndarray, is_wrong: np.ndarray) -> float:
    """Of finding the wrong ones, lowest score first; ties in an order that knows nothing."""
    shuffled = np.random.default_rng(1).permutation(len(fits))
    found = is_wrong[shuffled][np.argsort(fits[shuffled], kind="stable")]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found].mean())
