from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, DamagedError
from pipeline import score
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_columns,
    read_manifest,
    read_rows,
    write_manifest,
    write_shard,
)

HERE = Workers(local=True)
LOGO, PIXEL = "a" * 64, "b" * 64


def rewrite(root: str, values: dict[int, dict[str, str | None]]) -> None:
    """Give samples, by their number in the corpus, another sha256 or URL."""
    manifest, shards, start = read_manifest(root), [], 0
    for shard in manifest.shards:
        rows = read_rows(root, shard)
        table = rows.to_pylist()
        for number in range(shard.num_samples):
            table[number].update(values.get(start + number, {}))
        start += shard.num_samples
        changed = pa.Table.from_pylist(table, rows.schema)
        samples = list(iter_samples(root, shard))
        shards.append(write_shard(root, shard.name, samples, changed, {}))
    write_manifest(root, manifest.model_copy(update={"shards": shards}))


def run(root: str, **options: str) -> list[int | None]:
    score.run(score.Config(root=root, signals=("placeholder",), workers=HERE, options=options))
    found: list[int | None] = read_columns(root, "placeholder")["num_urls"].to_pylist()
    return found


@pytest.fixture(params=["on disk", "in memory"])
def root(
    request: pytest.FixtureRequest, tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> str:
    on_disk = request.param == "on disk"
    root = str(tmp_path / "corpus") if on_disk else f"memory://{tmp_path.name}/corpus"
    make_corpus(root, num_samples=6)
    return root


def test_one_picture_under_many_urls_is_found_across_shards(root: str) -> None:
    rewrite(root, {1: {"sha256": LOGO}, 4: {"sha256": LOGO}, 8: {"sha256": LOGO}})
    assert run(root) == [1, 3, 1, 1, 3, 1, 1, 1, 3, 1, 1, 1]
    assert not storage.exists(storage.join(root, "columns", "placeholder", ".counts.partial"))


def test_one_url_fetched_twice_is_one_url(root: str) -> None:
    same: dict[str, str | None] = {"sha256": PIXEL, "url": "https://example.org/same.png"}
    rewrite(root, {0: same, 7: same, 9: {"sha256": PIXEL}})
    assert [run(root)[number] for number in (0, 7, 9)] == [2, 2, 2]


def test_a_picture_without_a_digest_scores_null(root: str) -> None:
    rewrite(root, {2: {"sha256": None}})
    assert run(root)[2] is None


def test_what_a_killed_command_left_is_not_believed(small_corpus: str) -> None:
    folder = Path(small_corpus, "columns", "placeholder")
    folder.mkdir(parents=True)
    (folder / ".counts.partial").write_bytes(b"cut short")
    assert set(run(small_corpus)) == {1}


def test_little_memory_is_enough_and_too_little_is_one_line(small_corpus: str) -> None:
    rewrite(small_corpus, {0: {"sha256": LOGO}, 1: {"sha256": LOGO}})
    assert run(small_corpus, memory_limit="100MB")[:3] == [2, 2, 1]
    storage.remove(storage.join(small_corpus, "columns"))
    with pytest.raises(ConfigError, match=r"options\.memory_limit 'lots'"):
        run(small_corpus, memory_limit="lots")


def test_a_damaged_parquet_is_one_line(small_corpus: str) -> None:
    parquet = Path(small_corpus, "shards", "00001.parquet")
    parquet.write_bytes(parquet.read_bytes()[:200])
    with pytest.raises(DamagedError, match="carrara verify"):
        run(small_corpus)
