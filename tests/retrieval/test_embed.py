import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from benchmarks.made_corpus import change_samples
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError, ShortfallError
from infra.summary import Summary
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_manifest,
)
from pipeline.sample import Sample
from retrieval import embed
from retrieval.embedding.embed_workers import share_gpus
from retrieval.embedding.embeddings import (
    Part,
    embeddings_url,
    read_array,
    read_embeddings_manifest,
    read_metadata,
)
from retrieval.encoding.encoder import choose_precision, load_encoder
from retrieval.encoding.pictures import decode_picture

HERE = Workers(local=True)


def run(root: str, encoder: str, **settings: Any) -> Summary:
    settings = {"workers": HERE} | settings
    return embed.run(embed.Config(root=root, encoder=encoder, **settings))


def all_files(folder: str) -> dict[str, bytes]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_layout_is_clip_retrievals_and_rows_belong_together(
    small_corpus: str, tiny_encoder: str
) -> None:
    summary = run(small_corpus, tiny_encoder, batch_size=5, precision="fp32")
    assert summary.num_in == summary.num_out == 24
    folder = Path(embeddings_url(small_corpus, tiny_encoder))
    encoder = load_encoder(tiny_encoder)
    for i, shard in enumerate(read_manifest(small_corpus).shards):
        images = np.load(folder / f"img_emb/img_emb_{i}.npy")
        texts = np.load(folder / f"text_emb/text_emb_{i}.npy")
        metadata = pq.read_table(folder / f"metadata/metadata_{i}.parquet").to_pylist()
        assert images.dtype == texts.dtype == np.float16
        samples = list(iter_samples(small_corpus, shard))
        pixels = np.stack([encoder.preprocess(sample.image) for sample in samples])
        expected_images = encoder.encode_pixels(pixels)
        expected_texts = encoder.encode_texts([s.caption for s in samples])
        np.testing.assert_allclose(images, expected_images, atol=1e-3)
        np.testing.assert_allclose(texts, expected_texts, atol=1e-3)
        assert [row["uid"] for row in metadata] == [s.uid for s in samples]
        assert [row["image_path"] for row in metadata] == [s.key for s in samples]
        assert [row["caption"] for row in metadata] == [s.caption for s in samples]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
def test_captions_go_through_a_multilingual_text_tower(
    small_corpus: str, multilingual_encoder: str
) -> None:
    run(small_corpus, multilingual_encoder, precision="fp32")
    corpus = read_manifest(small_corpus)
    manifest = read_embeddings_manifest(small_corpus, multilingual_encoder, corpus)
    assert manifest.num_rows == 24
    encoder = load_encoder(multilingual_encoder)
    for part, shard in zip(manifest.parts, corpus.shards, strict=True):
        rows = read_array(embeddings_url(small_corpus, multilingual_encoder), part, "text")
        captions = [sample.caption for sample in iter_samples(small_corpus, shard)]
        np.testing.assert_allclose(rows, encoder.encode_texts(captions), atol=1e-3)


