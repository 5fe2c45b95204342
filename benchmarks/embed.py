"""`carrara embed` against `clip-retrieval inference` 2.45.0 and against the encoder by itself.

    python -m benchmarks.embed WORK [--num-images 2048] [--rounds 2] [--models ViT-B-32 Carrara-S]

Same photos and captions in the same shards, same weights (ViT-B-32 of a random start in one file,
and the small encoder that ships, whose configuration is given to the peer's open_clip), same cores;
all sides in turn, so that a slow minute hits all. A side's rate is its images over the seconds from
its loaded model to its last array; what starting takes is told apart.

    carrara          as it comes: --precision auto
    clip-retrieval   as it comes, in an environment of its own: fp32 on a CPU, bf16 on a GPU
    encoder alone    the pictures' pixels and the captions in memory, in the precision that carrara
                     chose; the better of one process with all cores and one a core
    Ray Data         with --ray-data: the same work and files of the same layout, as a Ray Data
                     pipeline with an actor pool

Targets: 2 times clip-retrieval on a CPU, 90% of the encoder alone. Then how far bf16 is from fp32,
how far the rows of both sides are apart, and that the peer's own reader reads ours. --device cuda
runs all of it on a GPU.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.embed_corpus import NUM_SHARDS, SMALL, write_corpus, write_weights
from benchmarks.machine import processor
from benchmarks.peers import CLIP_RETRIEVAL, peer_python
from pipeline.corpus import iter_samples, read_manifest
from retrieval.embedding.embeddings import EMBEDDED_ENCODER, embeddings_url
from retrieval.encoding.weights import CONFIG_NAME, EMBEDDED_FOLDERS

NUM_CORES = os.cpu_count() or 1
PEER_TARGET, ALONE_TARGET = 2.0, 0.9

READ_BACK = """
import sys
from embedding_reader import EmbeddingReader
reader = EmbeddingReader(sys.argv[1] + "/img_emb", metadata_folder=sys.argv[1] + "/metadata",
                         meta_columns=["image_path", "caption"], file_format="parquet_npy")
rows = [len(batch) for batch, meta in reader(batch_size=1000, show_progress=False)]
print(sum(rows))
"""


@dataclass(frozen=True)
class Result:
    num_images: int
    working_s: float
    command_s: float

    @property
    def rate(self) -> float:
        return self.num_images / self.working_s


Side = Callable[[], Result]


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work.absolute()
    python = peer_python(work / "peer", *CLIP_RETRIEVAL)
    print(
        f"{NUM_CORES} cores of {processor()}, Python {platform.python_version()}, device "
        f"{arguments.device}"
    )
    for model in arguments.models:
        num_images = arguments.num_images * (1 if model != SMALL else arguments.small_factor)
        compare(work, python, model, num_images, arguments)


def compare(
    work: Path, python: Path, model: str, num_images: int, arguments: argparse.Namespace
) -> None:
    root = write_corpus(work, num_images)
    weights = write_weights(work, model)
    encoder = EMBEDDED_ENCODER if model == SMALL else f"{model}/{weights}"
    _tell_peer_of_small(python)
    peer_folder = work / "peer-output"
    sides: dict[str, Side] = {
        "carrara": lambda: run_ours(root, encoder, arguments.device),
        "clip-retrieval": lambda: run_peer(python, root, model, weights, peer_folder),
        "encoder alone": lambda: run_alone(root, encoder, num_images, arguments.device),
    }
    if arguments.ray_data:
        sides["Ray Data"] = lambda: run_ray_data(
            root, encoder, work / "ray-data-output", arguments.device
        )
    results: dict[str, list[Result]] = {name: [] for name in sides}
    print(f"{model}: {num_images} photos in {NUM_SHARDS} shards", flush=True)
    for number in range(arguments.rounds):
        for name, run in sides.items():
            result = run()
            assert result.num_images == num_images or name == "encoder alone"
            results[name].append(result)
            print(
                f"  round {number + 1}, {name:14} {result.rate:8.1f} images/s "
                f"({result.working_s:.1f} s of the command's {result.command_s:.1f})",
                flush=True,
            )
    for name, target in (("clip-retrieval", PEER_TARGET), ("encoder alone", ALONE_TARGET)):
        print(f"  {_ratio(results, name):.2f} times {name} (target {target:g})")
    if arguments.ray_data:
        print(f"  {_ratio(results, 'Ray Data'):.2f} times Ray Data")
    compare_precisions(root, encoder)
    compare_rows(python, Path(embeddings_url(root, encoder)), peer_folder)


def _ratio(results: dict[str, list[Result]], name: str) -> float:
    pairs = zip(results["carrara"], results[name], strict=True)
    return statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)


# The sides


def run_ours(root: str, encoder: str, device: str) -> Result:
    shutil.rmtree(embeddings_url(root, encoder), ignore_errors=True)
    command = [sys.executable, "carrara.py", "embed", root, "--encoder", encoder, "--json"]
    done, seconds = _run([*command, "--device", device])
    details = json.loads(done)["details"]
    shares = ", ".join(f"{step} {s:.1f} s" for step, s in details["worker_s"].items())
    print(f"    {details['precision']}; workers waited for {shares}")
    return Result(details["samples embedded now"], details["working_s"], seconds)


def run_peer(python: Path, root: str, model: str, weights: Path, output: Path) -> Result:
    shutil.rmtree(output, ignore_errors=True)
    settings = {
        "input_dataset": f"{root}/shards/{{00000..{NUM_SHARDS - 1:05d}}}.tar",
        "output_folder": output,
        "input_format": "webdataset",
        "clip_model": f"open_clip:{model}/{weights}",
        "enable_metadata": True,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    program = "from clip_retrieval.clip_inference.main import main; import fire; fire.Fire(main)"
    _, seconds = _run([str(python), "-c", program, *options])
    (stats,) = [path for path in (output / "stats").glob("*.json") if "wip" not in path.name]
    counted = json.loads(stats.read_text())
    return Result(counted["sample_count"], counted["total_duration"], seconds)


def run_alone(root: str, encoder: str, num_images: int, device: str) -> Result:
    """On a GPU one process is enough to keep it busy."""
    results = []
    for num_processes in {1, NUM_CORES if device == "cpu" else 1}:
        command = [sys.executable, "-m", "benchmarks.embed_alone", root, encoder]
        command += ["--device", device, "--num-processes", str(num_processes)]
        done, seconds = _run([*command, "--num-images", str(num_images)])
        counted = json.loads(done)
        results.append(Result(counted["num_images"], counted["seconds"], seconds))
    return max(results, key=lambda result: result.rate)


def run_ray_data(root: str, encoder: str, output: Path, device: str) -> Result:
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.embed_ray_data", root, encoder, str(output)]
    command += ["--device", device]
    if device != "cpu":
        command += ["--num-actors", "1", "--gpus-per-actor", "1"]
    done, seconds = _run(command)
    counted = json.loads(done)
    return Result(counted["num_images"], counted["seconds"], seconds)


def _run(command: list[str]) -> tuple[str, float]:
    """The last line that it prints, and its seconds; what it says on stderr only if it fails."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1], time.perf_counter() - start


