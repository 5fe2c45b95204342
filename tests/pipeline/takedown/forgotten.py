"""A corpus as those who ask for a takedown find it, and what is left of it afterwards."""

import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from infra.cluster import Workers
from infra.summary import Summary
from pipeline import forget
from pipeline.corpus import iter_samples, read_manifest, read_rows
from pipeline.sample import Sample

HERE = Workers(local=True)
KEY = "000000003"
URL = f"https://example.org/{KEY}.png"


def run(root: str, **settings: Any) -> Summary:
    return forget.run(forget.Config(root=root, workers=HERE, **settings))


def samples(root: str) -> dict[str, Sample]:
    manifest = read_manifest(root)
    return {s.key: s for shard in manifest.shards for s in iter_samples(root, shard)}


def rows(root: str) -> dict[str, dict[str, Any]]:
    manifest = read_manifest(root)
    return {
        row["key"]: row for shard in manifest.shards for row in read_rows(root, shard).to_pylist()
    }


def files(root: str) -> dict[str, tuple[str, int]]:
    """sha256 and time of writing of every file."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def turned_copy(image: bytes) -> Image.Image:
    """Mirrored and compressed anew."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    out = io.BytesIO()
    ImageOps.mirror(picture).save(out, "JPEG", quality=60)
    return Image.open(out)
