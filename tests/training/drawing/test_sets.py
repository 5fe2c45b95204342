import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from infra.cluster import Workers
from infra.errors import ConflictError, InputError
from pipeline.corpus import iter_samples, read_manifest, read_rows
from training import sample

CAPTIONS = ("red heart", "a cat", "a cat in the snow")


def draw(run: str, output: Path, **changes: Any) -> dict[str, int]:
    settings: dict[str, Any] = {"captions": CAPTIONS, "num_images": 3, "num_steps": 4}
    settings |= {"layout": "shards", "samples_per_shard": 4, "workers": Workers(local=True)}
    summary = sample.run(sample.Config(run=run, output=str(output), **(settings | changes)))
    return summary.counts


def contents(folder: Path) -> dict[str, bytes]:
    """Without the only file that may hold times."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def pictures(root: Path) -> list[np.ndarray]:
    samples = (
        s for shard in read_manifest(str(root)).shards for s in iter_samples(str(root), shard)
    )
    return [np.asarray(Image.open(io.BytesIO(one.image)).convert("RGB")) for one in samples]


def test_shards_are_a_corpus_whose_pictures_say_what_they_are(
    trained_run: str, tmp_path: Path
) -> None:
    draw(trained_run, tmp_path / "set", seed=7)
    manifest = read_manifest(str(tmp_path / "set"))
    assert [shard.num_samples for shard in manifest.shards] == [4, 4, 1]
    samples = [s for shard in manifest.shards for s in iter_samples(str(tmp_path / "set"), shard)]
    assert [one.caption for one in samples] == [c for c in CAPTIONS for _ in range(3)]
    about = Image.open(io.BytesIO(samples[4].image)).info
    assert (about["caption"], about["number"], about["seed"]) == ("a cat", "4", "7")
    assert (about["checkpoint"], about["guidance_scale"]) == ("12", "3.0")
    assert (about["run"], len(about["weights"])) == ("run", 16)  # no path of this machine
    rows = read_rows(str(tmp_path / "set"), manifest.shards[1]).to_pylist()
    assert [row["number"] for row in rows] == [4, 5, 6, 7]
    with (tmp_path / "set" / "shards" / "00001.tar").open("rb") as tar:
        source = [{"url": "00001.tar", "stream": tar}]
        read = list(group_by_keys(tar_file_expander(source)))
    assert [one["txt"].decode() for one in read] == [one.caption for one in samples[4:8]]
    assert [one["png"] for one in read] == [one.image for one in samples[4:8]]


def test_files_and_shards_hold_the_same_pictures_and_a_table_names_them(
    trained_run: str, tmp_path: Path
) -> None:
    draw(trained_run, tmp_path / "shards")
    draw(trained_run, tmp_path / "files", layout="files")
    table = pq.read_table(tmp_path / "files" / "pictures.parquet").to_pylist()
    assert [row["caption"] for row in table] == [c for c in CAPTIONS for _ in range(3)]
    files = [np.asarray(Image.open(tmp_path / "files" / row["file"])) for row in table]
    assert np.array_equal(files, pictures(tmp_path / "shards"))


def test_a_killed_set_goes_on_with_what_is_missing_and_ends_as_it_would_have(
    trained_run: str, tmp_path: Path
) -> None:
    for layout, lost in (("shards", "shards/00001_stats.json"), ("files", "00000005.png")):
        folder = tmp_path / layout
        draw(trained_run, folder, layout=layout)
        whole = contents(folder)
        (folder / lost).unlink()
        for last in ("manifest.json", "pictures.parquet"):
            (folder / last).unlink(missing_ok=True)
        assert draw(trained_run, folder, layout=layout)["drawn now"] == 4
        assert contents(folder) == whole
        assert draw(trained_run, folder, layout=layout)["drawn now"] == 0


def test_one_ray_worker_or_two_leave_the_same_bytes(trained_run: str, tmp_path: Path) -> None:
    for num in (1, 2):
        draw(trained_run, tmp_path / str(num), workers=Workers(num_workers=num))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_picture_is_its_own_whatever_is_drawn_beside_it(trained_run: str, tmp_path: Path) -> None:
    for size in (1, 4):
        draw(trained_run, tmp_path / str(size), batch_size=size)
    draw(trained_run, tmp_path / "few", captions=CAPTIONS[:2], samples_per_shard=100)
    one, four, few = (pictures(tmp_path / name) for name in ("1", "4", "few"))
    # Rounding differs with the batch's size: by one of 255 at most, and seldom.
    apart = np.abs(np.array(one, np.int16) - np.array(four, np.int16))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01
    assert np.abs(np.array(few, np.int16) - np.array(four[:6], np.int16)).max() <= 1
    assert not np.array_equal(four[0], four[1])


def test_another_sets_folder_is_left_alone(trained_run: str, tmp_path: Path) -> None:
    draw(trained_run, tmp_path / "set")
    with pytest.raises(ConflictError, match=r"guidance_scale = 3\.0, now 5\.0"):
        draw(trained_run, tmp_path / "set", guidance_scale=5.0)
    with pytest.raises(ConflictError, match="another input"):
        draw(trained_run, tmp_path / "set", captions=("a dog",))
    draw(trained_run, tmp_path / "set", captions=("a dog",), overwrite=True)
    assert read_manifest(str(tmp_path / "set")).num_samples == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConflictError, match=r"not empty and not a set .*'thesis.txt'"):
        draw(trained_run, tmp_path / "mine")


def test_captions_come_from_files_and_mistakes_of_settings_are_named(
    trained_run: str, tmp_path: Path
) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"caption": "a dog"}) + "\n")
    counts = draw(trained_run, tmp_path / "set", captions_file=str(tmp_path / "list.jsonl"))
    assert counts["captions"] == 4
    with pytest.raises(InputError, match="no captions: expected at least one"):
        draw(trained_run, tmp_path / "none", captions=())