# What both sides made


def compare_precisions(root: str, encoder: str) -> None:
    """Of 64 of the corpus's own pictures and captions."""
    from retrieval.encoding.encoder import load_encoder

    samples = list(islice(iter_samples(root, read_manifest(root).shards[0]), 64))
    whole, half = load_encoder(encoder), load_encoder(encoder, precision="bf16")
    pixels = np.stack([whole.preprocess(sample.image) for sample in samples])
    captions = [sample.caption for sample in samples]
    for what, rows, rounded in (
        ("pictures", whole.encode_pixels(pixels), half.encode_pixels(pixels)),
        ("captions", whole.encode_texts(captions), half.encode_texts(captions)),
    ):
        cosines = (rows * rounded).sum(axis=1)
        print(
            f"  bf16 against fp32: cosine of {what} at least {cosines.min():.5f}, mean "
            f"{cosines.mean():.5f}"
        )


def compare_rows(python: Path, ours: Path, theirs: Path) -> None:
    """Cosines of the rows of the same sample; for the small encoder the peer's open_clip crops
    where it should add borders, so those are of other pictures."""
    for modality in ("img_emb", "text_emb"):
        own, other = _rows_by_key(ours, modality), _rows_by_key(theirs, modality)
        cosines = [float(own[key] @ other[key]) for key in own.keys() & other.keys()]
        print(
            f"  {modality}: cosine with the peer's row of the same sample at least "
            f"{min(cosines):.4f}, mean {statistics.mean(cosines):.4f}"
        )
    num_read, _ = _run([str(python), "-c", READ_BACK, str(ours)])
    print(f"  the peer's embedding_reader reads {num_read} of our rows with their metadata")


def _rows_by_key(folder: Path, modality: str) -> dict[str, np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    for path in sorted((folder / modality).glob("*.npy")):
        number = path.stem.removeprefix(f"{modality}_")
        keys = pq.read_table(folder / "metadata" / f"metadata_{number}.parquet")["image_path"]
        rows |= zip(keys.to_pylist(), np.load(path).astype(np.float32), strict=True)
    return rows


def _tell_peer_of_small(python: Path) -> None:
    """open_clip finds models of its own by the files in a folder of its package."""
    program = "import open_clip, pathlib; print(pathlib.Path(open_clip.__file__).parent)"
    package, _ = _run([str(python), "-c", program])
    config = json.loads((EMBEDDED_FOLDERS[EMBEDDED_ENCODER] / CONFIG_NAME).read_text())
    path = Path(package) / "model_configs" / f"{SMALL}.json"
    path.write_text(json.dumps(config["model_cfg"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--num-images", type=int, default=2048)
    parser.add_argument("--small-factor", type=int, default=4, help="as many more for Carrara-S")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", SMALL])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ray-data", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
