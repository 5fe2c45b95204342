"""How long `carrara select` takes over ten million rows of columns.

    python benchmarks/select_rows.py --num-rows 10_000_000

Writes a corpus without its pictures into a temporary folder: shards' parquets of realistic width
(uid, url, caption, sizes, EXIF, sha256) and the columns of four signals, then times `select` by a
policy over all of them, with and without the check of digests, and by one threshold, each run in a
process of its own. Prints one line a run, seconds and peak memory. Ten million rows take 2.5 GB on
disk, and two minutes to be made.
"""

import argparse
import hashlib
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.made_corpus import NO_DIGEST, write_made_manifest
from benchmarks.weighed import run_weighed
from pipeline.corpus import PLACE_SCHEMA, ROW_SCHEMA, ColumnsManifest, Shard

POLICY = """
title = "Rules over every signal"
signals = ["caption", "image", "clip", "neighbours"]

[[rules]]
name = "caption too short"
keep = "num_characters >= 5 AND num_words > 2"

[[rules]]
name = "file name or boilerplate"
keep = "NOT is_file_name AND NOT is_boilerplate"

[[rules]]
name = "small or narrow"
keep = "original_short_side >= 200 AND original_aspect <= 3"

[[rules]]
name = "below the best seven tenths"
keep = "clip_similarity >= (SELECT quantile_cont(clip_similarity, 0.3) FROM clip)"

[[rules]]
name = "not among its caption's nearest pictures"
keep = "knn_rank_image < 200"
"""

