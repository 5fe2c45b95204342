"""The corpus of `benchmarks.result`: emoji and clip art on white, 64 pixels a side, packed.

Emoji come from examples/emoji; clip art from Debian's openclipart, fetched once by
benchmarks.drawn. A tenth is held out by group, so that no picture of it has a twin in training.
"""

import csv
import hashlib
import io
import random
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.drawn import drawn
from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from pipeline.corpus import Shard, manifest_url

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
SIDE = 64
SAMPLES_PER_SHARD = 500
HELD_OUT = 0.1

Pair = tuple[str, str, Image.Image]
"""Name, caption, picture."""


def build(work: Path, *, emoji_only: bool) -> tuple[Path, Path]:
    """The corpora to train on and held out; what is there is kept."""
    folders = work / "train", work / "heldout"
    if not all(Path(manifest_url(str(folder))).exists() for folder in folders):
        pairs = list(emoji() if emoji_only else emoji_and_clipart(work / "source"))
        for folder, is_held_out in zip(folders, (False, True), strict=True):
            own = [
                (name, text, image) for held, (name, text, image) in pairs if held is is_held_out
            ]
            random.Random(0).shuffle(own)
            _write(folder, own)
    return folders


def emoji() -> Iterator[tuple[bool, Pair]]:
    """Whether each is held out: one in ten by its caption."""
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        for row in rows:
            name, caption = row["file_name"], row["caption"]
            with Image.open(io.BytesIO(archive.read(name))) as image:
                share = int(hashlib.sha256(caption.encode()).hexdigest()[:8], 16) / 2**32
                yield share < HELD_OUT, (name, caption, _on_white(image))


def emoji_and_clipart(source: Path) -> Iterator[tuple[bool, Pair]]:
    """Held out: the groups that the small encoder was not trained on."""
    for one in drawn(source):
        yield not one.is_seen, (one.path.name, one.caption, _on_white(one.read()))


def _on_white(image: Image.Image) -> Image.Image:
    """Its longer side brought to SIDE, the rest white."""
    picture = image.convert("RGBA")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    page = Image.new("RGBA", (SIDE, SIDE), "white")
    page.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return page.convert("RGB")


def _write(root: Path, pairs: Sequence[Pair]) -> None:
    starts = range(0, len(pairs), SAMPLES_PER_SHARD)
    shards = [
        _write_shard(root, f"{number:05d}", pairs[start : start + SAMPLES_PER_SHARD])
        for number, start in enumerate(starts)
    ]
    write_made_manifest(str(root), shards, stage="pack")


def _write_shard(root: Path, shard: str, pairs: Sequence[Pair]) -> Shard:
    names = ("width", "height", "original_width", "original_height")
    sides: dict[str, Any] = dict.fromkeys(names, SIDE)
    samples = []
    for i, (name, caption, image) in enumerate(pairs):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=95)
        key, url = f"{shard}{i:04d}", f"https://example.org/{name}"
        samples.append(made_sample(key, url, caption, out.getvalue(), **sides))
    return write_made_shard(str(root), shard, samples)