def test_a_running_line_tells_how_fast_it_goes_and_what_bounds_it(
    small_corpus: str,
    tiny_encoder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("infra.progress.LINE_EVERY_S", 0.0)  # such a run is shorter than that
    details: dict[str, Any] = run(small_corpus, tiny_encoder, batch_size=2).details
    lines = [one for one in capsys.readouterr().err.splitlines() if "24/24 images" in one]
    steps = "(read|decode|encode|write)"
    share = rf"{steps} \d+%"
    told = rf"embed: 24/24 images, [\d.,]+/s, .*bound by {steps} \({share}(, {share}){{3}}\)"
    assert re.fullmatch(told, lines[-1]), lines
    waited = details["worker_s"]
    assert waited.keys() == {"read", "decode", "encode", "write"}
    assert min(waited.values()) > 0
    assert sum(waited.values()) <= details["working_s"]


def test_file_names_sort_as_their_numbers(
    tmp_path: Path, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    root = str(tmp_path / "wide")
    make_corpus(root, num_shards=11, num_samples=1)
    run(root, tiny_encoder)
    names = sorted(
        path.name for path in Path(embeddings_url(root, tiny_encoder), "img_emb").iterdir()
    )
    assert names == [f"img_emb_{i:02d}.npy" for i in range(11)]


def test_two_ray_workers_write_the_bytes_that_one_process_writes(
    small_corpus: str, tiny_encoder: str
) -> None:
    run(small_corpus, tiny_encoder)
    folder = embeddings_url(small_corpus, tiny_encoder)
    here = all_files(folder)
    shutil.rmtree(folder)
    summary = run(small_corpus, tiny_encoder, workers=Workers(num_workers=2, cpus_per_worker=0.5))
    assert summary.details["samples embedded now"] == 24
    assert all_files(folder) == here


def test_a_killed_run_goes_on_and_ends_the_same(small_corpus: str, tiny_encoder: str) -> None:
    run(small_corpus, tiny_encoder)
    folder = embeddings_url(small_corpus, tiny_encoder)
    whole = all_files(folder)
    # As after a kill in the second shard: its arrays may be there, its record is not.
    Path(folder, "manifest.json").unlink()
    Path(folder, "parts/part_1.json").unlink()
    Path(folder, "metadata/metadata_1.parquet").unlink()
    Path(folder, "metadata/.metadata_1.parquet.12345678.partial").write_bytes(b"half")
    summary = run(small_corpus, tiny_encoder)
    assert summary.details["shards embedded now"] == 1
    assert summary.details["samples embedded now"] == 12
    assert all_files(folder) == whole
    assert run(small_corpus, tiny_encoder).details["shards embedded now"] == 0


def spoil_a_picture(root: str, key: str) -> None:
    """Cut one JPEG in its middle, as an encoder that crashed would leave it."""

    def cut(sample: Sample) -> Sample:
        half = sample.image[: len(sample.image) // 2]
        return replace(sample, image=half) if sample.key == key else sample

    change_samples(root, cut)


def test_an_undecodable_picture_is_counted_and_has_no_row(
    small_corpus: str, tiny_encoder: str
) -> None:
    spoil_a_picture(small_corpus, "000000003")
    summary = run(small_corpus, tiny_encoder)
    assert summary.counts == {"embedded": 23, "undecodable picture": 1}
    corpus = read_manifest(small_corpus)
    manifest = read_embeddings_manifest(small_corpus, tiny_encoder, corpus)
    folder = embeddings_url(small_corpus, tiny_encoder)
    first: Part = manifest.parts[0]
    assert (first.num_rows, first.num_undecodable) == (11, 1)
    assert summary.details["samples embedded now"] == 24
    assert read_array(folder, first, "image").shape == (11, 32)
    assert "000000003" not in read_metadata(folder, first)["image_path"].to_pylist()


def test_a_damaged_shard_is_named_and_the_others_are_kept(
    small_corpus: str, tiny_encoder: str
) -> None:
    tar = Path(small_corpus, "shards/00001.tar")
    tar.write_bytes(tar.read_bytes()[:20_000])
    with pytest.raises(ShortfallError, match=r"1 of 2 shards failed \(00001; .*damaged"):
        run(small_corpus, tiny_encoder)
    folder = Path(embeddings_url(small_corpus, tiny_encoder))
    assert (folder / "parts/part_0.json").exists()
    assert not (folder / "manifest.json").exists()


def test_vectors_that_overflow_are_told_of_and_not_stored(
    small_corpus: str, tiny_encoder: str, tmp_path: Path
) -> None:
    """As by a model whose numbers are too large for half precision, and for no other."""
    encoder = tmp_path / "loud"
    shutil.copytree(tiny_encoder, encoder)
    weights = encoder / "open_clip_model.safetensors"
    tensors = load_file(weights)
    tensors["visual.proj"] = tensors["visual.proj"] * 1e5
    save_file(tensors, weights)
    told = r"12 of 12 pictures and 0 of 12 captions .* not finite, .* in fp16; .*--precision fp32"
    with pytest.raises(ShortfallError, match=f"2 of 2 shards failed .*{told} --overwrite"):
        run(small_corpus, str(encoder), precision="fp16")
    folder = Path(embeddings_url(small_corpus, str(encoder)))
    assert not [*folder.rglob("*.npy"), *folder.rglob("part_*.json")]
    summary = run(small_corpus, str(encoder), precision="fp32", overwrite=True)
    assert summary.counts == {"embedded": 24}
    rows = np.load(folder / "img_emb/img_emb_0.npy").astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


def test_other_settings_conflict_until_told_to_overwrite(
    small_corpus: str, tiny_encoder: str
) -> None:
    run(small_corpus, tiny_encoder)
    with pytest.raises(ConflictError, match="precision"):
        run(small_corpus, tiny_encoder, precision="bf16")
    run(small_corpus, tiny_encoder, precision="bf16", overwrite=True)


def test_embeddings_of_another_state_of_the_corpus_are_refused(
    small_corpus: str, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    run(small_corpus, tiny_encoder)
    corpus = make_corpus(small_corpus, num_samples=6)
    with pytest.raises(ConflictError, match="another state of the corpus"):
        read_embeddings_manifest(small_corpus, tiny_encoder, corpus)
    with pytest.raises(ConflictError, match="another input"):
        run(small_corpus, tiny_encoder)


def test_a_corpus_that_grew_keeps_the_parts_of_unchanged_shards(
    tmp_path: Path, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    """From 9 shards to 12: the new names have more digits, and still come last."""
    root = str(tmp_path / "grown")
    make_corpus(root, num_shards=9, num_samples=1)
    run(root, tiny_encoder)
    folder = embeddings_url(root, tiny_encoder)
    before = all_files(folder)
    corpus = make_corpus(root, num_shards=12, num_samples=1)
    assert run(root, tiny_encoder).details["shards embedded now"] == 3
    after = all_files(folder)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"manifest.json", "stamp.json"}
    manifest = read_embeddings_manifest(root, tiny_encoder, corpus)
    assert [part.shard for part in manifest.parts] == [f"{i:05d}" for i in range(12)]
    numbers = [part.file_number for part in manifest.parts]
    assert numbers == [*"012345678", "9", "9_10", "9_11"]
    names = [f"img_emb_{number}.npy" for number in numbers]
    assert sorted(names) == names
    # As if all had been embedded at once, but for the names.
    shutil.rmtree(folder)
    run(root, tiny_encoder)
    whole = read_embeddings_manifest(root, tiny_encoder, corpus)
    digests = [[*part.files.values()] for part in manifest.parts]
    assert [[*part.files.values()] for part in whole.parts] == digests


def test_a_changed_shard_is_embedded_anew_when_told_to_overwrite(
    small_corpus: str, tiny_encoder: str
) -> None:
    run(small_corpus, tiny_encoder)
    spoil_a_picture(small_corpus, "000010002")
    with pytest.raises(ConflictError, match="another input"):
        run(small_corpus, tiny_encoder)
    summary = run(small_corpus, tiny_encoder, overwrite=True)
    assert summary.details["shards embedded now"] == 1
    assert summary.counts == {"embedded": 23, "undecodable picture": 1}


def test_arrays_that_a_killed_run_left_of_a_shard_that_is_gone_go_too(
    small_corpus: str, tiny_encoder: str
) -> None:
    run(small_corpus, tiny_encoder)
    folder = Path(embeddings_url(small_corpus, tiny_encoder))
    stray = folder / "img_emb/img_emb_7.npy"
    shutil.copy(folder / "img_emb/img_emb_0.npy", stray)
    run(small_corpus, tiny_encoder)
    assert not stray.exists()


def test_nothing_is_replaced_before_the_new_settings_are_seen_to_work(
    small_corpus: str, tiny_encoder: str, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_encoder, encoder)
    run(small_corpus, str(encoder))
    folder = embeddings_url(small_corpus, str(encoder))
    before = all_files(folder)
    (encoder / "open_clip_model.safetensors").write_bytes(b"a download cut short")
    with pytest.raises(InputError, match="nothing was replaced"):
        run(small_corpus, str(encoder), overwrite=True)
    assert all_files(folder) == before


def test_a_device_that_is_not_there_is_named(small_corpus: str, tiny_encoder: str) -> None:
    with pytest.raises(ValidationError, match="device"):
        embed.Config(root=small_corpus, encoder=tiny_encoder, device="gpu")
    with pytest.raises(ConfigError, match=r"--device 'cuda:99': this machine can't"):
        run(small_corpus, tiny_encoder, device="cuda:99")


def test_auto_precision_is_the_hardwares_and_stays_that_of_the_parts(
    small_corpus: str, tiny_encoder: str
) -> None:
    chosen = run(small_corpus, tiny_encoder).details["precision"]
    assert chosen == choose_precision("cuda" if torch.cuda.is_available() else "cpu")
    # As after a kill on a machine that has another.
    folder = Path(embeddings_url(small_corpus, tiny_encoder))
    other = "fp16" if chosen != "fp16" else "fp32"
    first, second = (folder / f"parts/part_{i}.json" for i in range(2))
    first.write_text(first.read_text().replace(f'"{chosen}"', f'"{other}"'))
    second.unlink()
    assert run(small_corpus, tiny_encoder).details["precision"] == other


def test_parts_of_several_precisions_are_no_embeddings(
    small_corpus: str, tiny_encoder: str
) -> None:
    run(small_corpus, tiny_encoder, precision="auto")
    first = Path(embeddings_url(small_corpus, tiny_encoder), "parts/part_0.json")
    part = Part.model_validate_json(first.read_text())
    first.write_text(part.model_copy(update={"precision": "other"}).model_dump_json())
    with pytest.raises(ConflictError, match="--precision"):
        run(small_corpus, tiny_encoder)


def test_the_thread_count_changes_no_byte(small_corpus: str, tiny_encoder: str) -> None:
    run(small_corpus, tiny_encoder)
    folder = embeddings_url(small_corpus, tiny_encoder)
    one = all_files(folder)
    shutil.rmtree(folder)
    num_before = torch.get_num_threads()
    run(small_corpus, tiny_encoder, workers=Workers(local=True, cpus_per_worker=2))
    torch.set_num_threads(num_before)
    assert all_files(folder) == one


@pytest.mark.parametrize(
    ("num_cpus", "num_gpus", "expected"),
    [(16, 0, (1, 0)), (16, 1, (2, 1 / 8)), (64, 8, (1, 1 / 8)), (4, 1, (1, 1 / 8))],
)
def test_gpus_are_shared_so_that_every_core_decodes_for_them(
    num_cpus: int, num_gpus: int, expected: tuple[float, float]
) -> None:
    shared = share_gpus(Workers(), num_cpus, num_gpus)
    assert (shared.cpus_per_worker, shared.gpus_per_worker) == expected


def test_an_unknown_encoder_fails_before_anything_is_written(small_corpus: str) -> None:
    with pytest.raises(InputError, match="nearest"):
        run(small_corpus, "ViT-B-32/laion")
    assert not Path(small_corpus, "embeddings").exists()


def test_pictures_are_upright_rgb_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(path, exif=exif)
    picture = decode_picture(path.read_bytes())
    assert (picture.mode, picture.size) == ("RGB", (2, 4))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
