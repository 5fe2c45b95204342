"""`carrara serve` against clip-retrieval 2.45's own back end, under many clients at once.

    python -m benchmarks.serve WORK [--clients 200] [--seconds 60] [--num-rows 100000]

The same index (made-up vectors, see clip_like.py), the same weights of ViT-B-32 (a random start:
speed does not depend on them), the same requests to the same endpoint, POST /knn-service for 40
hits with deduplication. Of ten requests seven are by words, no two alike, two by embeddings, one by
a picture of 224 x 224. Both servers run on this machine, on the loopback, and so do the clients;
each is asked in turn, and one of them is idle meanwhile. clip-retrieval's back end is Flask's own
server, as it ships: a thread a request, no queue. What it loads besides (aesthetic, safety and
multilingual models, from the network) is off on both sides.

First one client alone, for the time that an answer takes; then all of them. Memory is that of the
server's process after a tenth of the time, at half of it and at the end, so that growth which
levels off can be told from growth which does not. WORK keeps the corpus, the index, the weights and
the other's environment (6 GB with torch, once); --peer-python names one that is there.
"""

import argparse
import base64
import io
import json
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.clip_like import ClipLike, write_corpus
from benchmarks.embed_corpus import WORDS, write_weights
from benchmarks.http_load import Load, run_load
from benchmarks.peers import CLIP_RETRIEVAL, peer_python
from benchmarks.photos import photos
from retrieval import index
from retrieval.embedding.embeddings import index_url
from retrieval.encoding.weights import weights_digest

MODEL = "ViT-B-32"
NUM_HITS = 40
START_S = 300.0
WARM_S = 5.0
PARTS = (0.1, 0.4, 0.5)
"""Of the time: what grows in the first half and no more in the second has levelled off."""
MIX = ("text",) * 7 + ("embedding",) * 2 + ("image",)

PEER = """
import functools, importlib, sys
import flask

# By its name: the package calls a function by the same.
clip_back = importlib.import_module("clip_retrieval.clip_back")

# As `clip-retrieval back` runs it, but on the loopback alone.
flask.Flask.run = functools.partialmethod(
    lambda app, run, **options: run(app, **options | {"host": "127.0.0.1"}), flask.Flask.run
)
indices, port, model = sys.argv[1:]
clip_back.clip_back(
    indices_paths=indices, port=int(port), clip_model=model, use_jit=False,
    enable_mclip_option=False, provide_aesthetic_embeddings=False,
)
"""


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    pid: int

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> None:
    options = _arguments()
    work = Path(options.work)
    root = _corpus(work, options.num_rows)
    requests = Requests(root.name)
    with _ours(root, work) as ours, _theirs(root, work, options.peer_python) as theirs:
        for server in (ours, theirs):
            _load(server, requests, 1, WARM_S)
        alone = {one.name: _load(one, requests, 1, options.seconds / 6) for one in (ours, theirs)}
        crowd, memory = {}, {}
        for server in (ours, theirs):
            crowd[server.name], memory[server.name] = _weighed(server, requests, options)
    _print("one client", alone)
    _print(f"{options.clients} clients", crowd)
    for name, weighed in memory.items():
        first, half, last = (size / 2**20 for size in weighed)
        print(
            f"{name}: {first:,.0f} MiB after a tenth of the time, {half - first:+,.1f} until half "
            f"of it, {last - half:+,.1f} from there to the end"
        )
    mine, other = (crowd[one.name] for one in (ours, theirs))
    p99s = mine.quantile_ms(0.99) / max(other.quantile_ms(0.99), 1e-9)
    print(
        f"\ncarrara / clip-retrieval: {mine.rate / max(other.rate, 1e-9):.1f} x the answers a "
        f"second, {p99s:.2f} x the p99; errors: {mine.num_errors} and {other.num_errors}"
    )


