"""How well `dedup` finds copies, and how its time grows.

    python -m benchmarks.dedup [--pictures FOLDER_OR_ZIP ...] [--encoder NAME] [--num-hashes N ...]

Prints three tables from one run. First, for each set of pictures and each way in which a picture is
copied, recall (of how many pairs of original and copy one was dropped) and precision (how many of
the dropped were copies of what stays in their place). Second, pictures hashed a second on one
core. Third, the time a hash that banding takes as their number grows, with planted near copies.

Emoji stress precision: hundreds differ in one detail or in colour alone, and some have the same
bytes. Photos are synthetic (photos.py); name folders of real ones with --pictures.
"""

import argparse
import hashlib
import io
import os
import platform
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from benchmarks.photos import photos
from infra.summary import table_of
from pipeline.dedup.bands import Bands, near_pairs
from pipeline.dedup.copies import Limits, find_copies
from pipeline.dedup.embeddings import Vectors
from pipeline.dedup.heldout import SCHEMA, SUFFIXES, HeldOut
from pipeline.dedup.pictures import Pictures
from pipeline.dedup.samples import Samples
from pipeline.picture_hash import MATCH, Pixels, picture_hash
from pipeline.signals.hashes import decode_pixels, hash_picture

EMOJI = Path(__file__).parents[1] / "examples" / "emoji" / "pictures.zip"
LONG_SIDE = 256

Transformation = Callable[[Image.Image], bytes]


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def resized(picture: Image.Image, factor: float) -> bytes:
    return jpeg(picture.resize([max(1, round(side * factor)) for side in picture.size]))


def cropped(picture: Image.Image, share: float) -> bytes:
    """Without `share` of the width and of the height, more on one side than on the other."""
    width, height = picture.size
    left, top = round(width * share / 3), round(height * share * 2 / 3)
    right, bottom = left + round(width * (1 - share)), top + round(height * (1 - share))
    return jpeg(picture.crop((left, top, right, bottom)))


