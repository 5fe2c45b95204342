"""Pictures that are no longer what the list says they were: kept apart, for people to look at.

Writes  ROOT/quarantine/shards/00000.tar .parquet _stats.json

The rows are the corpus's own, with the expected hash and, where the list has PDQ hashes
(`--verify-picture-hash`), in how many of 256 bits the picture differs from the expected one: up to
31 it is the same picture stored anew, about 128 it is another. A picture that could not be decoded
has a row and no picture. Expired domains are bought to poison datasets (Carlini et al. 2023,
"Poisoning Web-Scale Training Datasets is Practical"): what is here does not go into the corpus.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.corpus import SUCCESS, write_shard
from pipeline.downloading.shard_rows import RowOutcome
from pipeline.downloading.spool import Place, Spool
from pipeline.picture_hash import distance, from_hex
from pipeline.sample import Sample

HASH_MISMATCH = "hash mismatch"


def write_quarantine(
    root: str,
    name: str,
    table: pa.Table,
    rows: pa.Table,
    outcomes: Sequence[RowOutcome],
    spool: Spool,
    extension: str,
) -> None:
    """Nothing where nothing was quarantined. `table` is the list's slice, `rows` the shard's."""
    places = [place for place, outcome in enumerate(outcomes) if outcome.quarantined]
    if not places:
        return
    expected = [_texts(table, name, places) for name in ("expected_hash", "expected_picture_hash")]
    kept = []
    for row, place, *hashes in zip(
        rows.take(pa.array(places, pa.int64())).to_pylist(), places, *expected, strict=True
    ):
        outcome = outcomes[place].quarantined
        assert outcome is not None
        kept.append((_row(row, outcome, *hashes), outcome.spooled))
    schema = pa.schema(
        [*rows.schema, ("expected_hash", pa.string()), ("picture_distance", pa.int32())]
    )
    num_pictures = sum(spooled is not None for _, spooled in kept)
    write_shard(
        root,
        name,
        _samples(kept, spool, extension),
        pa.Table.from_pylist([row for row, _ in kept], schema),
        {"count": len(kept), "successes": num_pictures},
    )


def _texts(table: pa.Table, name: str, places: list[int]) -> list[str | None]:
    if name not in table.column_names:
        return [None] * len(places)
    texts: list[str | None] = table[name].take(pa.array(places, pa.int64())).to_pylist()
    return texts


def _row(
    row: dict[str, Any],
    outcome: RowOutcome,
    expected_hash: str | None,
    expected_picture_hash: str | None,
) -> dict[str, Any]:
    names = ("width", "height", "original_width", "original_height", "exif")
    return row | {
        **{name: getattr(outcome, name) for name in names},
        "status": outcome.status,
        "error_message": outcome.error_message if outcome.status != SUCCESS else HASH_MISMATCH,
        "expected_hash": expected_hash,
        "picture_distance": _distance(outcome.picture_hash, expected_picture_hash),
    }


def _distance(found: str | None, expected: str | None) -> int | None:
    """None where either is missing or the list's is no PDQ hash."""
    if found is None or expected is None:
        return None
    try:
        return distance(from_hex(found), from_hex(expected.strip()))
    except ValueError:
        return None


def _samples(
    kept: list[tuple[dict[str, Any], Place | None]], spool: Spool, extension: str
) -> Iterator[Sample]:
    for row, spooled in kept:
        if spooled is not None:
            image = spool.read(spooled)
            yield Sample(row["key"], row["uid"], row["caption"], image, extension, row)
