"""Files of others in ROOT/shards, as file managers and people leave them, stop nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra import storage
from infra.errors import ShortfallError
from infra.summary import Summary
from pipeline import verify
from pipeline.corpus import read_manifest
from pipeline.download import run
from pipeline.downloading import worklist
from tests.pipeline.downloads import begin, config, num_pictures_fetched, pictures

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

STRAYS = ("notes.json", ".DS_Store", "00007.tar.aria2")


def leave_strays(root: Path) -> None:
    (root / "shards").mkdir(parents=True, exist_ok=True)
    for name in STRAYS:
        (root / "shards" / name).write_bytes(b"\0not ours\xff")


def test_files_of_others_alone_are_no_corpus(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    leave_strays(tmp_path / "corpus")
    assert download(pictures(site, 4)).num_out == 4
    assert strays_of(tmp_path / "corpus") == {*STRAYS}


def test_a_list_without_a_picture_takes_none_of_them_along(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    leave_strays(tmp_path / "corpus")
    with pytest.raises(ShortfallError, match="none of its 4 rows"):
        download([(f"{site.url}/none-{i}.jpg", "") for i in range(4)])
    assert {path.name for path in (tmp_path / "corpus/shards").iterdir()} == {*STRAYS}


def test_a_corpus_that_is_replaced_takes_none_of_them_along(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    download(pictures(site, 8))
    leave_strays(tmp_path / "corpus")
    download(pictures(site, 3), overwrite=True)
    left = {path.name for path in (tmp_path / "corpus/shards").iterdir()}
    assert left == {*STRAYS, "00000.tar", "00000.parquet", "00000_stats.json"}


def strays_of(root: Path) -> set[str]:
    return {path.name for path in (root / "shards").iterdir()} & {*STRAYS}


def test_a_finished_corpus_is_fetched_no_second_time(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    first = download(pictures(site, 8))
    leave_strays(tmp_path / "corpus")
    site.hits.clear()
    again = download(pictures(site, 8))
    assert again.details["corpus_digest"] == first.details["corpus_digest"]
    assert num_pictures_fetched(site) == 0
    assert strays_of(tmp_path / "corpus") == {*STRAYS}
    verify.run(verify.Config(root=str(tmp_path / "corpus")))


@pytest.mark.parametrize("num_done", [0, 1])
def test_a_begun_corpus_goes_on_where_it_stopped(
    site: "Site", tmp_path: Path, num_done: int
) -> None:
    settings = config(tmp_path, pictures(site, 8), "corpus")
    whole = run(settings.model_copy(update={"root": str(tmp_path / "whole")}))
    root = tmp_path / "corpus"
    begin(settings)
    for shard in read_manifest(str(tmp_path / "whole")).shards[:num_done]:
        for suffix in (".tar", ".parquet", "_stats.json"):
            place = f"shards/{shard.name}{suffix}"
            storage.publish_bytes(str(root / place), (tmp_path / "whole" / place).read_bytes())
        record = worklist.ShardRecord(shard=shard, counts={"success": shard.num_samples})
        worklist.write_record(settings.root, record)
    leave_strays(root)
    (root / "download/done").mkdir(exist_ok=True)
    (root / "download/done/copy of 00000.json").write_bytes(b"\0not ours\xff")
    site.hits.clear()
    assert run(settings).details["corpus_digest"] == whole.details["corpus_digest"]
    assert num_pictures_fetched(site) == 8 - 4 * num_done
    assert strays_of(root) == {*STRAYS}
