"""Embeddings and indices without the samples that were taken down.

Reads   ROOT/embeddings/, ROOT/index/
Writes  the arrays and tables of embeddings that hold any such sample, and their records, staged;
        an index's segments from the first on that held any are indexed anew from what remains

No encoder runs: the rows of what remains are copied. A faiss index can't be trusted to forget (a
graph keeps the vectors that it no longer answers with), hence new segments. Those before the first
that held any keep their files: they are the most, where an index has grown. A running service
meanwhile goes on with the old ones, without the rows under the tombstones.
"""

import hashlib
from itertools import takewhile
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra import storage
from infra.errors import ConfigError
from infra.records import read_mapping, read_record
from infra.stamp import Stamp
from pipeline.corpus import PLACE_SCHEMA, SUCCESS, Shard, read_rows
from pipeline.takedown.takedown import Followed, Takedown, replaced
from retrieval.embedding.embeddings import (
    MODALITIES,
    EmbeddingsManifest,
    Part,
    array_bytes,
    array_name,
    index_url,
    metadata_bytes,
    metadata_name,
    read_array,
    read_metadata,
    read_parts,
)
from retrieval.indexing.manifest import SCHEMA_VERSION, IndexManifest, Segment

RECORDS = frozenset({"index.json", "stamp.json"})


def follow(takedown: Takedown) -> Followed:
    followed = Followed()
    for slug in storage.list_names(takedown.url("embeddings")):
        _follow_embeddings(takedown, f"embeddings/{slug}", followed)
    for slug in storage.list_names(takedown.url("index")):
        _follow_index(takedown, slug, followed)
    return followed


def rebuild(root: str, encoder: str, **settings: Any) -> str:
    """Index what index.json no longer names, as far as an earlier, killed try has not.

    Returns why not, in one line, where the promise that it was made with can't be kept any more:
    what had to go has gone, and that is not to wait for an index. Beside other segments a promise
    leaves less than for one index of all rows, so that is tried as well.
    """
    from retrieval import index

    folder = index_url(root, encoder)
    for name in _strays(folder):
        storage.remove(storage.join(folder, name))
    config = index.Config(root=root, encoder=encoder, **settings)
    for compact in (False, True):
        try:
            index.run(config.model_copy(update={"compact": compact}))
        except ConfigError as error:
            reason = str(error)
        else:
            return ""
    return f"{reason}; `carrara index {root} --encoder {encoder} --overwrite` takes another promise"


def _follow_embeddings(takedown: Takedown, folder: str, followed: Followed) -> None:
    url = takedown.url(folder)
    there = storage.list_files(url)
    if "stamp.json" not in there:
        followed.removed.append(folder)
        return
    parts = _current_parts(takedown, url)
    if not parts:  # of another state of the corpus: nobody's to use, and of who knows what
        followed.removed.append(folder)
        return
    # What a killed `embed` left, and parts of shards that are others by now.
    names = {name for part in parts.values() for name in (part.record_name, *part.files)}
    followed.removed += sorted(f"{folder}/{name}" for name in there - names if "/" in name)
    shards = zip(takedown.before.shards, takedown.after.shards, strict=True)
    after = {
        old.name: _follow_part(takedown, folder, parts[old.name], old, new)
        for old, new in shards
        if old.name in parts
    }
    corpora = {takedown.before.digest: takedown.after.digest}
    _stage_stamp(takedown, f"{folder}/stamp.json", corpora)
    if "manifest.json" not in there:
        return
    manifest = read_record(storage.join(url, "manifest.json"), EmbeddingsManifest)
    if not names >= manifest.files.keys():
        followed.removed.append(f"{folder}/manifest.json")
        return
    now = _manifest(manifest, [after[part.shard] for part in manifest.parts], corpora)
    followed.digests[manifest.digest] = now.digest
    takedown.stage(f"{folder}/manifest.json", now.model_dump_json(indent=2) + "\n")


def _current_parts(takedown: Takedown, url: str) -> dict[str, Part]:
    """The whole ones of shards as they are before this takedown."""
    shards = {shard.name: shard for shard in takedown.before.shards}
    return {
        name: part
        for name, part in read_parts(url).items()
        if name in shards and part.is_of(shards[name])
    }


def _follow_part(takedown: Takedown, folder: str, part: Part, before: Shard, after: Shard) -> Part:
    if before == after:
        return part
    changed = {"shard_digest": after.sha256, "rows_digest": after.rows_sha256}
    if before.sha256 != after.sha256:
        changed |= _stage_part(takedown, folder, part, after)
    part = part.model_copy(update=changed)
    takedown.stage(f"{folder}/{part.record_name}", part.model_dump_json(indent=2) + "\n")
    return part


