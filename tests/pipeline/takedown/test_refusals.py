"""Every kind of tombstone is refused by a later download, whatever named it to `forget`."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageOps

from infra.summary import Summary
from pipeline import forget
from pipeline.corpus import Manifest, iter_samples, read_manifest
from pipeline.takedown.asked import Request, asked_for
from pipeline.takedown.tombstones import TAKEN_DOWN, Tombstone, add_tombstones, read_tombstones
from tests.pipeline.downloads import HERE, pictures

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site


@pytest.fixture
def turned_away(tmp_path: Path) -> Callable[[Request], str]:
    """turned_away(request): the root of a corpus to be that has these tombstones already."""
    root = str(tmp_path / "corpus")

    def make(request: Request) -> str:
        stones = [Tombstone(*stone, "", "") for stone in asked_for(request).stones]
        add_tombstones(root, stones)
        return root

    return make


def test_a_download_refuses_what_looks_like_a_picture_that_was_taken_down(
    site: "Site",
    download: Callable[..., Summary],
    turned_away: Callable[[Request], str],
    tmp_path: Path,
) -> None:
    copy = ImageOps.mirror(Image.open(io.BytesIO(site.jpeg(1))))
    copy.save(tmp_path / "copy.jpg", quality=80)
    root = turned_away(Request(near=(str(tmp_path / "copy.jpg"),)))
    counts = download(pictures(site, 4), resize_mode="no").counts
    assert counts == {"success": 3, TAKEN_DOWN: 1}
    (shard,) = read_manifest(root).shards
    kept = [sample.caption for sample in iter_samples(root, shard)]
    assert kept == ["picture 0", "picture 2", "picture 3"]


def test_a_download_fetches_nothing_of_a_domain_that_was_taken_down(
    site: "Site", download: Callable[..., Summary], turned_away: Callable[[Request], str]
) -> None:
    """The site has two names, of which one was taken down."""
    port = site.url.rpartition(":")[2]
    turned_away(Request(domain=("localhost",)))
    pairs = [*pictures(site, 2), (f"http://localhost:{port}/picture/2.jpg", "by its other name")]
    counts = download(pairs, allow_hosts=("127.0.0.1", "localhost")).counts
    assert counts == {"success": 2, TAKEN_DOWN: 1}
    assert site.hits["/picture/2.jpg"] == 0


def test_a_list_of_domains_takes_the_rows_of_each(
    tmp_path: Path, make_corpus: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "corpus")
    urls = {1: "https://cdn.example.com/1.png", 4: "https://example.net/4.png"}
    make_corpus(root, num_samples=4, urls=urls)
    (tmp_path / "domains").write_text("# by mail\nexample.com\n\nexample.net\n")
    summary = forget.run(
        forget.Config(root=root, domain_list=str(tmp_path / "domains"), workers=HERE)
    )
    assert summary.counts == {"rows found": 2, "by domain": 2}
    manifest = read_manifest(root)
    left = {one.metadata["url"] for s in manifest.shards for one in iter_samples(root, s)}
    assert len(left) == 6
    assert left.isdisjoint(urls.values())
    tombstones = read_tombstones(root)
    assert tombstones.reason(url="https://www.example.net/other.png") == TAKEN_DOWN
    assert tombstones.reason(url="https://example.org/other.png") is None
