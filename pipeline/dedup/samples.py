"""The corpus's samples as dedup needs them: fingerprints, and which of several copies would stay.

Reads   ROOT/shards/*.parquet, ROOT/columns/hashes/, and ROOT/columns/clip/ where it has been scored

Beside their fingerprints n samples take 33 bytes each, whatever else their shards' parquets hold.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra import storage
from infra.errors import DamagedError
from infra.progress import track
from infra.records import read_record
from pipeline.corpus import SUCCESS, ColumnsManifest, Manifest, Shard, read_rows
from pipeline.dedup.grouping import Rows
from pipeline.dedup.pictures import Digests, Pictures, digests
from pipeline.takedown.tombstones import Tombstones

ENOUGH_WORDS = 20
"""A longer caption counts as no better: what alternative texts add is mostly lists of keywords."""


@dataclass(frozen=True)
class Samples:
    """n samples, shards in order."""

    shards: dict[str, slice]
    """Which rows are a shard's."""
    uids: Digests
    pictures: Pictures
    ranks: Rows
    """[n]: of two copies the one of lower rank stays."""
    is_taken_down: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ranks)


def signal_manifest(root: str, signal: str, manifest: Manifest) -> ColumnsManifest | None:
    """Of a signal that has been scored on this state of the corpus."""
    url = storage.join(root, "columns", signal, "manifest.json")
    found = read_record(url, ColumnsManifest) if storage.exists(url) else None
    return found if found and found.corpus_digest == manifest.digest else None


def read_samples(
    root: str, manifest: Manifest, tombstones: Tombstones, *, by_clip: bool
) -> Samples:
    """Raises DamagedError where columns list other samples than their shard does.

    The better-captioned stays: by the similarity of caption and picture if `by_clip`, else by the
    number of words; then the larger as fetched; then the lower uid.
    """
    starts, uids, pictures, captioned, areas, taken = [0], [], [], [], [], []
    with track("dedup: read", manifest.num_samples, "samples") as bar:
        for shard in manifest.shards:
            table = _read_shard(root, shard, by_clip=by_clip)
            starts.append(starts[-1] + table.num_rows)
            uids.append(digests(table["uid"]))
            pictures.append(Pictures.of_table(table))
            captioned.append(_clip(table) if by_clip else _num_words(table["caption"]))
            areas.append(_area(table))
            taken.append(_taken_down(table, pictures[-1], tombstones))
            bar.advance(shard.num_samples)
    return Samples(
        shards={
            shard.name: slice(start, end)
            for shard, start, end in zip(manifest.shards, starts[:-1], starts[1:], strict=True)
        },
        uids=np.concatenate(uids),
        pictures=Pictures.concatenated(pictures),
        ranks=_ranks(np.concatenate(captioned), np.concatenate(areas), np.concatenate(uids)),
        is_taken_down=np.concatenate(taken),
    )


def _read_shard(root: str, shard: Shard, *, by_clip: bool) -> pa.Table:
    table = read_rows(root, shard)
    table = table.filter(pc.equal(table["status"], SUCCESS)).select(
        ["uid", "url", "caption", "sha256", "original_width", "original_height"]
    )
    for signal in ("hashes", "clip") if by_clip else ("hashes",):
        url = storage.join(root, "columns", signal, f"{shard.name}.parquet")
        columns = storage.read_table(url)
        if not columns["uid"].equals(table["uid"]):
            raise DamagedError(
                f"{url}: lists other samples than its shard; `carrara verify {root}` tells which "
                "of the two is damaged"
            )
        for name in columns.column_names[1:]:
            table = table.append_column(name, columns[name])
    return table


def _clip(table: pa.Table) -> NDArray[np.float32]:
    """What could not be scored comes last."""
    scores: NDArray[np.float32] = pc.fill_null(table["clip_similarity"], -1.0).to_numpy()
    return scores


def _num_words(captions: pa.ChunkedArray) -> NDArray[np.float32]:
    words = pc.split_pattern_regex(pc.utf8_trim_whitespace(pc.fill_null(captions, "")), r"\s+")
    num_words = pc.min_element_wise(pc.list_value_length(words), ENOUGH_WORDS)
    counts: NDArray[np.float32] = num_words.to_numpy().astype(np.float32)
    return counts


def _area(table: pa.Table) -> NDArray[np.int64]:
    sides = (pc.fill_null(table[name], 0) for name in ("original_width", "original_height"))
    width, height = (pc.cast(side, pa.int64()) for side in sides)
    area: NDArray[np.int64] = pc.multiply(width, height).to_numpy()
    return area


def _taken_down(table: pa.Table, pictures: Pictures, tombstones: Tombstones) -> NDArray[np.bool_]:
    if not len(tombstones):
        return np.zeros(table.num_rows, bool)
    rows = table.select(["uid", "url", "sha256"]).to_pylist()
    hashes = pictures.upright if tombstones.has_pictures else None
    return np.array(
        [
            tombstones.reason(**row) is not None
            or (hashes is not None and tombstones.of_picture(hashes[i].tobytes()) is not None)
            for i, row in enumerate(rows)
        ],
        bool,
    )


def _ranks(captioned: NDArray[np.float32], areas: NDArray[np.int64], uids: Digests) -> Rows:
    order = np.lexsort((uids[:, 1], uids[:, 0], -areas, -captioned))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks
