"""How many samples a second each signal scores on one core, on pictures of three kinds.

    python -m benchmarks.signals
    python -m benchmarks.signals --num-pictures 48 --signals caption image

Makes a corpus in a temporary folder: a third emoji, a third photo-like pictures as a download
stores them (256 pixels), a third the same with their caption written on them. Embeds and indexes it
with the small encoder that ships, and makes up weights of LAION's two heads and target pictures.
Then each signal scores the corpus again and again in a process of its own, held to one core: one
line a signal, samples by the second of that core's time, with what loading took and the most memory
that the process had. Reading the tar and decoding count.

Where torch finds a GPU it embeds there too, with all cores to feed it, and where onnxruntime can
use one so do safety and text_overlay. Takes three minutes.
"""

import argparse
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from benchmarks.photos import photos
from pipeline.corpus import (
    ROW_SCHEMA,
    SUCCESS,
    Manifest,
    read_manifest,
    write_manifest,
    write_shard,
)
from pipeline.sample import Sample, sample_uid
from pipeline.score import SIGNALS, CorpusSignal, load_signal

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
ENCODER = "Carrara-S/emoji_clipart"
SHARD_SIZE = 256
SIDE = 256
MIN_SECONDS = 3.0
ON_GPU = ("safety", "text_overlay")
HEADS = {"clip_safety": "safety.pth", "aesthetic": "aesthetic.pth"}
TARGETS = "targets.npy"
NUM_TARGETS = 1000


def main() -> None:
    arguments = _arguments()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.root, arguments.device)))
        return
    with tempfile.TemporaryDirectory(prefix="carrara-signals-") as folder:
        root = str(Path(folder) / "corpus")
        write_corpus(root, arguments.num_pictures)
        write_options(Path(folder))
        _prepare(root)
        print(f"{_processor()}, {os.cpu_count()} cores; {arguments.num_pictures} pictures")
        print(f"{'signal':14}{'samples/s':>11}{'s to load':>11}{'MB':>7}  where")
        for name in ("embed", *arguments.signals):
            _show(name, "cpu", _measure_alone(name, root, "cpu"))
        for name in _on_gpu():
            _show(name, "cuda", _measure_alone(name, root, "cuda"))


def _show(name: str, device: str, found: dict[str, float]) -> None:
    where = "one core" if device == "cpu" else "GPU"
    print(
        f"{name:14}{found['rate']:>11,.0f}{found['load_s']:>11.1f}{found['memory_mb']:>7,.0f}"
        f"  {where}",
        flush=True,
    )


def _measure_alone(name: str, root: str, device: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.signals",
        "--only",
        name,
        "--root",
        root,
        "--device",
        device,
    ]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure(name: str, root: str, device: str) -> dict[str, float]:
    """Samples a second, seconds to load, peak memory; in a process that does nothing else."""
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"
    work = _embedding(root, device) if name == "embed" else _scoring(name, root, device)
    # On one core, what the process had of it: other programs' share is not the signal's.
    now = time.process_time if device == "cpu" else time.perf_counter
    start = now()
    next(work)  # what is dear is loaded at the first shard
    first_s = now() - start
    start, num = now(), 0
    while now() - start < MIN_SECONDS:
        num += next(work)
    rate = num / (now() - start)
    shard = read_manifest(root).shards[0]
    return {
        "rate": rate,
        "load_s": max(0.0, first_s - shard.num_samples / rate),
        "memory_mb": _peak_memory_mb(),
    }


def _prepare(root: str) -> None:
    """What signals need beside the shards."""
    from infra.cluster import Workers
    from pipeline import score
    from retrieval import embed, index

    here = Workers(local=True)
    embed.run(embed.Config(root=root, encoder=ENCODER, workers=here))
    index.run(index.Config(root=root, encoder=ENCODER))
    score.run(score.Config(root=root, signals=("text_overlay",), workers=here))


def _scoring(name: str, root: str, device: str) -> Iterator[int]:
    """Scores shard after shard; a pass over the corpus begins as a command's does."""
    options = {"encoder": ENCODER, "num_threads": "1", "device": device}
    folder = Path(root).parent
    options |= {f"{head}_head": str(folder / file) for head, file in HEADS.items()}
    options["targets"] = str(folder / TARGETS)
    signal = load_signal(name, root, options)
    shards = read_manifest(root).shards
    while True:
        with signal.prepared() if isinstance(signal, CorpusSignal) else nullcontext():
            for shard in shards:
                signal(shard)
                yield shard.num_samples


