"""The shards themselves: what is written can be read back, as a whole and one picture at a time."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import DamagedError
from pipeline.corpus import (
    PLACE_SCHEMA,
    ROW_SCHEMA,
    iter_samples,
    read_image,
    read_rows,
    write_shard,
)
from pipeline.sample import Sample, sample_uid


def _sample(number: int) -> Sample:
    url, caption = f"http://host/{number}", f"caption {number}"
    uid = sample_uid(url, caption)
    image = bytes([number]) * (100 + 700 * number)
    return Sample(f"00000{number:04d}", uid, caption, image, "jpg", {"uid": uid})


def _rows(samples: list[Sample]) -> pa.Table:
    rows = [{"key": sample.key, "uid": sample.uid, "status": "success"} for sample in samples]
    rows.insert(1, {"key": "000009999", "status": "failed_to_download"})
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


def test_one_picture_is_read_by_its_place_in_the_tar(tmp_path: Path) -> None:
    samples = [_sample(number) for number in range(4)]
    shard = write_shard(str(tmp_path), "00000", samples, _rows(samples), {})
    rows = read_rows(str(tmp_path), shard, ["key", *PLACE_SCHEMA.names]).to_pylist()
    assert rows[1] == {"key": "000009999", "image_offset": None, "image_size": None}
    pictures = {
        row["key"]: read_image(str(tmp_path), shard, row["image_offset"], row["image_size"])
        for row in rows
        if row["image_size"] is not None
    }
    assert pictures == {sample.key: sample.image for sample in samples}


def test_rows_that_were_stored_before_get_their_new_places(tmp_path: Path) -> None:
    samples = [_sample(number) for number in range(4)]
    old = write_shard(str(tmp_path / "old"), "00000", samples, _rows(samples), {})
    rows = read_rows(str(tmp_path / "old"), old)
    new = write_shard(str(tmp_path / "new"), "00000", samples[2:], rows, {})
    places = read_rows(str(tmp_path / "new"), new, ["key", *PLACE_SCHEMA.names]).to_pylist()
    assert [row["key"] for row in places if row["image_offset"] == 512] == [samples[2].key]
    assert [sample.key for sample in iter_samples(str(tmp_path / "new"), new)] == [
        sample.key for sample in samples[2:]
    ]


def test_a_shard_without_a_row_can_be_written(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path), "00000", [], ROW_SCHEMA.empty_table(), {})
    assert read_rows(str(tmp_path), shard).num_rows == 0


def test_a_shard_with_a_name_that_leads_out_of_it_is_damaged(tmp_path: Path) -> None:
    sample = replace(_sample(0), key="00000/../../0")
    shard = write_shard(str(tmp_path), "00000", [sample], _rows([sample]), {})
    with pytest.raises(DamagedError, match="leads out of the shard"):
        list(iter_samples(str(tmp_path), shard))
