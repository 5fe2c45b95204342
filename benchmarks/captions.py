"""Which score notices wrong captions: each against plain cosine, on real pairs spoilt on purpose.

    python -m benchmarks.captions WORK
    python -m benchmarks.captions WORK --num-seeds 2 --corpora unseen --rates 0.2

Emoji and clip art (benchmarks/drawn.py) by the encoder that ships. Captions are spoilt at three
rates in four ways: swapped at random, replaced by the nearest picture's, cut in half, replaced by
the emoji's name in another language. Three corpora: `all` 7,171 pairs, nine tenths of which the
encoder was trained on; `emoji` 1,911 of them, as in the demo; `unseen` the 695 that it was not.

Prints, by corpus: AUROC and average precision of each score with 95% intervals over the seeds, a
verdict, what the rules of a policy would drop, and what the scores cost. Twelve minutes on two
cores, after two for the embeddings; they are kept in WORK.
"""

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.corruption import (
    KINDS,
    Pairs,
    auroc,
    average_precision,
    corrupt,
    read_pairs,
)
from benchmarks.exact_index import ExactIndex
from retrieval.captions.mix import fit
from retrieval.captions.neighbourhood import Side, blocks, look_around
from retrieval.captions.scores import TEMPERATURE, PairScores, score_pairs
from retrieval.signals.neighbours import K_MAX

CORPORA = ("all", "emoji", "unseen")
NUM_EXAMPLES = 100
"""Pictures that NormSim is asked for."""
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 2 to 10 seeds."""
POLICY_RATES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4)

Figures = dict[tuple[str, str, float], list[float]]
"""By score, kind of corruption and rate: one a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.2, 0.4])
    parser.add_argument("--num-seeds", type=int, choices=range(2, 11), default=5)
    arguments = parser.parse_args()
    everything = read_pairs(arguments.work)
    for name in arguments.corpora:
        pairs = everything.take(_members(everything, name))
        print(f"\n# {name}: {len(pairs):,} pairs, {pairs.is_seen.mean():.0%} seen in training")
        compare(pairs, arguments.rates, arguments.num_seeds)
        show_policy(pairs, arguments.num_seeds)
    show_costs(everything)


def _members(pairs: Pairs, corpus: str) -> np.ndarray:
    wanted = {"all": np.ones(len(pairs), bool), "emoji": pairs.is_emoji, "unseen": ~pairs.is_seen}
    return wanted[corpus]


# Scores


def compare(pairs: Pairs, rates: list[float], num_seeds: int) -> None:
    areas, precisions = defaultdict(list), defaultdict(list)
    for seed in range(num_seeds):
        for kind in KINDS:
            for rate in rates:
                texts, is_wrong = corrupt(pairs, kind, rate, seed)
                for score, fits in score_all(pairs.images, texts).items():
                    areas[score, kind, rate].append(auroc(fits, is_wrong))
                    precisions[score, kind, rate].append(average_precision(fits, is_wrong))
    show("AUROC", areas, rates)
    show("average precision", precisions, rates)
    give_verdict(areas, rates)


