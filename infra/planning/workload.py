"""How much there is to do: pairs, pictures, bytes and vectors, before any machine is looked at."""

from dataclasses import dataclass

PICTURE_BYTES_AT_256 = 25_000
"""Of a stored JPEG of 256 px: LAION-400M's 10 TB (img2dataset, dataset_examples/laion400m.md)."""
SIZE_EXPONENT = 1.22
"""Bytes grow with the side to this power: LAION-5B at 384 px has 240 TB, 41 kB each (img2dataset,
README.md)."""
SAMPLE_OVERHEAD_BYTES = 2_700
"""Of caption, record and tar's headers, three blocks of which are rounded up to 512 bytes; and the
row in the shard's parquet."""
PART_BYTES = 50 * 2**20
"""Of an upload in parts, s3fs's default."""
READ_BYTES = 50 * 2**20
"""Of a read from the store, s3fs's blocks."""
STATE_BYTES_PER_PARAMETER = 16
"""Of a checkpoint: float32 weights, their average, Adam's two moments."""


@dataclass(frozen=True)
class Workload:
    num_pairs: float
    live_share: float
    """Of the pairs: those whose picture can still be had."""
    image_size: int
    fetched_bytes: float
    """Of a picture on the web."""
    samples_per_shard: int
    kept_share: float
    """Of the pictures: those that the policy keeps, and training sees."""

    @property
    def num_pictures(self) -> float:
        return self.num_pairs * self.live_share

    @property
    def num_kept(self) -> float:
        return self.num_pictures * self.kept_share

    @property
    def sample_bytes(self) -> float:
        """In a shard."""
        side = self.image_size / 256
        return PICTURE_BYTES_AT_256 * float(side**SIZE_EXPONENT) + SAMPLE_OVERHEAD_BYTES

    @property
    def num_shards(self) -> float:
        return max(1.0, self.num_pairs / self.samples_per_shard)

    @property
    def shard_bytes(self) -> float:
        return self.num_pictures / self.num_shards * self.sample_bytes

    def embedding_bytes(self, dim: int) -> float:
        """Of pictures and captions, float16."""
        return self.num_pictures * 2 * 2 * dim


def num_writes(num_files: float, file_bytes: float) -> float:
    """A file of several parts takes two requests more, to begin and to complete it."""
    parts = max(1.0, file_bytes / PART_BYTES)
    return num_files * (1 if parts == 1 else parts + 2)


def num_reads(num_files: float, file_bytes: float) -> float:
    return num_files * max(1.0, file_bytes / READ_BYTES)