class Requests:
    """The n-th request: the same for both sides."""

    def __init__(self, index_name: str, dim: int = 512) -> None:
        vectors = np.random.default_rng(0).normal(size=(200, dim)).astype(np.float32)
        self._vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()
        self._pictures = [_small(data) for data in _first(photos(20, 0), 20)]
        self._index_name = index_name

    def body(self, number: int) -> bytes:
        kind = MIX[number % len(MIX)]
        rng = random.Random(number)
        query = {
            "text": {"text": " ".join(rng.choices(WORDS, k=rng.randint(2, 8)))},
            "embedding": {"embedding_input": self._vectors[number % len(self._vectors)]},
            "image": {"image": self._pictures[number % len(self._pictures)]},
        }[kind]
        common = {
            "modality": "image",
            "num_images": NUM_HITS,
            "indice_name": self._index_name,
            "deduplicate": True,
        }
        return json.dumps(query | common).encode()


def _first(pictures: Iterator[bytes], num: int) -> list[bytes]:
    return [picture for picture, _ in zip(pictures, range(num), strict=False)]


def _small(data: bytes) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224)).save(out, "JPEG")
    return base64.b64encode(out.getvalue()).decode()


def _load(server: Server, requests: Requests, num_clients: int, seconds: float) -> Load:
    print(f"{server.name}: {num_clients} clients for {seconds:g} s", file=sys.stderr, flush=True)
    return run_load(
        server.port, "/knn-service", requests.body, num_clients=num_clients, seconds=seconds
    )


def _weighed(
    server: Server, requests: Requests, options: argparse.Namespace
) -> tuple[Load, list[int]]:
    """And the memory after each part of the time."""
    whole, sizes = Load(0.0), []
    for share in PARTS:
        load = _load(server, requests, options.clients, options.seconds * share)
        sizes.append(server.memory_bytes())
        whole.statuses.update(load.statuses)
        whole.latencies_s += load.latencies_s
        whole.seconds += load.seconds
    return whole, sizes


def _print(title: str, loads: dict[str, Load]) -> None:
    print(f"\n{title}")
    print(f"{'':16}{'answers/s':>11}{'p50 ms':>10}{'p99 ms':>10}{'errors':>8}")
    for name, load in loads.items():
        print(
            f"{name:16}{load.rate:>11.1f}{load.quantile_ms(0.5):>10.0f}"
            f"{load.quantile_ms(0.99):>10.0f}{load.num_errors:>8}  "
            + ", ".join(f"{num} x {status}" for status, num in load.statuses.items())
        )


# Both sides


def _corpus(work: Path, num_rows: int) -> Path:
    """Embeddings and their index, kept in WORK."""
    root = work / f"vectors-{num_rows}"
    weights = write_weights(work / "weights", MODEL)
    encoder = f"{MODEL}/{weights}"
    if not Path(index_url(str(root), encoder), "index.json").exists():
        shutil.rmtree(root, ignore_errors=True)
        made = ClipLike(num_rows)
        parts = (made.part(number) for number in range(made.num_parts))
        write_corpus(root, parts, encoder, weights_digest(encoder))
        index.run(index.Config(root=str(root)))
    return root


@contextmanager
def _ours(root: Path, work: Path) -> Iterator[Server]:
    port = _free_port()
    command = [sys.executable, "-m", "carrara", "serve", str(root), "--port", str(port)]
    # The made-up corpus has no pictures, and the other has none to send either.
    with _server("carrara", [*command, "--no-pictures-in-answers"], port, work) as server:
        yield server


@contextmanager
def _theirs(root: Path, work: Path, python: str | None) -> Iterator[Server]:
    interpreter = python or str(peer_python(work / "peer", *CLIP_RETRIEVAL))
    weights = write_weights(work / "weights", MODEL)
    folder = Path(index_url(str(root), f"{MODEL}/{weights}"))
    indices = work / "indices.json"
    indices.write_text(json.dumps({root.name: str(folder)}))
    port = _free_port()
    arguments = [str(indices), str(port), f"open_clip:{MODEL}/{weights}"]
    command = [interpreter, "-c", PEER, *arguments]
    with _server("clip-retrieval", command, port, work) as server:
        yield server


@contextmanager
def _server(name: str, command: list[str], port: int, work: Path) -> Iterator[Server]:
    log = work / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        _wait(process, port, log)
        yield Server(name, port, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/indices-list", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"did not start:\n{log.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("work", help="a folder to work in")
    parser.add_argument("--num-rows", type=int, default=100_000, help="of the index")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each side")
    parser.add_argument("--peer-python", help="of an environment that has clip-retrieval")
    return parser.parse_args()


if __name__ == "__main__":
    main()
