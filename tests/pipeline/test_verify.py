from pathlib import Path

import pytest

from infra.cluster import Workers
from infra.errors import DamagedError, InputError, ShortfallError
from pipeline import forget, score, select, verify
from pipeline.corpus import iter_samples, read_manifest, read_rows, write_shard
from pipeline.takedown.shard_forget import bits_of_file
from pipeline.takedown.tombstones import Kind, Tombstone, add_tombstones, url_digest


@pytest.fixture
def curated(small_corpus: str) -> str:
    here = Workers(local=True)
    score.run(score.Config(root=small_corpus, signals=("caption",), workers=here))
    select.run(select.Config(root=small_corpus, name="long", where="num_words > 2"))
    return small_corpus


def run(root: str) -> dict[str, int]:
    return verify.run(verify.Config(root=root)).counts


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_intact_corpus_passes(curated: str) -> None:
    assert run(curated) == {"shards intact": 4, "columns intact": 2, "selections intact": 1}


@pytest.mark.parametrize(
    "name",
    [
        "shards/00001.tar",
        "shards/00000.parquet",
        "columns/caption/00001.parquet",
        "selections/long.parquet",
    ],
)
def test_one_flipped_bit_is_found_and_named(curated: str, name: str) -> None:
    flip_a_byte(Path(curated, name))
    with pytest.raises(ShortfallError, match=rf"1 of 7 files .*say: {name} \(damaged\);"):
        run(curated)


def test_missing_files_are_named_beside_damaged_ones(curated: str) -> None:
    Path(curated, "shards/00000.tar").unlink()
    flip_a_byte(Path(curated, "shards/00001.tar"))
    with pytest.raises(ShortfallError) as caught:
        run(curated)
    assert "shards/00000.tar (missing), shards/00001.tar (damaged)" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_column_that_is_still_being_scored_is_left_alone(curated: str) -> None:
    Path(curated, "columns/caption/manifest.json").unlink()
    assert "columns intact" not in run(curated)


def test_no_corpus_and_a_broken_manifest_are_told_apart(curated: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no corpus here"):
        run(str(tmp_path / "nothing"))
    Path(curated, "manifest.json").write_text("{")
    with pytest.raises(DamagedError, match=r"manifest.json: damaged"):
        run(curated)


URL = "https://example.org/000000003.png"


def put_up(root: str, kind: Kind, value: str) -> None:
    """A tombstone that nothing has followed yet."""
    distance = 31 if kind == "picture" else None
    add_tombstones(root, [Tombstone(kind, value, distance, "2026-01-01", "none")])


def test_what_was_taken_down_is_found_wherever_it_still_is(curated: str) -> None:
    shard = read_manifest(curated).shards[0]
    row = next(row for row in read_rows(curated, shard).to_pylist() if row["url"] == URL)
    put_up(curated, "uid", row["uid"])
    with pytest.raises(ShortfallError) as caught:
        run(curated)
    assert (
        "4 files hold what was taken down: shards/00000.parquet (1), shards/00000.tar (1), "
        "columns/caption/00000.parquet (1), selections/long.parquet (1); run `carrara forget"
    ) in str(caught.value)


@pytest.mark.parametrize("kind", ["url", "sha256", "picture"])
def test_it_is_found_by_its_address_its_bytes_and_its_looks(curated: str, kind: Kind) -> None:
    shard = read_manifest(curated).shards[0]
    sample = next(s for s in iter_samples(curated, shard) if s.metadata["url"] == URL)
    bits = bits_of_file(sample.image)
    assert bits is not None
    values = {"url": url_digest(URL), "sha256": sample.metadata["sha256"], "picture": bits.hex()}
    put_up(curated, kind, values[kind])
    with pytest.raises(ShortfallError, match=r"shards/00000.tar \(1\)"):
        run(curated)


def test_a_finished_takedown_is_proven(curated: str) -> None:
    here = Workers(local=True)
    forget.run(forget.Config(root=curated, url=(URL,), workers=here))
    assert run(curated)["tombstones kept"] == 2  # the address, and the uid that it had


def test_a_takedown_that_was_killed_is_named(curated: str) -> None:
    Path(curated, "forget").mkdir()
    Path(curated, "forget", "plan.json").write_text("{}")
    with pytest.raises(ShortfallError, match="a takedown was begun and has not come to its end"):
        run(curated)


@pytest.mark.parametrize("folder", ["quarantine", "quarantine/retry-0123"])
def test_the_quarantine_is_searched_and_swept(curated: str, folder: str) -> None:
    shard = read_manifest(curated).shards[0]
    rows = read_rows(curated, shard)
    samples = list(iter_samples(curated, shard))
    write_shard(f"{curated}/{folder}", shard.name, samples, rows, {})
    put_up(curated, "url", url_digest(URL))
    with pytest.raises(ShortfallError, match=rf"{folder}/shards/00000.tar \(1\)"):
        run(curated)
    summary = forget.run(forget.Config(root=curated, workers=Workers(local=True)))
    assert summary.counts == {"rows found": 2, "by url": 2}
    assert "tombstones kept" in run(curated)
