"""What tests share: a real S3 server, and a little corpus of real pictures."""

import csv
import io
import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from benchmarks.made_corpus import made_sample, write_made_manifest
from pipeline.corpus import ROW_SCHEMA, Manifest, Shard, write_shard
from pipeline.sample import sample_uid

S3_SECRET = "planted-to-be-looked-for-where-no-secret-belongs"
"""The server takes any."""

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS server with its S3 gateway, and the environment that points S3 clients to it.

    The environment is set before any Ray of the test run starts, so that its workers inherit it.
    """
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = _free_ports(4)
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    command = [str(weed), "server", f"-dir={folder}", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["-volume.max=1000", "-master.volumeSizeLimitMB=64"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # their ports are fixed, and not needed
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports[-1]}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _wait_until_it_answers(endpoint, folder / "log")
        yield endpoint
    finally:
        server.kill()  # what it holds is thrown away
        server.wait()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture
def s3_bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket of the test's own."""
    import s3fs

    name = f"test-{abs(hash(request.node.nodeid)):x}"
    s3fs.S3FileSystem(endpoint_url=s3_endpoint, skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def own_processes() -> Callable[[bytes], list[int]]:
    """own_processes(b"ray::_Worker") are the ids of those with this in their command line that
    descend from the test, and from no other that runs here."""
    return _processes


def _processes(name: bytes) -> list[int]:
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z" and name in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
            parents[int(folder.name)] = int(parent)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile

    def is_own(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return sorted(process for process in found if is_own(process))


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    return _free_ports


def _free_ports(num: int) -> list[int]:
    """Ports that are free, and whose gRPC twins 10,000 above are free too, as SeaweedFS needs."""
    found: list[int] = []
    candidate = 20_000 + os.getpid() % 10_000
    while len(found) < num:
        candidate += 1
        if all(_is_free(port) for port in (candidate, candidate + 10_000)):
            found.append(candidate)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_it_answers(endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=2).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Manifest]:
    """make_corpus(root, num_shards=2, num_samples=12) writes a corpus of emoji at `root`.

    Each shard also has one row that failed. `captions` and `urls` replace some by their number.
    """

    def make(
        root: str,
        num_shards: int = 2,
        num_samples: int = 12,
        captions: dict[int, str] | None = None,
        urls: dict[int, str] | None = None,
    ) -> Manifest:
        pictures = _pictures(num_shards * num_samples)
        for number, caption in (captions or {}).items():
            pictures[number] = (caption, pictures[number][1])
        shards = [
            _make_shard(
                root,
                f"{i:05d}",
                pictures[i * num_samples : (i + 1) * num_samples],
                {n - i * num_samples: url for n, url in (urls or {}).items()},
            )
            for i in range(num_shards)
        ]
        return write_made_manifest(root, shards, failed={"failed_to_download": num_shards})

    return make


@pytest.fixture
def small_corpus(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    """The root of a fresh corpus: 2 shards of 12 emoji each, and 2 rows that failed."""
    root = str(tmp_path / "corpus")
    make_corpus(root)
    return root


def _pictures(num: int) -> list[tuple[str, bytes]]:
    """(caption, JPEG) of the first emoji."""
    with (EMOJI / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:num]
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        return [(row["caption"], _jpeg(archive.read(row["file_name"]))) for row in rows]


def _jpeg(png: bytes) -> bytes:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    out = io.BytesIO()
    page.convert("RGB").save(out, "JPEG", quality=95)
    return out.getvalue()


def _make_shard(
    root: str, name: str, pictures: list[tuple[str, bytes]], urls: dict[int, str]
) -> Shard:
    sides: dict[str, Any] = {
        "width": 64,
        "height": 64,
        "original_width": 640,
        "original_height": 480,
    }
    keys = [f"{name}{i:04d}" for i in range(len(pictures) + 1)]
    samples = [
        made_sample(key, urls.get(i) or _url(key), caption, image, **sides)
        for i, (key, (caption, image)) in enumerate(zip(keys[:-1], pictures, strict=True))
    ]
    rows = [*(sample.metadata for sample in samples), _failed_row(keys[-1])]
    stats = {"count": len(rows), "successes": len(samples)}
    return write_shard(root, name, samples, pa.Table.from_pylist(rows, ROW_SCHEMA), stats)


def _failed_row(key: str) -> dict[str, Any]:
    url, caption = _url(key), "a picture that is gone"
    row = {"key": key, "uid": sample_uid(url, caption), "url": url, "caption": caption}
    return row | {"status": "failed_to_download", "error_message": "HTTP 404"}


def _url(key: str) -> str:
    return f"https://example.org/{key}.png"
