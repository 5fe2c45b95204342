"""The shipped policies at their thresholds, as the sources that they cite have them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.made_corpus import write_made_signal
from pipeline import select
from pipeline.corpus import Manifest, iter_samples, read_selection, write_columns
from pipeline.selecting.policy import load_policy, shipped_policies

GOOD: dict[str, dict[str, Any]] = {
    "caption": {
        "language": "en",
        "num_words": 9,
        "num_characters": 40,
        "is_file_name": False,
        "is_boilerplate": False,
    },
    "image": {"original_short_side": 300, "original_aspect": 1.5, "num_bytes": 20_000},
    "clip": {"clip_similarity": 0.35},
    "image_based": {"num_targets_in_cluster": 2},
    "neighbours": {"mismatch": 0.1, "neg_clip_loss": -0.1},
    "duplicates": {"duplicate_of": None, "in_heldout": False},
    "placeholder": {"num_urls": 1},
    "safety": {"nudity_exposed": 0.0},
}
"""A row that every policy keeps, by signal."""

Edge = tuple[str, str, Any, Any]
"""A rule, a column that it looks at, and values just inside and just outside."""

ENGLISH: Edge = ("caption not in English", "language", "en", "de")
TOP_30: Edge = ("not among the 30% that match best", "clip_similarity", 0.35, 0.349)
# DataComp (2023), section 3.3, and the baselines of its repository: more than 2 words, more than 5
# characters, a smaller side of at least 200 pixels, an aspect ratio of at most 3.
DATACOMP_CAPTION: list[Edge] = [
    ENGLISH,
    ("caption of at most 2 words or 5 characters", "num_words", 3, 2),
    ("caption of at most 2 words or 5 characters", "num_characters", 6, 5),
]
IMAGE_BASED: Edge = (
    "in no cluster that a target is nearest to",
    "num_targets_in_cluster",
    1,
    0,
)
EDGES: dict[str, list[Edge]] = {
    # LAION-5B (2022), section 3.1: at least 5 characters, 5 KB and a cosine of 0.28.
    "laion-2b-en": [
        ENGLISH,
        ("caption under 5 characters", "num_characters", 5, 4),
        ("picture under 5 KB", "num_bytes", 5000, 4999),
        ("caption does not fit the picture", "clip_similarity", 0.28, 0.2799),
    ],
    "datacomp-basic": [
        ENGLISH,
        ("caption of at most 2 words", "num_words", 3, 2),
        ("caption of at most 5 characters", "num_characters", 6, 5),
        ("short side under 200 pixels", "original_short_side", 200, 199),
        ("aspect ratio over 3", "original_aspect", 3.0, 3.01),
    ],
    "clip-top-30": [TOP_30],
    "image-based": [*DATACOMP_CAPTION, IMAGE_BASED],
    "image-based-and-clip": [*DATACOMP_CAPTION, IMAGE_BASED, TOP_30],
    # Ours, but for the caption's length: LAION-5B's 5 would cost cat, dog and owl.
    "recommended": [
        ("copy of another sample", "duplicate_of", None, "0" * 32),
        ("shown in a held-out set", "in_heldout", None, True),
        ("the same bytes under more than 10 URLs", "num_urls", 10, 11),
        ("the same bytes under more than 10 URLs", "num_urls", None, 12),
        ("nudity", "nudity_exposed", 0.499, 0.5),
        ("caption under 3 characters", "num_characters", 3, 2),
        ("caption is a file name or boilerplate", "is_file_name", False, True),
        ("caption is a file name or boilerplate", "is_boilerplate", False, True),
        ("short side under 64 pixels", "original_short_side", 64, 63),
        ("caption more likely wrong than right", "mismatch", 0.499, 0.5),
        ("caption fits its picture badly", "neg_clip_loss", -0.1, -0.2),
    ],
}


Rows = Sequence[dict[str, Any]]
Reasons = list[str | None]


@pytest.fixture
def reasons_of(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> Callable[[str, Rows], Reasons]:
    """reasons_of(policy, rows): why it drops each of these, which are GOOD but for what is given;
    None: it keeps it."""
    root = str(tmp_path / "corpus")

    def run(name: str, rows: Rows) -> Reasons:
        (shard,) = make_corpus(root, num_shards=1, num_samples=len(rows)).shards
        uids = [sample.uid for sample in iter_samples(root, shard)]
        policy = load_policy(name)
        for signal in {*(policy.signals or ()), *policy.optional_signals}:
            columns = {
                column: _as_scored([row.get(column, good) for row in rows])
                for column, good in GOOD[signal].items()
            }
            write_columns(root, signal, shard.name, pa.table({"uid": uids, **columns}))
            write_made_signal(root, signal)
        select.run(select.Config(root=root, name="edges", policy=name))
        found: Reasons = read_selection(root, "edges")["reason"].to_pylist()
        return found

    return run


def _as_scored(values: list[Any]) -> pa.Array:
    """Signals write single precision: 0.28 is then a little more than the policy's 0.28."""
    array = pa.array(values)
    return array.cast(pa.float32()) if pa.types.is_floating(array.type) else array


@pytest.mark.parametrize("name", shipped_policies())
def test_what_is_just_inside_is_kept_and_what_is_just_outside_goes_by_that_rule(
    name: str, reasons_of: Callable[[str, Rows], Reasons]
) -> None:
    edges = EDGES[name]
    assert {rule for rule, *_ in edges} == {rule.name for rule in load_policy(name).rules}
    rows = [{column: value} for _, column, *values in edges for value in values]
    good, *found = reasons_of(name, [{}, *rows])
    assert good is None
    told = list(zip(edges, found[::2], found[1::2], strict=True))
    assert told == [(edge, None, edge[0]) for edge in edges]


def test_the_best_30_percent_are_three_of_ten(
    reasons_of: Callable[[str, Rows], Reasons],
) -> None:
    scores = [0.21, 0.30, 0.12, 0.27, 0.19, 0.33, 0.24, 0.15, 0.31, 0.28]
    reasons = reasons_of("clip-top-30", [{"clip_similarity": score} for score in scores])
    kept = [score for score, reason in zip(scores, reasons, strict=True) if reason is None]
    assert kept == [0.30, 0.33, 0.31]
