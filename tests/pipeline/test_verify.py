from pathlib import Path

import pytest

from infra.cluster import Workers
from infra.errors import DamagedError, InputError, ShortfallError
from pipeline import score, select, verify


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
