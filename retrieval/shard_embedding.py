"""What one worker does to embed a shard: read and decode in threads, encode, publish.

Reads   ROOT/shards/<shard>.tar .parquet
Writes  the shard's arrays and metadata, and its part's record last (retrieval/embeddings.py)
"""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import SUCCESS, Sample, Shard, iter_samples, read_rows, shard_url
from retrieval.embeddings import (
    Part,
    array_name,
    embeddings_url,
    file_number,
    metadata_name,
    part_name,
)
from retrieval.encoder import Encoder
from retrieval.pictures import decode_picture

BATCHES_AHEAD = 2
"""Decoded while one is encoded: enough that the encoder never waits, little enough for memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def limit_threads(num_threads: int) -> None:
    """Give torch this worker's share of the machine: sums, too, come out the same everywhere."""
    torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class _Decoded:
    key: str
    caption: str
    pixels: torch.Tensor | None
    """[3, H, W]; None where the picture can't be decoded."""


class ShardEmbedder:
    """Embeds shard after shard with one encoder; see `retrieval.embed` for the settings."""

    def __init__(
        self, encoder: Encoder, root: str, width: int, batch_size: int, num_threads: int
    ) -> None:
        self._encoder = encoder
        self._root = root
        self._folder = embeddings_url(root, encoder.name)
        self._width = width
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def __call__(self, shard: Shard) -> Part:
        keys: list[str] = []
        is_decoded: list[bool] = []
        image_rows, text_rows = [], []
        samples = iter_samples(self._root, shard)
        ahead = BATCHES_AHEAD * self._batch_size
        decoded = _map_ahead(self._decode, samples, self._pool, ahead)
        for batch in _batches(decoded, self._batch_size):
            keys += [item.key for item in batch]
            is_decoded += [item.pixels is not None for item in batch]
            good = [(item.pixels, item.caption) for item in batch if item.pixels is not None]
            if good:
                pixels, captions = zip(*good, strict=True)
                image_rows.append(self._encoder.encode_pixels(torch.stack(pixels)))
                text_rows.append(self._encoder.encode_texts(captions))
        metadata = self._metadata(shard, keys, is_decoded)
        return self._publish(shard, image_rows, text_rows, metadata, is_decoded)

    def _decode(self, sample: Sample) -> _Decoded:
        try:
            pixels = self._encoder.preprocess(decode_picture(sample.image))
        except InputError:
            return _Decoded(sample.key, sample.caption, None)
        return _Decoded(sample.key, sample.caption, pixels)

    def _metadata(self, shard: Shard, keys: list[str], is_decoded: list[bool]) -> pa.Table:
        """img2dataset's fields of the embedded samples, `key` under clip-retrieval's name."""
        rows = read_rows(self._root, shard)
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        if rows["key"].to_pylist() != keys:
            raise DamagedError(
                f"shard {shard_url(self._root, shard.name)}: its parquet lists other samples than "
                f"its tar holds; `carrara verify {self._root}` tells which file is damaged"
            )
        rows = rows.filter(pa.array(is_decoded, pa.bool_()))
        rows = rows.drop_columns(["status", "error_message"])
        return rows.rename_columns(
            ["image_path" if name == "key" else name for name in rows.column_names]
        )

    def _publish(
        self,
        shard: Shard,
        image_rows: list[np.ndarray],
        text_rows: list[np.ndarray],
        metadata: pa.Table,
        is_decoded: list[bool],
    ) -> Part:
        number = file_number(shard.name, self._width)
        contents = {
            array_name("image", number): _npy(image_rows, self._encoder.dim),
            array_name("text", number): _npy(text_rows, self._encoder.dim),
            metadata_name(number): _parquet(metadata),
        }
        for name, data in contents.items():
            storage.publish_bytes(storage.join(self._folder, name), data)
        part = Part(
            shard=shard.name,
            file_number=number,
            num_rows=sum(is_decoded),
            num_undecodable=len(is_decoded) - sum(is_decoded),
            dim=self._encoder.dim,
            files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        )
        url = storage.join(self._folder, part_name(shard.name, self._width))
        storage.publish_text(url, part.model_dump_json(indent=2) + "\n")
        return part


def _map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, num_ahead: int
) -> Iterator[Result]:
    """`map` on a pool, in order, that reads no more than `num_ahead` items ahead."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > num_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _npy(rows: list[np.ndarray], dim: int) -> bytes:
    """[n, d] float16 in numpy's format."""
    array = np.concatenate([np.zeros((0, dim), np.float32), *rows]).astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
