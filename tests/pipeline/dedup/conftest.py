"""Corpora with planted copies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from tests.pipeline.dedup.planted import Picture, url_of


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., str]:
    """write_corpus(pictures, name="corpus", samples_per_shard=15) -> its root."""

    def write(pictures: list[Picture], name: str = "corpus", samples_per_shard: int = 15) -> str:
        root = str(tmp_path / name)
        shards = []
        for start in range(0, len(pictures), samples_per_shard):
            shard = f"{start // samples_per_shard:05d}"
            samples = [
                made_sample(
                    f"{shard}{place:04d}", url_of(start + place), *picture, **_sides(start + place)
                )
                for place, picture in enumerate(pictures[start : start + samples_per_shard])
            ]
            shards.append(write_made_shard(root, shard, samples))
        write_made_manifest(root, shards)
        return root

    return write


def _sides(number: int) -> dict[str, Any]:
    """A later picture is larger."""
    names = ("width", "height", "original_width", "original_height")
    return dict.fromkeys(names, 128 + number)
