"""Embeddings and indices without the samples that were taken down.

Reads   ROOT/embeddings/, ROOT/index/
Writes  the arrays and tables of embeddings that hold any such sample, and their records, staged;
        an index that held any is removed and then built anew from what remains

No encoder runs: the rows of what remains are copied. A faiss index can't be trusted to forget (a
graph keeps the vectors that it no longer answers with), hence the new one.
"""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra import storage
from infra.records import read_record
from infra.stamp import Stamp
from pipeline.corpus import SUCCESS, Shard, read_rows
from pipeline.takedown.takedown import Followed, Takedown, replaced
from retrieval.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Part,
    array_name,
    file_number,
    metadata_name,
    number_width,
    part_name,
    read_array,
    read_metadata,
)
from retrieval.indexing.manifest import IndexManifest

PLACES = ("image_offset", "image_size")


def follow(takedown: Takedown) -> Followed:
    followed = Followed()
    for slug in storage.list_names(takedown.url("embeddings")):
        _follow_embeddings(takedown, f"embeddings/{slug}", followed)
    for slug in storage.list_names(takedown.url("index")):
        _follow_index(takedown, slug, followed)
    return followed


def rebuild(root: str, **settings: Any) -> None:
    """Build an index anew, as far as an earlier, killed try has not."""
    from retrieval import index

    index.run(index.Config(root=root, overwrite=True, **settings))


def _follow_embeddings(takedown: Takedown, folder: str, followed: Followed) -> None:
    there = storage.list_files(takedown.url(folder))
    if not _is_current(takedown, folder, there):
        followed.removed.append(folder)
        return
    width = number_width(takedown.before)
    changed: dict[str, Part] = {}
    tars = {shard.name: shard.sha256 for shard in takedown.before.shards}
    for shard in takedown.after.shards:
        if shard.sha256 != tars[shard.name]:
            part = _follow_part(takedown, folder, shard, width, there, followed)
            if part is not None:
                changed[shard.name] = part
    corpora = {takedown.before.digest: takedown.after.digest}
    _stage_stamp(takedown, f"{folder}/stamp.json", corpora)
    if "manifest.json" not in there:
        return
    before = read_record(takedown.url(f"{folder}/manifest.json"), EmbeddingsManifest)
    after = _manifest(takedown, before, changed)
    followed.digests[before.digest] = after.digest
    takedown.stage(f"{folder}/manifest.json", after.model_dump_json(indent=2) + "\n")


def _is_current(takedown: Takedown, folder: str, there: set[str]) -> bool:
    """Embeddings of another state of the corpus are nobody's to use, and hold who knows what."""
    if "stamp.json" not in there:
        return False
    stamp = read_record(takedown.url(f"{folder}/stamp.json"), Stamp)
    return stamp.input_digest == takedown.before.digest


def _follow_part(
    takedown: Takedown, folder: str, shard: Shard, width: int, there: set[str], followed: Followed
) -> Part | None:
    number = file_number(shard.name, width)
    record = part_name(shard.name, width)
    names = [*(array_name(modality, number) for modality in MODALITIES), metadata_name(number)]
    if record not in there:  # what a killed `embed` left; it makes the part anew
        followed.removed += [f"{folder}/{name}" for name in names if name in there]
        return None
    url = takedown.url(folder)
    part = read_record(storage.join(url, record), Part)
    metadata = read_metadata(url, part)
    forgotten = pa.array(sorted(takedown.forgotten), pa.string())
    kept = pc.invert(pc.is_in(metadata["uid"], value_set=forgotten))
    rows = kept.to_numpy(zero_copy_only=False)
    contents = {
        array_name(modality, number): _npy(read_array(url, part, modality)[rows])
        for modality in MODALITIES
    }
    contents[metadata_name(number)] = _parquet(_moved(takedown, shard, metadata.filter(kept)))
    for name, data in contents.items():
        storage.publish_bytes(takedown.staged_url(f"{folder}/{name}"), data)
    part = part.model_copy(
        update={
            "num_rows": int(rows.sum()),
            "num_undecodable": shard.num_samples - int(rows.sum()),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        }
    )
    takedown.stage(f"{folder}/{record}", part.model_dump_json(indent=2) + "\n")
    return part


def _moved(takedown: Takedown, shard: Shard, metadata: pa.Table) -> pa.Table:
    """With the places that the pictures have in the shard as it is now."""
    if not set(PLACES) <= set(metadata.column_names):
        return metadata
    rows = read_rows(takedown.staged, shard, ["uid", "status", *PLACES])
    rows = rows.filter(pc.equal(rows["status"], SUCCESS))
    order = pc.index_in(metadata["uid"], value_set=rows["uid"].combine_chunks())
    for name in PLACES:
        column = metadata.schema.get_field_index(name)
        metadata = metadata.set_column(column, metadata.field(column), rows[name].take(order))
    return metadata


def _manifest(
    takedown: Takedown, before: EmbeddingsManifest, changed: dict[str, Part]
) -> EmbeddingsManifest:
    parts = [changed.get(part.shard, part) for part in before.parts]
    counts = {"embedded": sum(part.num_rows for part in parts)}
    if num_undecodable := sum(part.num_undecodable for part in parts):
        counts["undecodable picture"] = num_undecodable
    corpora = {takedown.before.digest: takedown.after.digest}
    after: dict[str, Any] = dict(before) | {
        "corpus_digest": replaced(before.corpus_digest, corpora),
        "counts": counts,
        "parts": parts,
        "files": {name: digest for part in parts for name, digest in part.files.items()},
    }
    # Not a copy: that would bring the old digest along, once it has been asked for.
    return EmbeddingsManifest(**after)


def _follow_index(takedown: Takedown, slug: str, followed: Followed) -> None:
    folder = f"index/{slug}"
    url = takedown.url(f"{folder}/index.json")
    if not storage.exists(url):  # of a killed `index`, which begins again
        followed.removed.append(folder)
        return
    index = read_record(url, IndexManifest)
    if followed.digests.get(index.embeddings_digest) == index.embeddings_digest:
        corpora = {takedown.before.digest: takedown.after.digest}
        text = index.model_copy(
            update={"corpus_digest": replaced(index.corpus_digest, corpora)}
        ).model_dump_json(indent=2)
        takedown.stage(f"{folder}/index.json", text + "\n")
        return
    followed.removed.append(folder)
    if index.embeddings_digest not in followed.digests:  # of embeddings that are no more
        return
    embeddings = takedown.staged_url(f"embeddings/{slug}/manifest.json")
    if read_record(embeddings, EmbeddingsManifest).num_rows:
        stamp = read_record(takedown.url(f"{folder}/stamp.json"), Stamp)
        followed.rebuilds.append(stamp.config)


def _stage_stamp(takedown: Takedown, path: str, corpora: dict[str, str]) -> None:
    stamp = read_record(takedown.url(path), Stamp)
    changed = {"input_digest": replaced(stamp.input_digest, corpora)}
    text = stamp.model_copy(update=changed).model_dump_json(indent=2)
    takedown.stage(path, text + "\n")


def _npy(rows: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
