"""Pictures whose sites forbid their use, and answers without an end: counted by their reasons."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from infra.summary import Summary
from pipeline.corpus import iter_samples, read_manifest, read_rows
from tests.pipeline.downloads import pictures

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

BY_ROBOTS_TAG, BY_TDM_HEADER = "disallowed by X-Robots-Tag", "disallowed by tdm-reservation"


def test_pictures_whose_answers_opt_out_are_left_out_and_counted(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    site.headers["/picture/1.jpg"] = {"X-Robots-Tag": "noai"}
    site.headers["/picture/2.jpg"] = {"TDM-Reservation": "1"}
    expected = {"success": 2, BY_ROBOTS_TAG: 1, BY_TDM_HEADER: 1}
    assert download(pictures(site, 4)).counts == expected
    root = str(tmp_path / "corpus")
    manifest = read_manifest(root)
    assert manifest.counts == expected
    (shard,) = manifest.shards
    assert [one.caption for one in iter_samples(root, shard)] == ["picture 0", "picture 3"]
    reasons = read_rows(root, shard)["error_message"].to_pylist()
    assert reasons == [None, BY_ROBOTS_TAG, BY_TDM_HEADER, None]


def test_opt_outs_that_a_policy_does_not_honour_keep_nothing_out(
    site: "Site", download: Callable[..., Summary]
) -> None:
    site.headers["/picture/1.jpg"] = {"X-Robots-Tag": "noai"}
    site.headers["/picture/2.jpg"] = {"TDM-Reservation": "1"}
    counts = download(pictures(site, 4), opt_outs=("tdm-header",)).counts
    assert counts == {"success": 3, BY_TDM_HEADER: 1}
    assert download(pictures(site, 4), "all", opt_outs=()).counts == {"success": 4}


def test_an_answer_without_an_end_is_too_large_and_counted(
    site: "Site", download: Callable[..., Summary], tmp_path: Path
) -> None:
    pairs = [*pictures(site, 2), (f"{site.url}/endless", "for ever")]
    assert download(pairs, max_bytes=100_000).counts == {"success": 2, "too large": 1}
    assert read_manifest(str(tmp_path / "corpus")).counts == {"success": 2, "too large": 1}
