"""What a takedown leaves behind of itself: tombstones at once, a receipt once all is done."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.errors import ShortfallError
from pipeline.corpus import SUCCESS, read_manifest
from pipeline.takedown.receipts import Receipt, read_receipts
from pipeline.takedown.tombstones import TAKEN_DOWN, read_tombstones
from tests.pipeline.takedown.forgotten import KEY, URL, files, run, samples


def test_the_receipt_tells_what_was_done_by_digests(root: str) -> None:
    before = files(root)
    old = read_manifest(root)
    summary = run(root, url=(URL,), note="ticket 7")
    after = files(root)
    receipt = Receipt.model_validate_json(Path(summary.outputs["receipt"]).read_text())
    assert receipt.asked[0].note == "ticket 7"
    assert receipt.found == {"url": 1}
    assert receipt.shards == ["00000"]
    assert receipt.corpus_digest.before == old.digest
    assert receipt.corpus_digest.after == read_manifest(root).digest
    for name, change in receipt.files.items():
        assert (change.before, change.after) == (before[name][0], after[name][0]), name
        assert change.before != change.after
    table = pq.read_table(summary.outputs["receipt"].replace(".json", ".files.parquet"))
    assert table.num_rows == len(receipt.files) + receipt.num_unchanged
    for row in table.to_pylist():
        assert row["before"] == before[row["path"]][0]
        assert row["after"] == after[row["path"]][0]
    moved = pq.read_table(summary.outputs["receipt"].replace(".json", ".rows.parquet"))
    assert moved["key"].to_pylist() == [KEY]
    assert moved["status"].to_pylist() == [SUCCESS]


def test_tombstones_stand_even_where_a_shard_is_damaged(root: str) -> None:
    tar = Path(root, "shards/00000.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    with pytest.raises(ShortfallError, match=r"1 of 3 shards failed.*run the command again"):
        run(root, url=(URL,))
    assert read_tombstones(root).reason(url=URL) == TAKEN_DOWN
    tar.write_bytes(whole)
    run(root)
    assert KEY not in samples(root)
    assert len(read_receipts(root)) == 1


def test_requests_that_come_while_one_is_unfinished_share_its_receipt(root: str) -> None:
    tar = Path(root, "shards/00000.tar")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    for url in (URL, "https://example.org/000000002.png"):
        with pytest.raises(ShortfallError):
            run(root, url=(url,))
    tar.write_bytes(whole)
    assert run(root, url=("https://example.org/000000001.png",)).counts["rows found"] == 3
    (receipt,) = read_receipts(root)
    assert len(receipt.asked) == 3
    assert {stone.receipt for stone in read_tombstones(root).stones} == {receipt.name}