VOCABULARY = 40_000
SHARE_FAILED = 0.1
EXIF = '{"Image Orientation": "Horizontal (normal)", "Image Make": "Camera", "EXIF ISO": "200"}'


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="carrara-select-", dir=arguments.folder) as folder:
        root = Path(folder) / "corpus"
        start = time.perf_counter()
        write_corpus(root, arguments.num_rows, arguments.rows_per_shard)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
            f"{arguments.num_rows:,} samples, {size / 1e9:.2f} GB of parquet, made in "
            f"{time.perf_counter() - start:.0f} s"
        )
        policy = Path(folder) / "policy.toml"
        policy.write_text(POLICY)
        by_policy = ["--policy", str(policy)]
        for label, options in {
            "policy over 4 signals": by_policy,
            "without digests": [*by_policy, "--no-check-digests"],
            "one threshold": ["--where", "clip_similarity >= 0.28"],
        }.items():
            done = run_weighed("select", str(root), "--name", "x", "--overwrite", *options)
            print(
                f"{label:24} {done.seconds:6.1f} s  "
                f"{arguments.num_rows / done.seconds / 1e6:6.2f} M rows/s  "
                f"peak {done.peak_bytes / 1e9:.2f} GB  kept {done.summary['num_out']:,}"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-rows", type=int, default=10_000_000, help="samples in the corpus")
    parser.add_argument("--rows-per-shard", type=int, default=10_000)
    parser.add_argument("--folder", help="where the temporary corpus goes")
    return parser.parse_args()


def write_corpus(root: Path, num_rows: int, rows_per_shard: int) -> None:
    """Everything of a scored corpus but its tars."""
    sizes = [min(rows_per_shard, num_rows - start) for start in range(0, num_rows, rows_per_shard)]
    for folder in ("shards", *(f"columns/{name}" for name in SIGNALS)):
        (root / folder).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        written = list(pool.map(_write_shard, [root] * len(sizes), range(len(sizes)), sizes))
    manifest = write_made_manifest(str(root), [shard for shard, _ in written])
    for name in SIGNALS:
        record = ColumnsManifest(
            signal=name,
            identity={},
            config_digest=NO_DIGEST,
            corpus_digest=manifest.digest,
            files={f"{shard.name}.parquet": files[name] for shard, files in written},
        )
        (root / "columns" / name / "manifest.json").write_text(record.model_dump_json())


def _write_shard(root: Path, number: int, num_samples: int) -> tuple[Shard, dict[str, str]]:
    random = np.random.default_rng(number)
    name = f"{number:05d}"
    rows = _rows(random, name, num_samples)
    rows_sha256 = _write(root / "shards" / f"{name}.parquet", rows)
    samples = rows.filter(pc.equal(rows["status"], "success"))
    files = {
        signal: _write(
            root / "columns" / signal / f"{name}.parquet",
            pa.table({"uid": samples["uid"], **make(random, num_samples)}),
        )
        for signal, make in SIGNALS.items()
    }
    shard = Shard(
        name=name, num_samples=num_samples, num_bytes=0, sha256="", rows_sha256=rows_sha256
    )
    return shard, files


def _rows(random: np.random.Generator, name: str, num_samples: int) -> pa.Table:
    """`num_samples` that succeeded, and every tenth row a failure."""
    num = int(num_samples / (1 - SHARE_FAILED))
    failed = np.zeros(num, bool)
    failed[random.permutation(num)[num_samples:]] = True
    hosts = random.integers(0, 20_000, num)
    hashes = _hex(random, num, 16)
    urls = [
        f"https://cdn{host}.example.org/images/{one}.jpg"
        for host, one in zip(hosts.tolist(), hashes, strict=True)
    ]
    words = np.array([f"w{i:x}" for i in range(VOCABULARY)])
    picked = words[(VOCABULARY * random.random((num, 9)) ** 3).astype(int)]
    sides = random.integers(100, 4000, (2, num)).astype(np.int32)
    places = 1536 + np.cumsum(random.integers(20, 80, num)) * 512
    columns = {
        "key": [f"{name}{i:04d}" for i in range(num)],
        "uid": _hex(random, num, 32),
        "url": urls,
        "caption": list(map(" ".join, picked.tolist())),
        "status": np.where(failed, "failed_to_download", "success"),
        "error_message": pa.array(["HTTP 404"] * num, mask=~failed),
        "width": pa.array(np.full(num, 256), pa.int32(), mask=failed),
        "height": pa.array(np.full(num, 192), pa.int32(), mask=failed),
        "original_width": pa.array(sides[0], mask=failed),
        "original_height": pa.array(sides[1], mask=failed),
        "exif": pa.array([EXIF] * num, mask=failed),
        "sha256": _hex(random, num, 64),
        "image_offset": pa.array(places, pa.int64(), mask=failed),
        "image_size": pa.array(random.integers(10_000, 40_000, num), pa.int64(), mask=failed),
    }
    return pa.table(columns, pa.schema([*ROW_SCHEMA, *PLACE_SCHEMA]))


def _caption(random: np.random.Generator, num: int) -> dict[str, pa.Array]:
    return {
        "num_characters": pa.array(random.integers(1, 120, num), pa.int32()),
        "num_words": pa.array(random.integers(1, 20, num), pa.int32()),
        "share_of_letters": pa.array(random.random(num), pa.float32()),
        "share_of_repeats": pa.array(random.random(num), pa.float32()),
        "is_file_name": pa.array(random.random(num) < 0.05),
        "is_boilerplate": pa.array(random.random(num) < 0.02),
        "language": pa.array(np.array(["en", "de", "fr", "ja"])[random.integers(0, 4, num)]),
        "language_confidence": pa.array(random.random(num), pa.float32()),
    }


def _image(random: np.random.Generator, num: int) -> dict[str, pa.Array]:
    return {
        "original_short_side": pa.array(random.integers(50, 2000, num), pa.int32()),
        "original_aspect": pa.array(1 + 3 * random.random(num), pa.float32()),
        "num_bytes": pa.array(random.integers(10_000, 40_000, num), pa.int32()),
        "entropy": pa.array(8 * random.random(num), pa.float32()),
        "sharpness": pa.array(1000 * random.random(num), pa.float32()),
        "share_of_border": pa.array(random.random(num), pa.float32()),
    }


def _clip(random: np.random.Generator, num: int) -> dict[str, pa.Array]:
    return {"clip_similarity": pa.array(random.normal(0.28, 0.05, num), pa.float32())}


def _neighbours(random: np.random.Generator, num: int) -> dict[str, pa.Array]:
    ranks = random.geometric(0.02, (2, num)).astype(np.int32)
    return {"knn_rank_image": pa.array(ranks[0]), "knn_rank_text": pa.array(ranks[1])}


SIGNALS = {"caption": _caption, "image": _image, "clip": _clip, "neighbours": _neighbours}


def _hex(random: np.random.Generator, num: int, digits: int) -> list[str]:
    text = random.bytes(num * digits // 2).hex()
    return [text[i : i + digits] for i in range(0, len(text), digits)]


def _write(path: Path, table: pa.Table) -> str:
    """Returns sha256 of the file."""
    pq.write_table(table, path, compression="zstd")
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
