"""How many planted copies does the copy flag find, and how many pictures does it flag wrongly?

    python -m benchmarks.copies WORK --num-pictures 2000

Makes a corpus of emoji and clip art (benchmarks/drawn.py), embeds it with the encoder that ships,
indexes it, and asks about copies of its pictures, each kind of copy at several strengths, and about
pictures that are not in it (of other groups: no variants of one that is). One line a kind: share
flagged, by hash and by similarity alone, share of the flags that name the right picture.
Takes four minutes for 2,000 pictures on two cores.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.drawn import Drawn, drawn
from benchmarks.made_corpus import made_sample, write_made_manifest, write_made_shard
from infra.cluster import Workers
from retrieval import embed, index
from retrieval.copies import CopyDetector, CopyVerdict
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import Encoder, load_encoder
from retrieval.search import Retriever

SHARD_SIZE = 500
SEED = 0

Change = Callable[[Image.Image], Image.Image]


def _scaled(factor: float) -> Change:
    return lambda picture: picture.resize(
        (max(8, round(picture.width * factor)), max(8, round(picture.height * factor)))
    )


def _recompressed(quality: int) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def _cropped(share: float) -> Change:
    """That share of either side is cut off, half of it on each end."""

    def change(picture: Image.Image) -> Image.Image:
        x, y = (round(side * share / 2) for side in picture.size)
        return picture.crop((x, y, picture.width - x, picture.height - y))

    return change


def _noised(deviation: float) -> Change:
    def change(picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture, np.float32)
        noise = np.random.default_rng(SEED).normal(0, deviation, pixels.shape)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))

    return change


KINDS: dict[str, Change] = {
    "the same bytes": lambda picture: picture,
    "half the size": _scaled(0.5),
    "twice the size": _scaled(2),
    "JPEG quality 80": _recompressed(80),
    "JPEG quality 30": _recompressed(30),
    "noise of 4 of 255": _noised(4),
    "noise of 12 of 255": _noised(12),
    "cropped by 5%": _cropped(0.05),
    "cropped by 10%": _cropped(0.1),
    "cropped by 25%": _cropped(0.25),
    "mirrored": ImageOps.mirror,
    "turned by 90 degrees": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--num-pictures", type=int, default=2000)
    parser.add_argument("--num-queries", type=int, default=200, help="of each kind")
    arguments = parser.parse_args()
    everything = drawn(arguments.work)
    order = np.random.default_rng(SEED).permutation(len(everything))
    # Unseen pictures are of other groups than seen ones, so they are no variants of them.
    inside = [everything[i] for i in order if everything[i].is_seen][: arguments.num_pictures]
    outside = [everything[i] for i in order if not everything[i].is_seen]
    with tempfile.TemporaryDirectory(prefix="carrara-copies-") as root:
        uids = write_corpus(root, inside)
        workers = Workers(local=True)
        embed.run(embed.Config(root=root, encoder=EMBEDDED_ENCODER, workers=workers))
        index.run(index.Config(root=root))
        measure(root, inside, uids, outside, arguments.num_queries)


def measure(
    root: str, inside: list[Drawn], uids: dict[Path, str], outside: list[Drawn], num_queries: int
) -> None:
    detector, encoder = CopyDetector(Retriever.open(root)), load_encoder(EMBEDDED_ENCODER)
    start = time.perf_counter()
    ask(detector, encoder, inside[0].read())
    print(f"{len(inside)} pictures; the first answer took {time.perf_counter() - start:.1f} s")
    print(f"{'query':24}{'flagged':>9}{'by hash':>9}{'right':>8}{'ms each':>9}")
    some = inside[:: max(1, len(inside) // num_queries)]
    for name, change in KINDS.items():
        report(detector, encoder, name, [(change(one.read()), uids[one.path]) for one in some])
    report(detector, encoder, "not in the corpus", [(one.read(), "") for one in outside])


def report(
    detector: CopyDetector, encoder: Encoder, name: str, asked: list[tuple[Image.Image, str]]
) -> None:
    start = time.perf_counter()
    verdicts = [(ask(detector, encoder, picture), uid) for picture, uid in asked]
    milliseconds = 1000 * (time.perf_counter() - start) / len(asked)
    flagged = [(one, uid) for one, uid in verdicts if one.is_copy]
    by_hash = sum("picture hash" in one.evidence for one, _ in flagged) / len(asked)
    right = sum(one.uid == uid for one, uid in flagged) / max(1, len(flagged))
    print(
        f"{name:24}{len(flagged) / len(asked):9.1%}{by_hash:9.1%}{right:8.1%}{milliseconds:9.0f}",
        flush=True,
    )


def ask(detector: CopyDetector, encoder: Encoder, picture: Image.Image) -> CopyVerdict:
    verdict = detector.verdict(picture, encoder.encode_images([picture])[0])
    assert verdict is not None
    return verdict


def write_corpus(root: str, pictures: list[Drawn]) -> dict[Path, str]:
    """The uids by the pictures' paths."""
    uids, shards = {}, []
    for number, start in enumerate(range(0, len(pictures), SHARD_SIZE)):
        name = f"{number:05d}"
        samples = []
        for place, one in enumerate(pictures[start : start + SHARD_SIZE]):
            url, buffer = f"https://example.org/{one.path.name}", io.BytesIO()
            one.read().save(buffer, "JPEG", quality=95)
            sample = made_sample(f"{name}{place:04d}", url, one.caption, buffer.getvalue())
            samples.append(sample)
            uids[one.path] = sample.uid
        shards.append(write_made_shard(root, name, samples))
    write_made_manifest(root, shards)
    return uids


if __name__ == "__main__":
    main()
