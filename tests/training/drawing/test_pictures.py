from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra import storage
from infra.errors import InputError
from pipeline.corpus import iter_samples, read_manifest, selection_url
from training.data import decode
from training.drawing.pictures import among, choose, find_pictures, read_pictures
from training.drawing.png import png_bytes


def test_a_corpus_gives_the_pictures_asked_for_with_their_captions(shared_corpus: str) -> None:
    found = find_pictures(shared_corpus)
    assert [len(chunk.names) for chunk in found] == [12, 12]
    names = choose(found, 5, seed=0)
    read = [p for chunk in among(found, names) for p in read_pictures(chunk, 32)]
    assert {picture.name for picture in read} == set(names)
    assert all(picture.image.size == (32, 32) and picture.caption for picture in read)


def test_the_choice_is_random_but_the_same_each_time_and_a_smaller_one_its_beginning(
    shared_corpus: str,
) -> None:
    found = find_pictures(shared_corpus)
    names = choose(found, 24, seed=1)
    assert sorted(names) == sorted(name for chunk in found for name in chunk.names)
    assert choose(found, 7, seed=1) == names[:7]
    assert choose(found, 24, seed=2) != names


def test_a_selection_leaves_out_what_it_drops(small_corpus: str) -> None:
    names = [name for chunk in find_pictures(small_corpus) for name in chunk.names]
    keep = [i % 3 == 0 for i in range(24)]
    storage.publish_table(
        selection_url(small_corpus, "third"), pa.table({"uid": names, "keep": keep})
    )
    kept = [name for chunk in find_pictures(small_corpus, "third") for name in chunk.names]
    assert kept == names[::3]


def test_a_folder_of_pictures_will_do_and_captions_are_read_from_their_text(tmp_path: Path) -> None:
    wide = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).resize((20, 10))
    (tmp_path / "a.png").write_bytes(png_bytes(wide, {"caption": "a cat"}))
    wide.save(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("")
    (chunk,) = find_pictures(str(tmp_path))
    first, second = read_pictures(chunk, None)
    assert (first.name, first.caption, first.image.size) == ("a.png", "a cat", (20, 10))
    assert (second.name, second.caption) == ("b.jpg", None)
    (squared, _) = read_pictures(chunk, 10)
    assert np.array_equal(np.asarray(squared.image), np.asarray(wide.crop((5, 0, 15, 10))))


def test_pictures_are_scaled_as_training_scales_them(shared_corpus: str) -> None:
    (chunk, _) = find_pictures(shared_corpus)
    (shard, _) = read_manifest(shared_corpus).shards
    files = {sample.uid: sample.image for sample in iter_samples(shared_corpus, shard)}
    for picture in read_pictures(chunk, 16):
        assert np.array_equal(np.asarray(picture.image), decode(files[picture.name], 16))


def test_no_pictures_and_undecodable_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures; expected a corpus, or a folder"):
        find_pictures(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no picture")
    (chunk,) = find_pictures(str(tmp_path))
    for size in (None, 16):
        with pytest.raises(InputError, match=r"a\.png: (not a|undecodable) picture"):
            list(read_pictures(chunk, size))
