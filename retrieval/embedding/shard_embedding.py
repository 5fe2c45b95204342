"""What one worker does to embed a shard: read, decode beside that, encode, publish.

Reads   ROOT/shards/<shard>.tar .parquet
Writes  the shard's arrays and metadata, and its part's record last (embeddings.py)

One thread reads and others decode ahead while this one encodes. The interpreter's lock is held for
a hundredth of what a picture takes to decode, so threads are enough: processes of their own would
only have to hand their pixels over. A batch is the next `batch_size` samples of the tar and the
captions are all of the shard's, whatever came before: the same shard gives the same bytes.
"""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from infra import storage
from infra.errors import DamagedError, InputError
from pipeline.corpus import SUCCESS, Shard, iter_samples, read_rows, shard_url
from pipeline.sample import Sample
from retrieval.asking.clock import Seconds, timed
from retrieval.embedding.embed_progress import Report
from retrieval.embedding.embeddings import (
    Part,
    array_bytes,
    array_name,
    embeddings_url,
    file_number,
    metadata_bytes,
    metadata_name,
    part_name,
)
from retrieval.encoding.encoder import Encoder

BATCHES_AHEAD = 2
"""Decoded while one is encoded: enough that the encoder never waits, little enough for memory."""
SAMPLES_A_TASK = 8
"""Decoded in one go: a thread is given work a few hundred times a second, not thousands."""


def limit_threads(num_threads: int) -> None:
    """Give torch this worker's share of the machine: sums, too, come out the same everywhere."""
    torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class _Batch:
    """Samples on their way to being decoded."""

    samples: Sequence[Sample]
    pixels: torch.Tensor
    """[n, H, W, 3] uint8; the rows of what can't be decoded hold anything."""
    tasks: Sequence[Future[list[bool]]]

    def is_decoded(self) -> list[bool]:
        """Waits; one flag a sample."""
        return [flag for task in self.tasks for flag in task.result()]