def watermarked(picture: Image.Image, share: float) -> bytes:
    """Half-transparent words across the middle, `share` of the height tall."""
    font = ImageFont.load_default(max(8, picture.height * share))
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    middle = (picture.width / 2, picture.height / 2)
    ImageDraw.Draw(layer).text(middle, "SAMPLE", (255, 255, 255, 150), font, anchor="mm")
    return jpeg(Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB"))


TRANSFORMATIONS: dict[str, Transformation] = {
    "same bytes": jpeg,
    "other file, same pixels": lambda picture: png(jpeg(picture)),
    "resized to 1/2": lambda picture: resized(picture, 0.5),
    "resized to 1/4": lambda picture: resized(picture, 0.25),
    "recompressed, quality 60": lambda picture: jpeg(picture, 60),
    "recompressed, quality 20": lambda picture: jpeg(picture, 20),
    "cropped by 2%": lambda picture: cropped(picture, 0.02),
    "cropped by 5%": lambda picture: cropped(picture, 0.05),
    "cropped by 15%": lambda picture: cropped(picture, 0.15),
    "watermark, 1/8 tall": lambda picture: watermarked(picture, 1 / 8),
    "watermark, 1/4 tall": lambda picture: watermarked(picture, 1 / 4),
    "mirrored": lambda picture: jpeg(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def png(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "PNG")
    return file.getvalue()


METHODS: dict[str, Limits] = {
    "exact": Limits(methods=("exact",)),
    "perceptual, not mirrored": Limits(methods=("perceptual",), mirrored=False),
    "default: exact, perceptual": Limits(),
    "semantic": Limits(methods=("semantic",)),
    "all": Limits(methods=("exact", "perceptual", "semantic")),
}


@dataclass(frozen=True)
class Prints:
    """Fingerprints of n pictures."""

    pictures: Pictures
    vectors: NDArray[np.float16] | None
    """[n, d]"""

    def __add__(self, other: "Prints") -> "Prints":
        vectors = None
        if self.vectors is not None and other.vectors is not None:
            vectors = np.concatenate([self.vectors, other.vectors])
        return Prints(Pictures.concatenated([self.pictures, other.pictures]), vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="folders or zips")
    parser.add_argument("--num-pictures", type=int, default=1000, help="of each set, at most")
    parser.add_argument("--encoder", help="for semantic; none: that method is left out")
    parser.add_argument("--eps", type=float, nargs="*", default=[0.05], help="for semantic")
    parser.add_argument(
        "--num-hashes", type=int, nargs="*", default=[100_000, 200_000, 400_000, 800_000]
    )
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    encode = _encoder(arguments.encoder)
    sets = {"emoji": _from_zip(EMOJI), "synthetic photos": _synthetic(arguments.num_pictures)}
    sets |= {path.name: _read(path) for path in arguments.pictures}
    for name, pictures in sets.items():
        originals = _take(pictures, arguments.num_pictures)
        _print(f"{name}: {len(originals)} pictures", planted(originals, encode, arguments.eps))
    _print("hashed on one core", [hashing_rate()])
    _print("banding: random hashes, a tenth of them planted", scaling(arguments.num_hashes))


def planted(
    originals: list[Image.Image],
    encode: Callable[[list[Image.Image]], NDArray[np.float16]] | None,
    all_eps: Sequence[float],
) -> list[dict[str, object]]:
    """Recall and precision by transformation and method, in percent."""
    rows = []
    first = _prints([jpeg(picture) for picture in originals], encode)
    for name, transform in TRANSFORMATIONS.items():
        both = first + _prints([transform(picture) for picture in originals], encode)
        row: dict[str, object] = {"copies": name}
        for method, limits in METHODS.items():
            if "semantic" not in limits.methods:
                row[method] = _recall_and_precision(both, limits)
            elif encode is not None:
                for eps in all_eps:
                    cell = _recall_and_precision(both, limits.model_copy(update={"eps": eps}))
                    row[f"{method}, eps {eps:g}"] = cell
        rows.append(row)
    return rows


def _recall_and_precision(prints: Prints, limits: Limits) -> str:
    """Of samples whose first half are the originals and whose second half are their copies."""
    num = len(prints.pictures)
    original = np.arange(num) % (num // 2)
    samples = Samples(
        shards={"00000": slice(0, num)},
        uids=np.stack([np.zeros(num), np.arange(num)], axis=1).astype(np.uint64),
        pictures=prints.pictures,
        ranks=np.arange(num),
        is_taken_down=np.zeros(num, bool),
    )
    vectors = None
    if "semantic" in limits.methods and prints.vectors is not None:
        vectors = Vectors(prints.vectors, np.arange(num))
    grouping = find_copies(samples, NO_HELDOUT, vectors, limits).grouping
    is_found = grouping.is_copy[: num // 2] | grouping.is_copy[num // 2 :]
    is_right = original[grouping.survivor] == original
    precision = is_right[grouping.is_copy].mean() if grouping.is_copy.any() else np.nan
    return f"{100 * is_found.mean():5.1f} / {100 * precision:5.1f}"


NO_HELDOUT = HeldOut(
    Pictures.of_table(pa.table({name: [] for name in SCHEMA.names}, SCHEMA)),
    np.zeros((0, 0), np.float32),
    0,
    "",
)


def hashing_rate(num: int = 400) -> dict[str, object]:
    """Pictures a second of the hash alone and of all that the signal does, at LONG_SIDE."""
    data = [jpeg(picture) for picture in _take(_synthetic(20), 20)]
    pixels = [decode_pixels(one) for one in data]
    ready = [one for one in pixels if one is not None]

    def rate(work: Callable[[int], object]) -> float:
        start = time.process_time()
        for i in range(num):
            work(i % len(data))
        return num / (time.process_time() - start)

    return {
        "PDQ of pixels": round(rate(lambda i: picture_hash(ready[i]))),
        "the hashes signal (decode, sha256, two PDQ)": round(rate(lambda i: hash_picture(data[i]))),
    }


def scaling(sizes: Sequence[int]) -> list[dict[str, object]]:
    """Time a hash and recall of pairs planted at distances from 1 to MATCH."""
    rows: list[dict[str, object]] = []
    for num in sizes:
        hashes, pairs, apart = _random_hashes(num)
        bands = Bands.of(num, MATCH)
        start = time.process_time()
        chunks = [np.minimum(i, j) * num + np.maximum(i, j) for i, j in near_pairs(hashes, bands)]
        seconds = time.process_time() - start
        is_found = np.isin(pairs.min(axis=0) * num + pairs.max(axis=0), np.concatenate(chunks))
        rows.append(
            {
                "hashes": num,
                "bits a band": bands.width,
                "bands": bands.num,
                "CPU s": round(seconds, 1),
                "us a hash": round(1e6 * seconds / num, 1),
                "recall": f"{is_found.mean():.4f}",
                f"recall at {MATCH}": f"{is_found[apart == MATCH].mean():.4f}",
                "expected at least": f"{bands.expected_recall:.4f}",
            }
        )
    return rows


def _random_hashes(num: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct hashes in order, the pairs planted among them [2, m], and how far apart they are."""
    rng = np.random.default_rng(num)
    num_planted = num // 10
    hashes = rng.integers(0, 256, (num - num_planted, 32), np.uint8)
    apart = rng.integers(1, MATCH + 1, num_planted)
    # A random order of the bits, of which the first so many differ.
    order = np.argsort(rng.random((num_planted, 256)), axis=1)
    flips = np.packbits(order < apart[:, None], axis=1)
    hashes = np.concatenate([hashes, hashes[:num_planted] ^ flips])
    places = np.empty(num, np.int64)
    sorting = np.lexsort(hashes.view(np.uint64).T)
    places[sorting] = np.arange(num)
    return hashes[sorting], np.stack([places[:num_planted], places[-num_planted:]]), apart


def _prints(
    data: list[bytes], encode: Callable[[list[Image.Image]], NDArray[np.float16]] | None
) -> Prints:
    rows = [{"sha256": hashlib.sha256(one).hexdigest(), **hash_picture(one)} for one in data]
    vectors = (
        encode([Image.open(io.BytesIO(one)).convert("RGB") for one in data]) if encode else None
    )
    return Prints(Pictures.of_table(pa.Table.from_pylist(rows, SCHEMA)), vectors)


def _encoder(name: str | None) -> Callable[[list[Image.Image]], NDArray[np.float16]] | None:
    if name is None:
        return None
    from retrieval.encoding.encoder import load_encoder

    encoder = load_encoder(name)
    return lambda pictures: encoder.encode_images(pictures).astype(np.float16)


def _take(pictures: Iterator[Image.Image], num: int) -> list[Image.Image]:
    """The first so many that differ: what a set has twice is a copy that nobody planted."""
    taken: dict[bytes, Image.Image] = {}
    for picture in pictures:
        taken.setdefault(jpeg(picture), picture)
        if len(taken) == num:
            break
    return list(taken.values())


def _synthetic(num: int) -> Iterator[Image.Image]:
    return (_prepared(data) for data in photos(num))


def _read(path: Path) -> Iterator[Image.Image]:
    if path.suffix == ".zip":
        return _from_zip(path)
    files = sorted(file for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES))
    return (_prepared(file.read_bytes()) for file in files)


def _from_zip(path: Path) -> Iterator[Image.Image]:
    """In another order than they lie there: neighbours look alike."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for place in np.random.default_rng(0).permutation(len(names)):
            if names[place].lower().endswith(SUFFIXES):
                yield _prepared(archive.read(names[place]))


def _prepared(data: bytes) -> Image.Image:
    """As a shard would hold it: its longer side LONG_SIDE at most."""
    pixels: Pixels | None = decode_pixels(data)
    assert pixels is not None
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    return picture


def _print(title: str, rows: list[dict[str, object]]) -> None:
    console = Console(width=200)
    console.print(f"\n[bold]{title}[/]")
    console.print(table_of(rows))


if __name__ == "__main__":
    main()
