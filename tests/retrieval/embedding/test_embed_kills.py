"""Workers and the command itself killed at random moments: the same bytes in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from infra.cluster import Workers
from pipeline.corpus import Manifest
from retrieval.embed import Config, run
from retrieval.embedding.embeddings import embeddings_url

SEED = 4
NUM_SHARDS, SAMPLES_A_SHARD = 120, 2
WORKER_KILLED_AT, DRIVER_KILLED_AT = 10, 60
"""Shards; up to ten more go by before."""
MAX_S = 240.0

REPOSITORY = Path(__file__).parents[2]
PROGRAM = "import sys; from retrieval.embed import Config, run\n"
PROGRAM += "run(Config.model_validate_json(sys.argv[1]))"


def test_kills_of_workers_and_drivers_change_no_byte(
    tmp_path: Path,
    tiny_encoder: str,
    make_corpus: Callable[..., Manifest],
    own_processes: Callable[[bytes], list[int]],
) -> None:
    root = str(tmp_path / "corpus")
    make_corpus(root, num_shards=NUM_SHARDS, num_samples=SAMPLES_A_SHARD)
    folder = Path(embeddings_url(root, tiny_encoder))
    workers = Workers(num_workers=2, cpus_per_worker=0.5)
    settings = Config(root=root, encoder=tiny_encoder, batch_size=1, workers=workers)
    rng = random.Random(SEED)
    command = [sys.executable, "-c", PROGRAM, settings.model_dump_json()]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    try:
        wait_for_parts(folder, WORKER_KILLED_AT + rng.randrange(10))
        time.sleep(rng.uniform(0, 0.05))
        os.kill(rng.choice(own_processes(b"ray::_Worker")), signal.SIGKILL)
        wait_for_parts(folder, DRIVER_KILLED_AT + rng.randrange(10))
        time.sleep(rng.uniform(0, 0.05))
    finally:
        driver.kill()
        driver.wait()
    assert NUM_SHARDS > num_parts(folder) >= DRIVER_KILLED_AT
    assert not (folder / "manifest.json").exists()
    here = settings.model_copy(update={"workers": Workers(local=True)})
    assert 0 < int(str(run(here).details["shards embedded now"])) < NUM_SHARDS
    disturbed = contents(folder)
    for path in folder.rglob("*.*"):
        path.unlink()
    run(here)
    assert contents(folder) == disturbed


def wait_for_parts(folder: Path, num: int) -> None:
    deadline = time.monotonic() + MAX_S
    while num_parts(folder) < num:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def num_parts(folder: Path) -> int:
    return len(list(folder.glob("parts/*.json")))


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