def _stage_part(takedown: Takedown, folder: str, part: Part, shard: Shard) -> dict[str, Any]:
    """The part's arrays and table without what is forgotten; returns what its record says new."""
    url, number = takedown.url(folder), part.file_number
    metadata = read_metadata(url, part)
    forgotten = pa.array(sorted(takedown.forgotten), pa.string())
    kept = pc.invert(pc.is_in(metadata["uid"], value_set=forgotten))
    rows = kept.to_numpy(zero_copy_only=False)
    contents = {
        array_name(modality, number): array_bytes(read_array(url, part, modality)[rows])
        for modality in MODALITIES
    }
    contents[metadata_name(number)] = metadata_bytes(_moved(takedown, shard, metadata.filter(kept)))
    for name, data in contents.items():
        storage.publish_bytes(takedown.staged_url(f"{folder}/{name}"), data)
    return {
        "num_rows": int(rows.sum()),
        "num_undecodable": shard.num_samples - int(rows.sum()),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }


def _moved(takedown: Takedown, shard: Shard, metadata: pa.Table) -> pa.Table:
    """With the places that the pictures have in the shard as it is now."""
    names = PLACE_SCHEMA.names
    if not set(names) <= set(metadata.column_names):
        return metadata
    rows = read_rows(takedown.staged, shard, ["uid", "status", *names])
    rows = rows.filter(pc.equal(rows["status"], SUCCESS))
    order = pc.index_in(metadata["uid"], value_set=rows["uid"].combine_chunks())
    for name in names:
        column = metadata.schema.get_field_index(name)
        metadata = metadata.set_column(column, metadata.field(column), rows[name].take(order))
    return metadata


def _manifest(
    before: EmbeddingsManifest, parts: list[Part], corpora: dict[str, str]
) -> EmbeddingsManifest:
    counts = {"embedded": sum(part.num_rows for part in parts)}
    if num_undecodable := sum(part.num_undecodable for part in parts):
        counts["undecodable picture"] = num_undecodable
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
    embeddings_url = takedown.staged_url(f"embeddings/{slug}/manifest.json")
    if not (storage.exists(url) and storage.exists(embeddings_url)) or not _is_known(url):
        followed.removed.append(folder)  # of a killed `index`, of embeddings that are no more
        return
    index = read_record(url, IndexManifest)
    embeddings = read_record(embeddings_url, EmbeddingsManifest)
    can_be_indexed = embeddings.corpus_digest == takedown.after.digest and embeddings.num_rows
    files = {part.shard: part.files for part in embeddings.parts}

    def is_kept(segment: Segment) -> bool:
        return all(files.get(part.shard) == part.files for part in segment.parts)

    kept = list(takewhile(is_kept, index.segments))
    if len(kept) == len(index.segments):
        followed.removed += [f"{folder}/{name}" for name in _strays(takedown.url(folder))]
        corpora = {takedown.before.digest: takedown.after.digest}
        changed = {
            "corpus_digest": replaced(index.corpus_digest, corpora),
            "embeddings_digest": replaced(index.embeddings_digest, followed.digests),
        }
    else:
        if not (kept and can_be_indexed):
            followed.removed.append(folder)
            kept = []
        if can_be_indexed:
            stamp = read_record(takedown.url(f"{folder}/stamp.json"), Stamp)
            followed.rebuilds.append(stamp.config)
        # Of the corpus as it was: nobody takes it for whole until the rest is indexed.
        changed = {
            "num_rows": sum(segment.num_rows for segment in kept),
            "segments": kept,
            "files": {name: digest for one in kept for name, digest in one.files.items()},
        }
    if kept:
        text = index.model_copy(update=changed).model_dump_json(indent=2)
        takedown.stage(f"{folder}/index.json", text + "\n")


def _is_known(url: str) -> bool:
    """Of a version that this program can follow."""
    return read_mapping(url).get("schema_version") == SCHEMA_VERSION


def _strays(folder: str) -> set[str]:
    """What killed commands left in an index's folder, and what index.json no longer names."""
    url = storage.join(folder, "index.json")
    named = read_record(url, IndexManifest).files.keys() if storage.exists(url) else set()
    return storage.list_files(folder) - named - RECORDS


def _stage_stamp(takedown: Takedown, path: str, corpora: dict[str, str]) -> None:
    stamp = read_record(takedown.url(path), Stamp)
    changed = {"input_digest": replaced(stamp.input_digest, corpora)}
    text = stamp.model_copy(update=changed).model_dump_json(indent=2)
    takedown.stage(path, text + "\n")
