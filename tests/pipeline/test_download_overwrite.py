"""A corpus that is there already: what another list or other settings may do to it."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ConflictError, InputError, ShortfallError
from infra.summary import Summary
from pipeline.corpus import read_manifest
from pipeline.download import run
from pipeline.takedown.tombstones import Tombstone, add_tombstones
from tests.pipeline.downloads import config, contents, pictures

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def test_a_list_that_gives_nothing_does_not_cost_the_old_corpus(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 6))
    (tmp_path / "corpus" / "columns").mkdir()
    before = contents(tmp_path / "corpus")
    with pytest.raises(ShortfallError, match="none of its 4 rows gave a picture"):
        download([(f"{site.url}/none.jpg?{i}", "gone") for i in range(4)], overwrite=True)
    assert contents(tmp_path / "corpus") == before
    assert (tmp_path / "corpus" / "columns").exists()
    assert not (tmp_path / "corpus" / "download").exists()


def test_another_list_into_the_same_place_is_a_conflict(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    before = contents(tmp_path / "corpus")
    other = config(tmp_path, pictures(site, 5), "other")
    other = other.model_copy(update={"root": str(tmp_path / "corpus")})
    with pytest.raises(ConflictError, match="another list") as caught:
        run(other)
    assert "--overwrite" in str(caught.value)
    assert contents(tmp_path / "corpus") == before


def test_another_configuration_is_a_conflict_that_names_the_settings(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    before = contents(tmp_path / "corpus")
    with pytest.raises(ConflictError, match="image_size = 32, now 16"):
        download(pictures(site, 4), image_size=16)
    assert contents(tmp_path / "corpus") == before


def test_shards_of_another_program_are_not_written_over(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    (tmp_path / "corpus" / "shards").mkdir(parents=True)
    (tmp_path / "corpus" / "shards" / "00000.tar").write_bytes(b"theirs")
    with pytest.raises(ConflictError, match="unknown origin"):
        download(pictures(site, 4))
    assert (tmp_path / "corpus" / "shards" / "00000.tar").read_bytes() == b"theirs"


def test_overwrite_replaces_the_corpus_and_what_was_made_from_it(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 8))
    (tmp_path / "corpus" / "columns" / "caption").mkdir(parents=True)
    add_tombstones(str(tmp_path / "corpus"), [Tombstone("uid", "0" * 32, None, "", "")])
    download(pictures(site, 4), overwrite=True)
    fresh = download(pictures(site, 4), "fresh")
    (tmp_path / "corpus" / "tombstones.parquet").unlink()
    assert contents(tmp_path / "corpus") == contents(tmp_path / "fresh")
    assert read_manifest(str(tmp_path / "corpus")).digest == fresh.details["corpus_digest"]


def test_a_list_that_breaks_half_way_leaves_the_old_corpus_as_it_was(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 4))
    shards = contents(tmp_path / "corpus")
    bad = tmp_path / "bad.csv.gz"
    rows = "".join(f"http://a/{i}.jpg,{'x' * 100}\n" for i in range(20_000))
    packed = gzip.compress(f"url,caption\n{rows}".encode())
    bad.write_bytes(packed[: len(packed) * 3 // 4])
    settings = config(tmp_path, pictures(site, 4), "corpus", overwrite=True)
    settings = settings.model_copy(update={"number_sample_per_shard": 10_000})
    with pytest.raises(InputError, match="can't be read as csv"):
        run(settings.model_copy(update={"url_list": str(bad)}))
    kept = contents(tmp_path / "corpus")
    assert {name: kept[name] for name in shards} == shards
