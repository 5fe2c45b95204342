"""Does adding words to pictures need a correction for the gap between the two?

    python -m benchmarks.algebra ROOT

ROOT is an indexed corpus of the emoji in examples/emoji, all of them, by any encoder. CLIP's
pictures and texts lie in two separate cones (Liang et al., "Mind the Gap", NeurIPS 2022). A sum of
both is tried as it is, with each modality's mean subtracted first, that made unit vectors again,
and with texts moved by the gap, on two tasks over the corpus's own embeddings:

  analogy   picture of `man ...` - "man" + "woman" -> the picture of `woman ...` (and person)
  both      picture A + caption of B -> A's and B's pictures both among the first ten
"""

import argparse
from collections.abc import Callable

import numpy as np

from retrieval.asking.asker import Asker
from retrieval.asking.question import Term
from retrieval.search import Retriever

SUBJECTS = ("man", "woman", "person")
NUM_PAIRS = 1000
Change = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root")
    retriever = Retriever.open(parser.parse_args().root)
    rows = np.arange(retriever.num_rows)
    images, texts = (retriever.vectors(rows, modality) for modality in ("image", "text"))
    captions = [hit.caption for hit in retriever.hits(rows, np.zeros(len(rows)))]
    asker = Asker(retriever)
    words = {subject: asker.embed(Term(text=subject)) for subject in SUBJECTS}
    image_mean, text_mean = images.mean(axis=0), texts.mean(axis=0)
    print(
        f"{retriever.encoder}: distance of the means {np.linalg.norm(image_mean - text_mean):.3f}"
    )
    ways: dict[str, tuple[Change, Change]] = {
        "as they are": (lambda v: v, lambda v: v),
        "means subtracted": (lambda v: v - image_mean, lambda v: v - text_mean),
        "means subtracted, unit": (
            lambda v: unit(v - image_mean),
            lambda v: unit(v - text_mean),
        ),
        "texts moved by the gap": (lambda v: v, lambda v: unit(v - text_mean + image_mean)),
    }
    analogies = find_analogies(captions)
    pairs = np.random.default_rng(0).integers(0, len(rows), (NUM_PAIRS, 2))
    print(f"{'':24} analogy@1  @10 ({len(analogies)})   both@10 ({NUM_PAIRS})")
    for name, (of_image, of_text) in ways.items():
        ranks = [
            rank(
                images,
                of_image(images[own]) - of_text(words[was]) + of_text(words[becomes]),
                target,
                without=own,
            )
            for own, target, was, becomes in analogies
        ]
        both = [
            max(rank(images, of_image(images[a]) + of_text(texts[b]), one) for one in (a, b)) < 10
            for a, b in pairs
        ]
        first, ten = np.mean(np.array(ranks) < 1), np.mean(np.array(ranks) < 10)
        print(f"{name:24} {first:9.3f} {ten:9.3f} {np.mean(both):15.3f}")


def find_analogies(captions: list[str]) -> list[tuple[int, int, str, str]]:
    """Rows of a picture and of its like with another subject, and the two subjects."""
    at = {caption: row for row, caption in enumerate(captions)}
    found = []
    for caption, row in at.items():
        was, _, rest = caption.partition(" ")
        if was in SUBJECTS and rest:
            others = [(f"{other} {rest}", other) for other in SUBJECTS if other != was]
            found += [(row, at[like], was, other) for like, other in others if like in at]
    return found


def rank(images: np.ndarray, query: np.ndarray, target: int, without: int | None = None) -> int:
    """How many pictures are nearer than the target, from 0."""
    similarities = images @ query
    if without is not None:
        similarities[without] = -np.inf
    return int((similarities > similarities[target]).sum())


def unit(vector: np.ndarray) -> np.ndarray:
    direction: np.ndarray = vector / np.linalg.norm(vector)
    return direction


if __name__ == "__main__":
    main()
