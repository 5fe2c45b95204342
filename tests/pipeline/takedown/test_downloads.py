"""Downloads and packs, under way or later, bring nothing back."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ShortfallError
from pipeline import download, pack, verify
from pipeline.corpus import read_manifest, read_selection
from pipeline.takedown.asked import Request, asked_for
from pipeline.takedown.tombstones import TAKEN_DOWN, Tombstone, add_tombstones, read_tombstones
from tests.pipeline.takedown.forgotten import (
    HERE,
    URL,
    files,
    rows,
    run,
    samples,
    turned_copy,
)

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


def test_a_download_under_way_refuses_at_once(tmp_path: Path) -> None:
    root = str(tmp_path / "corpus")
    Path(root, "download").mkdir(parents=True)
    Path(root, "download", "plan.json").write_text("{}")
    with pytest.raises(ShortfallError, match="has not come to its end; it refuses from now on"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN


def test_a_later_download_refuses_it_and_keeps_nothing_of_it(site: "Site", tmp_path: Path) -> None:
    root = str(tmp_path / "corpus")
    urls = [site.picture(number) for number in range(4)]
    pairs = pa.table({"url": urls, "caption": ["one", "two", "three", "four"]})
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    settings: dict[str, Any] = {"image_size": 32, "allow_hosts": ["127.0.0.1"], "overwrite": True}
    places = {"url_list": str(tmp_path / "pairs.parquet"), "root": root, "workers": HERE}
    download.run(download.Config(**places, **settings))
    old = rows(root)
    site.hits.clear()
    run(root, url=(urls[0],), sha256=(old["000000001"]["sha256"],))
    for encode_quality in (95, 80):  # the same corpus again, and another one in its place
        download.run(download.Config(**places, **settings, encode_quality=encode_quality))
        assert list(samples(root)) == ["000000002", "000000003"]
        assert [row["url"] for row in rows(root).values()] == [None, None, *urls[2:]]
        verify.run(verify.Config(root=root))
    settings |= {"encode_quality": 80, "overwrite": False, "incremental_mode": "retry"}
    before = read_manifest(root).digest
    download.run(download.Config(**places, **settings))
    assert read_manifest(root).digest == before
    assert site.hits["/picture/0.jpg"] == 0


def test_a_later_pack_leaves_it_out(root: str, tmp_path: Path) -> None:
    image = tmp_path / "copy.png"
    kept = read_selection(root, "long")
    uid = kept.filter(kept["keep"])["uid"][0].as_py()
    turned_copy(next(s for s in samples(root).values() if s.uid == uid).image).save(image)
    stones = [Tombstone(*stone, "", "") for stone in asked_for(Request(near=(str(image),))).stones]
    add_tombstones(root, stones)  # as a takedown does that is killed right after
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=root, output=packed, selection="long"))
    assert uid not in {sample.uid for sample in samples(packed).values()}
    assert read_tombstones(packed).digest == read_tombstones(root).digest


def test_a_download_that_was_killed_brings_nothing_back(root: str) -> None:
    """Of a finished corpus: a retry, or another list's in its place. What it has is from before."""
    staged = Path(root, "download")
    staged.mkdir()
    (staged / "plan.json").write_text("{}")
    run(root, url=("https://example.com/not-in-the-corpus.jpg",))
    assert not staged.exists()


def test_a_download_about_to_be_put_in_place_comes_first(root: str) -> None:
    before = files(root)
    Path(root, "download").mkdir()
    Path(root, "download", "manifest.json").write_text("{}")
    with pytest.raises(ShortfallError, match="let it finish, then run `carrara forget"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN
    assert before.items() <= files(root).items()
