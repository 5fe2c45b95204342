"""How long `carrara query` takes from a cold start, and what each way of it costs.

    python -m benchmarks.query_start ROOT [--num-rounds 5]

ROOT is a corpus indexed with an encoder that lies in a folder, such as the demo's. Each way is a
process of its own, the ways in turn: words by the command as it is, the same words by the whole
encoder (torch, torchvision and timm imported, as until now), and a picture of the corpus. Prints
the least wall time, and processor time, which other programs on the machine disturb less.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import processor
from pipeline.corpus import iter_samples, read_manifest

WORDS = "a cat"
WHOLE = """
import sys
from retrieval.asking.asker import Asker
from retrieval.asking.question import Question, Term
from retrieval.search import Retriever
asker = Asker(Retriever.open(sys.argv[1]))
print(asker.answer(Question(terms=[Term(text=sys.argv[2])], k=10)).hits)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--num-rounds", type=int, default=5)
    arguments = parser.parse_args()
    root = arguments.root
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "picture.jpg")
        sample = next(iter_samples(root, read_manifest(root).shards[0]))
        picture.write_bytes(sample.image)
        query = [sys.executable, "-m", "carrara", "query", root]
        ways = {
            "words": [*query, WORDS],
            "words, by the whole encoder": [sys.executable, "-c", WHOLE, root, WORDS],
            "a picture": [*query, "--image", str(picture), "--no-find-copy"],
            "a picture, told if a copy": [*query, "--image", str(picture)],
        }
        rounds = [
            {name: _timed(command) for name, command in ways.items()}
            for _ in range(arguments.num_rounds)
        ]
    print(f"{os.cpu_count()} cores of {processor()}, {arguments.num_rounds} rounds")
    for name in ways:
        walls, cpus = zip(*(one[name] for one in rounds), strict=True)
        print(f"{name:30} {min(walls):6.2f} s wall {min(cpus):6.2f} s processor")


def _timed(command: list[str]) -> tuple[float, float]:
    """Wall and processor seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


if __name__ == "__main__":
    main()