class ShardEmbedder:
    """Embeds shard after shard with one encoder; see `retrieval.embed` for the settings."""

    def __init__(
        self,
        encoder: Encoder,
        root: str,
        width: int,
        batch_size: int,
        num_threads: int,
        report: Report = lambda _shard, _num_done, _seconds: None,
    ) -> None:
        self._encoder = encoder
        self._root = root
        self._folder = embeddings_url(root, encoder.name)
        self._width = width
        self._batch_size = batch_size
        self._report = report
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def __call__(self, shard: Shard) -> Part:
        seconds = Seconds(float)
        keys: list[str] = []
        captions: list[str] = []
        is_decoded: list[bool] = []
        images = _Rows(self._encoder.dim)
        self._report(shard.name, 0, dict(seconds))
        for batch in self._batches(shard, seconds):
            with timed(seconds, "decode"):
                flags = batch.is_decoded()
            with timed(seconds, "encode"):
                if any(flags):
                    pixels = batch.pixels if all(flags) else batch.pixels[torch.tensor(flags)]
                    images.add(self._encoder.unit_rows(pixels))
            keys += [sample.key for sample in batch.samples]
            captions += [s.caption for s, flag in zip(batch.samples, flags, strict=True) if flag]
            is_decoded += flags
            self._report(shard.name, len(keys), dict(seconds))
        with timed(seconds, "encode"):
            image_rows, text_rows = images.all(), self._encoder.encode_texts(captions)
            self._check(shard, image_rows, text_rows)
        with timed(seconds, "write"):
            part = self._publish(shard, keys, is_decoded, image_rows, text_rows)
        self._report(shard.name, len(keys), dict(seconds))
        return part

    # Reading and decoding

    def _batches(self, shard: Shard, seconds: Seconds) -> Iterator[_Batch]:
        """In the tar's order, of which the next are already being read and decoded."""
        samples = iter_samples(self._root, shard)
        ahead = deque(self._reader.submit(self._next_batch, samples) for _ in range(BATCHES_AHEAD))
        while True:
            with timed(seconds, "read"):
                batch = ahead.popleft().result()
            if batch is None:
                return
            ahead.append(self._reader.submit(self._next_batch, samples))
            yield batch

    def _next_batch(self, samples: Iterator[Sample]) -> _Batch | None:
        batch = list(islice(samples, self._batch_size))
        if not batch:
            return None
        preprocess = self._encoder.preprocess
        # A GPU copies from pinned memory by itself; decoders write there at once.
        pixels = torch.empty(
            (len(batch), preprocess.height, preprocess.width, 3),
            dtype=torch.uint8,
            pin_memory=self._encoder.device.startswith("cuda"),
        )
        rows = pixels.numpy()
        tasks = [
            self._decoders.submit(
                self._decode,
                [sample.image for sample in batch[start : start + SAMPLES_A_TASK]],
                rows[start : start + SAMPLES_A_TASK],
            )
            for start in range(0, len(batch), SAMPLES_A_TASK)
        ]
        return _Batch(batch, pixels, tasks)

    def _decode(self, pictures: Sequence[bytes], rows: np.ndarray) -> list[bool]:
        """Into `rows`; whether each could be."""
        flags = []
        for picture, row in zip(pictures, rows, strict=True):
            try:
                row[:] = self._encoder.preprocess(picture)
            except InputError:
                flags.append(False)
            else:
                flags.append(True)
        return flags

    def _check(self, shard: Shard, image_rows: np.ndarray, text_rows: np.ndarray) -> None:
        """Raises DamagedError for vectors with a NaN, which would spoil every index made of them.

        No sample is to blame: pixels are bytes and captions tokens, whatever is in them. So none is
        left out for it, which would be others with each precision.
        """
        of_images, of_texts = (
            int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
            for rows in (image_rows, text_rows)
        )
        if of_images or of_texts:
            raise DamagedError(
                f"shard {shard_url(self._root, shard.name)}: {of_images} of {len(image_rows)} "
                f"pictures and {of_texts} of {len(text_rows)} captions have vectors that are not "
                f"finite, by {self._encoder.name!r} in {self._encoder.precision}; its arithmetic "
                "overflows, or its weights are damaged: embed with --precision fp32 --overwrite, "
                "or fetch the weights again"
            )

    # Writing

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
        keys: list[str],
        is_decoded: list[bool],
        image_rows: np.ndarray,
        text_rows: np.ndarray,
    ) -> Part:
        number = file_number(shard.name, self._width)
        contents = {
            array_name("image", number): array_bytes(image_rows),
            array_name("text", number): array_bytes(text_rows),
            metadata_name(number): metadata_bytes(self._metadata(shard, keys, is_decoded)),
        }
        for name, data in contents.items():
            storage.publish_bytes(storage.join(self._folder, name), data)
        part = Part(
            shard=shard.name,
            file_number=number,
            num_rows=sum(is_decoded),
            num_undecodable=len(is_decoded) - sum(is_decoded),
            dim=self._encoder.dim,
            shard_digest=shard.sha256,
            rows_digest=shard.rows_sha256,
            precision=self._encoder.precision,
            files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        )
        url = storage.join(self._folder, part_name(shard.name, self._width))
        storage.publish_text(url, part.model_dump_json(indent=2) + "\n")
        return part


class _Rows:
    """Rows as a device gives them; of a GPU the last batch's are waited for only when they must."""

    def __init__(self, dim: int) -> None:
        self._done = [np.zeros((0, dim), np.float32)]
        self._last: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        self._settle()
        self._last = rows

    def all(self) -> np.ndarray:
        """[n, d] float32."""
        self._settle()
        return np.concatenate(self._done)

    def _settle(self) -> None:
        if self._last is not None:
            self._done.append(self._last.cpu().numpy())
            self._last = None
