"""How often, and when, a run has met a sample: computed, for the order of samples is a function.

Reads   RUN/run.json, RUN/checkpoints/*/checkpoint.json, and the corpus that the run was given: its
        manifest, parquets and selection; its receipts, where samples were taken down since

Imports no torch: `carrara why` answers at once.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import ConflictError
from infra.records import read_mapping
from pipeline.corpus import SUCCESS, Manifest, Shard, read_manifest, read_rows, read_selection
from pipeline.takedown.receipts import ROWS_SCHEMA, read_receipts, receipt_url
from training.order import SampleOrder
from training.record import RunRecord, read_record


@dataclass(frozen=True)
class Appearances:
    """Of one sample, in the batches up to the newest checkpoint; mirrored ones count alike."""

    num_steps: int
    num_epochs: float
    num_times: int
    first_step: int | None
    last_step: int | None


def appearances(run: str, uid: str) -> Appearances:
    """Raises ConflictError where the corpus is no longer the one that the run was trained on."""
    record = read_record(run)
    num_steps = _newest_step(run)
    batch_size = record.config.batch_size
    source = _Source.of(record)
    order = SampleOrder(source.counts(), record.config.seed, record.config.shuffle_shards)
    num_seen = num_steps * batch_size
    epochs = num_seen / max(order.num_samples, 1)
    place = source.place(uid)
    if place is None:
        return Appearances(num_steps, epochs, 0, None, None)
    num_whole, rest = divmod(num_seen, order.num_samples)
    is_in_last = order.index_in(num_whole, *place) < rest
    num_times = num_whole + is_in_last

    def step_of(epoch: int) -> int:
        return (epoch * order.num_samples + order.index_in(epoch, *place)) // batch_size

    return Appearances(
        num_steps=num_steps,
        num_epochs=epochs,
        num_times=num_times,
        first_step=step_of(0) if num_times else None,
        last_step=step_of(num_times - 1) if num_times else None,
    )


@dataclass(frozen=True)
class _Source:
    """The corpus as the run saw it."""

    root: str
    manifest: Manifest
    restored: pa.Table
    """shard, key, uid, kept_by of samples that were taken down since."""
    kept: frozenset[str] | None
    """uids that the run's selection kept; None: it had none."""

    @classmethod
    def of(cls, record: RunRecord) -> "_Source":
        root = record.config.root
        manifest = read_manifest(root)
        restored = _taken_down_since(root, manifest, record.corpus_digest)
        kept = None
        if (name := record.config.selection) is not None:
            table = read_selection(root, name)
            kept = frozenset(table.filter(table["keep"])["uid"].to_pylist())
            rows = restored.to_pylist()
            kept |= {row["uid"] for row in rows if name in row["kept_by"]}
        return cls(root, manifest, restored, kept)

    def counts(self) -> np.ndarray:
        """[num_shards]"""
        if self.kept is None:
            restored = self.restored["shard"].to_pylist()
            counts = [s.num_samples + restored.count(s.name) for s in self.manifest.shards]
        else:
            counts = [len(self.uids(shard)) for shard in self.manifest.shards]
        return np.array(counts, np.int64)

    def uids(self, shard: Shard) -> list[str]:
        """Of a shard's samples that the run was given, in their order."""
        rows = read_rows(self.root, shard, ["key", "uid", "status"])
        theirs = self.restored.filter(pc.equal(self.restored["shard"], shard.name))
        restored = pc.is_in(rows["key"], value_set=theirs["key"].combine_chunks())
        rows = rows.filter(pc.or_(pc.equal(rows["status"], SUCCESS), restored))
        uids: list[str] = rows["uid"].to_pylist()
        return uids if self.kept is None else [uid for uid in uids if uid in self.kept]

    def place(self, uid: str) -> tuple[int, int] | None:
        for number, shard in enumerate(self.manifest.shards):
            uids = self.uids(shard)
            if uid in uids:
                return number, uids.index(uid)
        return None


def _newest_step(run: str) -> int:
    """0 where no checkpoint was written to its end."""
    folder = storage.join(run, "checkpoints")
    urls = [storage.join(folder, name, "checkpoint.json") for name in storage.list_names(folder)]
    return max((int(read_mapping(url)["step"]) for url in urls if storage.exists(url)), default=0)


def _taken_down_since(root: str, manifest: Manifest, digest: str) -> pa.Table:
    """Samples that were there when the corpus had that digest."""
    tables = [pa.table({name: [] for name in ROWS_SCHEMA.names}, ROWS_SCHEMA)]
    now = manifest.digest
    for receipt in reversed(read_receipts(root)):
        if now != digest and receipt.corpus_digest.after == now and receipt.found:
            now = receipt.corpus_digest.before or ""
            table = storage.read_table(receipt_url(root, receipt.name, ".rows.parquet"))
            tables.append(table.filter(pc.equal(table["status"], SUCCESS)))
    if now != digest:
        raise ConflictError(
            f"{root}: the run was on another state of the corpus (digest {digest}, now "
            f"{manifest.digest}); what it met can't be told from this one"
        )
    return pa.concat_tables(tables)
