"""Recall by language: does a name in another language find what its English name finds?

    python -m examples.small_clip.multilingual.evaluate [--cldr CLDR] [--folder FOLDER]

Reads   held_out.csv beside this file, examples/emoji, the teacher, the tower
Prints  a table: how often a held-out name finds its English caption, and its picture, at rank 1
        and among the first 10; strictly, as examples.small_clip.evaluate counts. The first row is
        the teacher with the English names. With --cldr the same for the names seen in training.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.small_clip.evaluate import emoji_pairs
from examples.small_clip.multilingual.lessons import Encode
from examples.small_clip.multilingual.names import HELD_OUT, LANGUAGES, read_emoji, read_words
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.text_tower import EmbeddedTower
from retrieval.encoding.towers import load_tower, multilingual_of

KS = (1, 10)
KINDS = ("captions", "pictures")
Names = Mapping[str, Sequence[str]]
"""By language: a name an emoji, "" where it has none."""


@dataclass(frozen=True)
class Space:
    """Where the teacher puts all emoji of the demo, in their order."""

    captions: np.ndarray
    """[e, d]"""
    pictures: np.ndarray
    """[e, d]"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cldr", type=Path, help="where both CLDR packages were unpacked")
    parser.add_argument("--folder", type=Path, help="another tower than the one that ships")
    arguments = parser.parse_args()
    teacher = load_encoder(EMBEDDED_ENCODER)
    name = multilingual_of(EMBEDDED_ENCODER) or ""
    tower = EmbeddedTower(name, arguments.folder) if arguments.folder else load_tower(name)
    pictures, captions = zip(*emoji_pairs(), strict=True)
    space = Space(teacher.encode_texts(captions), teacher.encode_images(pictures))
    held_out, names = held_out_names()
    print_table("held out", teacher.encode_texts, tower.encode_texts, names, held_out, space)
    if arguments.cldr:
        seen, names = seen_names(arguments.cldr, set(held_out))
        print_table("seen", teacher.encode_texts, tower.encode_texts, names, seen, space)


def held_out_names() -> tuple[list[int], Names]:
    """Which emoji of the demo are held out, and their names."""
    place_of = {emoji.file_name: place for place, emoji in enumerate(read_emoji())}
    with HELD_OUT.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {language: [row[language] for row in rows] for language in LANGUAGES}
    return [place_of[row["file_name"]] for row in rows], names


def seen_names(cldr: Path, held_out: set[int]) -> tuple[list[int], Names]:
    emoji = read_emoji()
    seen = [place for place in range(len(emoji)) if place not in held_out]
    names = {}
    for language in LANGUAGES:
        words = read_words(cldr, language)
        found = (words.get(emoji[place].characters) for place in seen)
        names[language] = [each.name if each else "" for each in found]
    return seen, names


def print_table(
    title: str, teach: Encode, encode: Encode, names: Names, own: list[int], space: Space
) -> None:
    """Markdown. Candidates: all emoji of the demo, then these alone."""
    kinds = [f"{what} of {n:,}" for n in (len(space.captions), len(own)) for what in KINDS]
    print(
        f"\n{title}: {len(own)} emoji, percent at rank {' / among the first '.join(map(str, KS))}"
    )
    print(f"| | names | {' | '.join(kinds)} |\n|{' --- |' * (2 + len(kinds))}")
    rows = {"teacher, en": figures(teach, names["en"], own, space)}
    rows |= {language: figures(encode, names[language], own, space) for language in LANGUAGES}
    others = [rows[language] for language in LANGUAGES if language != "en"]
    rows["mean but en"] = np.mean(others, axis=0)
    for row, found in rows.items():
        cells = [
            " / ".join(f"{100 * value:.1f}" for value in pair) for pair in found[1:].reshape(-1, 2)
        ]
        print(f"| {row} | {found[0]:.0f} | {' | '.join(cells)} |")


def figures(encode: Encode, names: Sequence[str], own: list[int], space: Space) -> np.ndarray:
    """How many names, then recall at each of KS: captions and pictures of all emoji, of these."""
    named = [index for index, name in enumerate(names) if name]
    queries = encode([names[index] for index in named])
    places = np.array(own)[named]
    found: list[float] = [len(named)]
    for among, answers_of in ((np.arange(len(space.captions)), places), (np.array(own), named)):
        for vectors in (space.captions, space.pictures):
            found += recall(queries, vectors[among], np.array(answers_of))
    return np.array(found)


def recall(queries: np.ndarray, answers: np.ndarray, own: np.ndarray) -> list[float]:
    """Share of the queries whose own answer is among the first k; ties count against it."""
    similarities = queries @ answers.T
    ranks = (similarities >= similarities[np.arange(len(own)), own][:, None]).sum(axis=1)
    return [float((ranks <= k).mean()) for k in KS]


if __name__ == "__main__":
    main()