def score_all(images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
    """Each score [n], turned so that higher fits better."""
    index, rows = ExactIndex(images, texts), np.arange(len(images))
    found = score_corpus(index, images, texts)
    examples = images[np.random.default_rng(2).permutation(len(images))[:NUM_EXAMPLES]]
    return {
        "cosine": found.similarity,
        "rank of the picture": -found.rank_image.astype(float),
        "rank both ways": -np.log1p(found.rank_image) - np.log1p(found.rank_text),
        "s-CLIPLoss": found.clip_loss,
        "LEMoN": -found.lemon,
        "learned mix": fit(index, rows, K_MAX, TEMPERATURE).score(found),
        "NormSim (no caption)": (images @ examples.T).max(axis=1),
    }


def score_corpus(index: ExactIndex, images: np.ndarray, texts: np.ndarray) -> PairScores:
    found = []
    for block in blocks(len(images)):
        rows = np.arange(len(images))[block]
        pictures, captions = sides(index, images[block], texts[block], rows)
        found.append(score_pairs(pictures, captions, K_MAX, TEMPERATURE))
    return PairScores.joined(found)


def sides(
    index: ExactIndex, images: np.ndarray, texts: np.ndarray, rows: np.ndarray
) -> tuple[Side, Side]:
    return (
        look_around(index, images, rows, "image", K_MAX),
        look_around(index, texts, rows, "text", K_MAX),
    )


def show(title: str, figures: Figures, rates: list[float]) -> None:
    """By kind over all rates, and by rate over all kinds."""
    print(f"\n{title:22}" + "".join(f"{kind:>17}" for kind in KINDS) + f"{'mean':>17}")
    for score in _scores(figures):
        by_kind = [_over_seeds(figures, score, [kind], rates) for kind in KINDS]
        columns = [*by_kind, _over_seeds(figures, score, list(KINDS), rates)]
        print(f"{score:22}" + "".join(f"{_interval(column):>17}" for column in columns))
    print(f"{'':22}" + "".join(f"{f'{rate:.0%} wrong':>17}" for rate in rates))
    for score in _scores(figures):
        columns = [_over_seeds(figures, score, list(KINDS), [rate]) for rate in rates]
        print(f"{score:22}" + "".join(f"{_interval(column):>17}" for column in columns))


def give_verdict(figures: Figures, rates: list[float]) -> None:
    means = {score: _over_seeds(figures, score, list(KINDS), rates) for score in _scores(figures)}
    best = max(means, key=lambda score: means[score].mean())
    print(f"\nbest on average: {best}; against cosine, same seeds:")
    for score, values in means.items():
        difference = values - means["cosine"]
        low, high = difference.mean() - _half(difference), difference.mean() + _half(difference)
        word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        if score != "cosine":
            print(f"  {score:22}{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]  {word}")


def _scores(figures: Figures) -> list[str]:
    return list(dict.fromkeys(score for score, _, _ in figures))


def _over_seeds(figures: Figures, score: str, kinds: list[str], rates: list[float]) -> np.ndarray:
    """One mean a seed."""
    found: np.ndarray = np.mean(
        [figures[score, kind, rate] for kind in kinds for rate in rates], axis=0
    )
    return found


def _interval(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {_half(values):.3f}"


def _half(values: np.ndarray) -> float:
    return float(T_95[len(values) - 2] * values.std(ddof=1) / len(values) ** 0.5)


# Policy


def show_policy(pairs: Pairs, num_seeds: int) -> None:
    """What rules drop: of the wrong pairs, of the sound ones, and of the sound ones unseen."""
    cases = [("random swap", rate) for rate in POLICY_RATES]
    cases += [(kind, 0.2) for kind in list(KINDS)[1:]]
    shares: dict[str, dict[str, list[list[float]]]] = {}
    for kind, rate in cases:
        case = f"{kind} {rate:.0%}"
        for seed in range(num_seeds):
            texts, is_wrong = corrupt(pairs, kind, rate, seed)
            for name, keep in rules(pairs.images, texts).items():
                groups = (is_wrong, ~is_wrong, ~is_wrong & ~pairs.is_seen)
                found = shares.setdefault(name, {}).setdefault(case, [])
                found.append([(~keep)[group].mean() if group.any() else 0.0 for group in groups])
    print("\ndropped, in percent: wrong / sound / sound and unseen")
    print(f"{'':22}" + "".join(f"{name:>24}" for name in shares))
    for case in next(iter(shares.values())):
        cells = [
            " / ".join(f"{100 * share:.1f}" for share in np.mean(found[case], axis=0))
            for found in shares.values()
        ]
        print(f"{case:22}" + "".join(f"{cell:>24}" for cell in cells))


def rules(images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs each rule keeps [n]."""
    index, num = ExactIndex(images, texts), len(images)
    found = score_corpus(index, images, texts)
    mismatch = fit(index, np.arange(num), K_MAX, TEMPERATURE).mismatch(found)
    return {
        "mismatch < 0.5": mismatch < 0.5,
        "rank < 5% of all": found.rank_image < min(0.05 * num, K_MAX),
        "lowest tenth, s-CLIP": found.clip_loss >= np.quantile(found.clip_loss, 0.1),
    }


# Costs


def show_costs(pairs: Pairs) -> None:
    """Seconds for 1,000 samples, over an exact index of all pairs; searches are most of it."""
    images, texts = pairs.images, pairs.texts
    index, rows = ExactIndex(images, texts), np.arange(1000)
    print(
        f"\nseconds for 1,000 samples, of {len(pairs):,} x {images.shape[1]}, exact index, "
        f"{os.cpu_count()} cores"
    )
    seconds = {
        "cosine": _timed(lambda: np.einsum("nd,nd->n", images[:1000], texts[:1000])),
        "searches among the other kind (ranks, s-CLIPLoss)": _timed(
            lambda: [index.neighbours(one[:1000], K_MAX + 51, "text") for one in (images, texts)]
        ),
        "searches among their own kind (LEMoN, copies)": _timed(
            lambda: [index.neighbours(one[:1000], 51, "image") for one in (images, texts)]
        ),
    }
    around = sides(index, images[:1000], texts[:1000], rows)
    seconds["all formulas"] = _timed(lambda: score_pairs(*around, K_MAX, TEMPERATURE))
    seconds["NormSim, 100 examples"] = _timed(lambda: (images[:1000] @ images[:100].T).max(axis=1))
    for name, value in seconds.items():
        print(f"  {name:52}{value:8.4f}")
    learning = _timed(lambda: fit(index, np.arange(len(pairs)), K_MAX, TEMPERATURE))
    print(f"  {'learning the mix, once a corpus (4,096 pairs)':52}{learning:8.1f} in all")


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