def _embedding(root: str, device: str) -> Iterator[int]:
    """As `carrara embed` does it; into a folder of its own, for the others need what it wrote."""
    from retrieval.embedding.embeddings import number_width
    from retrieval.embedding.shard_embedding import ShardEmbedder, limit_threads
    from retrieval.encoding.encoder import load_encoder

    num_threads = 1 if device == "cpu" else os.cpu_count() or 1
    limit_threads(num_threads)
    corpus = read_manifest(root)
    encoder = load_encoder(ENCODER, device)
    own = shutil.copytree(root, f"{root}-embedded-alone", dirs_exist_ok=True)
    embedder = ShardEmbedder(encoder, str(own), number_width(corpus), 128, num_threads)
    while True:
        for shard in corpus.shards:
            yield embedder(shard).num_rows


# The corpus


def write_corpus(root: str, num_pictures: int) -> None:
    pictures = list(_pictures(num_pictures))
    shards = []
    for number, start in enumerate(range(0, num_pictures, SHARD_SIZE)):
        name = f"{number:05d}"
        samples, rows = [], []
        for place, (caption, image) in enumerate(pictures[start : start + SHARD_SIZE]):
            row = _row(f"{name}{place:04d}", caption)
            rows.append(row)
            samples.append(Sample(row["key"], row["uid"], caption, image, "jpg", row))
        table = pa.Table.from_pylist(rows, ROW_SCHEMA)
        shards.append(write_shard(root, name, samples, table, {}))
    counts = {SUCCESS: num_pictures}
    made = {"stage": "benchmark", "config": {}, "config_digest": "0" * 16, "counts": counts}
    write_manifest(root, Manifest(**made, input_digest="0" * 16, shards=shards))


def _pictures(num: int) -> Iterator[tuple[str, bytes]]:
    """(caption, JPEG) in turns: an emoji, a photo, a photo with its caption on it."""
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    photo_of = photos(num)
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        for number in range(num):
            row = rows[number * 7 % len(rows)]
            picture = Image.open(io.BytesIO(next(photo_of))).convert("RGB")
            picture.thumbnail((SIDE, SIDE))
            if number % 3 == 0:
                picture = _on_white(archive.read(row["file_name"]))
            elif number % 3 == 1:
                _write(picture, row["caption"])
            file_of = io.BytesIO()
            picture.save(file_of, "JPEG", quality=95)
            yield row["caption"], file_of.getvalue()


def _on_white(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return page.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _write(picture: Image.Image, text: str) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(22)
    left, top, right, bottom = draw.textbbox((12, 30), text, font)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), "white")
    draw.text((12, 30), text, "black", font)


def _row(key: str, caption: str) -> dict[str, Any]:
    url = f"https://example.org/{key}.jpg"
    row: dict[str, Any] = dict.fromkeys(ROW_SCHEMA.names)
    sizes = {"width": SIDE, "height": SIDE, "original_width": 640, "original_height": 480}
    # One picture in eight is one of four placeholders.
    sha256 = f"{int(key) % 4 if int(key) % 8 == 0 else int(key) + 4:064x}"
    row |= sizes | {"key": key, "uid": sample_uid(url, caption), "url": url, "caption": caption}
    return row | {"status": SUCCESS, "sha256": sha256}


def write_options(folder: Path) -> None:
    """Weights and target embeddings that fit the small encoder; only the time is of interest."""
    import torch
    from torch import nn

    from retrieval.encoding.weights import find_weights

    config = json.loads((find_weights(ENCODER).path.parent / "open_clip_config.json").read_text())
    dim = config["model_cfg"]["embed_dim"]
    sizes = [dim, 64, 512, 256, 1]
    state = {"norm.mean": torch.zeros(dim), "norm.variance": torch.ones(dim)}
    for number in range(4):
        layer = nn.Linear(sizes[number], sizes[number + 1]).state_dict()
        state |= {f"linear_{number + 1}.{name}": tensor for name, tensor in layer.items()}
    torch.save(state, folder / HEADS["clip_safety"])
    torch.save(nn.Linear(dim, 1).state_dict(), folder / HEADS["aesthetic"])
    targets = nn.functional.normalize(torch.randn(NUM_TARGETS, dim), dim=1)
    np.save(folder / TARGETS, targets.numpy())


# The machine


def _on_gpu() -> list[str]:
    """What can run on a GPU here."""
    import onnxruntime
    import torch

    if not torch.cuda.is_available():
        return []
    has_runtime = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return ["embed", *(ON_GPU if has_runtime else ())]


def _peak_memory_mb() -> float:
    """Of this process since it began: getrusage counts what its parent had, too."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-pictures", type=int, default=768)
    parser.add_argument("--signals", nargs="+", choices=list(SIGNALS), default=list(SIGNALS))
    for name in ("--only", "--root"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
