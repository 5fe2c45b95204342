"""The whole way with ROOT and RUN on a real S3 server: the same commands, the same digests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import s3fs

import carrara
from examples.emoji.server import serve, write_list
from infra import storage
from pipeline.corpus import read_manifest, read_rows

TINY = str(Path(__file__).parent / "tiny.toml")

SECRETS = {
    "HF_TOKEN": "hf_planted-to-be-looked-for",
    "WANDB_API_KEY": "planted-beside-it-to-be-looked-for",
    "HTTPS_PROXY": "http://me:planted-as-a-password@127.0.0.1:9",
}
"""Beside the store's own; the proxy is asked for nothing here."""


@pytest.fixture
def ray_that_knows_the_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Workers inherit the environment of their cluster, so it has to start after the server."""
    ray.shutdown()
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    yield s3_endpoint
    ray.shutdown()


@pytest.mark.usefixtures("ray_that_knows_the_store")
def test_the_whole_way_over_s3(
    tmp_path: Path, s3_bucket: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.parquet"
    place = {name: storage.join(s3_bucket, name) for name in ("corpus", "packed", "run")}
    root, packed, run = place.values()
    on_disk = str(tmp_path / "corpus")
    with serve() as base_url:
        write_list(pairs, base_url, num_pictures=60)
        for corpus in (root, on_disk):
            carry_out("download", str(pairs), corpus)
    assert read_manifest(root).digest == read_manifest(on_disk).digest
    carry_out("embed", root)
    carry_out("index", root)
    carry_out("score", root)
    carry_out("select", root, "--where", "num_characters >= 3")
    carry_out("pack", root, packed)
    carry_out("query", root, "cat", "--html", str(tmp_path / "q.html"))
    carry_out("train", packed, run)
    carry_out("sample", run, "a cat", "--output", storage.join(run, "samples", "grid.png"))
    carry_out("verify", root)
    carry_out("report", root, "--packed", packed, "--run", run)
    assert storage.read_bytes(storage.join(run, "samples", "grid.png")).startswith(b"\x89PNG")
    assert "<html" in storage.read_text(storage.join(root, "report.html"))
    (row, *_) = read_rows(root, read_manifest(root).shards[0], ["uid"]).to_pylist()
    carry_out("forget", root, "--uid", row["uid"], "--note", "ticket 7")
    assert storage.list_names(storage.join(root, "receipts"))
    check_for_secrets(s3_bucket, *capfd.readouterr())

    damaged = storage.join(root, "shards", "00001.tar")
    content = storage.read_bytes(damaged)
    storage.publish_bytes(damaged, content[:700] + b"\xff" + content[701:])
    assert carrara.run_command(["verify", root]) == 1


def check_for_secrets(bucket: str, *said: str) -> None:
    """The credentials that every command used stand in no output, object or log of Ray's."""
    secrets = [os.environ["AWS_SECRET_ACCESS_KEY"], *SECRETS.values(), "planted-as-a-password"]
    for text in said:
        check(text.encode(), secrets, "what was said")
    objects = s3fs.S3FileSystem(skip_instance_cache=True).find(bucket)
    assert len(objects) > 50
    for name in objects:
        url = f"s3://{name}"
        content = storage.read_bytes(url)
        if name.endswith(".parquet"):
            content = repr(storage.read_table(url).to_pylist()).encode()
        check(content, secrets, url)
    session = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1]
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert logs
    for path in logs:
        check(path.read_bytes(), secrets, str(path))


def check(content: bytes, secrets: list[str], where: str) -> None:
    for secret in secrets:
        assert secret.encode() not in content, where


def carry_out(*argv: str) -> None:
    assert carrara.run_command([*argv, "--config", TINY]) == 0, argv
