"""Downloads from a list on disk, and what is seen of them on disk and on the site."""

import gc
import hashlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.cluster import Workers
from pipeline.download import Config
from pipeline.downloading import worklist
from pipeline.downloading.pairs import open_pairs

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

Pair = tuple[Any, Any]
HERE = Workers(local=True)
REPOSITORY = Path(__file__).parents[2]
PROGRAM = "import sys; from pipeline.download import Config, run\n"
PROGRAM += "run(Config.model_validate_json(sys.argv[1]))"


def config(
    folder: Path, pairs: Sequence[Pair], root: str, name: str | None = None, **settings: Any
) -> Config:
    """Of a list of these pairs; `name` is the list's, where it isn't the corpus's."""
    path = folder / f"{name or root}.parquet"
    urls, captions = zip(*pairs, strict=True)
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    defaults: dict[str, Any] = {
        "allow_hosts": ["127.0.0.1"],
        "image_size": 32,
        "number_sample_per_shard": 4,
        "thread_count": 4,
        "retries": 0,
        "workers": HERE,
    }
    return Config(url_list=str(path), root=str(folder / root), **defaults | settings)


def pictures(site: "Site", num: int) -> list[Pair]:
    return [(site.picture(i), f"picture {i}") for i in range(num)]


def picture_hits(site: "Site") -> list[int]:
    return [num for path, num in site.hits.items() if path.startswith("/picture/")]


def num_pictures_fetched(site: "Site") -> int:
    return sum(picture_hits(site))


def contents(root: Path) -> dict[str, str]:
    """sha256 of all that must come out the same: everything but the shards' times."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.endswith("_stats.json")
    }


def read_webdataset(tars: list[str]) -> list[dict[str, Any]]:
    import webdataset

    with warnings.catch_warnings():
        # webdataset leaves its files to be closed by the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False))
        gc.collect()
    return samples


def begin(settings: Config) -> None:
    """What a run leaves that was killed before its first shard."""
    pairs = open_pairs(settings.url_list, settings.columns)
    rows_a_slice = settings.number_sample_per_shard
    plan = worklist.Plan(
        input_digest=pairs.digest(),
        config=settings.identity(),
        config_digest=settings.digest(),
        num_rows=worklist.write_slices(settings.root, pairs, rows_a_slice),
        rows_a_slice=rows_a_slice,
    )
    worklist.write_plan(settings.root, plan)


def start_driver(settings: Config, **options: Any) -> "subprocess.Popen[bytes]":
    """The download in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, settings.model_dump_json()]
    return subprocess.Popen(command, cwd=REPOSITORY, **options)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
