import io
import socket
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.made_corpus import change_samples
from infra.cluster import Workers
from infra.errors import ConfigError
from pipeline import score
from pipeline.corpus import (
    read_columns,
    read_manifest,
)
from pipeline.signals import shipped
from pipeline.signals.hashes import hash_picture
from pipeline.signals.pictures import decode
from pipeline.signals.safety import SafetySignal
from pipeline.signals.text_overlay import TextOverlaySignal

PICTURE_SIGNALS = {
    "image": ["entropy", "sharpness", "share_of_border"],
    "safety": SafetySignal.schema.names,
    "text_overlay": TextOverlaySignal.schema.names,
}
"""Columns that follow from the pixels."""
BROKEN = {2: b"<html>", 5: b"\xff\xd8\xff\xe0 cut", 7: b""}
"""Pictures that can't be decoded, by their number in the first shard."""


def encoded(size: tuple[int, int], kind: str = "JPEG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(file, kind)
    return file.getvalue()


def test_large_jpegs_are_decoded_no_larger_than_needed() -> None:
    picture = decode(encoded((1600, 1200)), "RGB", 320)
    assert picture is not None
    assert picture.size == (800, 600)
    assert picture.mode == "RGB"


def test_small_pictures_keep_their_size() -> None:
    picture = decode(encoded((64, 48), "PNG"), "L", 320)
    assert picture is not None
    assert (picture.size, picture.mode) == ((64, 48), "L")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_what_is_cut_short_is_not_decoded(kind: str, share: float) -> None:
    data = encoded((128, 96), kind)
    assert decode(data, "RGB", 320) is not None
    assert decode(data[: int(len(data) * share)], "RGB", 320) is None


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.signals.pictures.MAX_AREA", 100 * 100)
    assert decode(encoded((128, 96)), "RGB", 320) is None


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_no_format_that_a_shard_may_not_hold_is_decoded(kind: str) -> None:
    """Pillow starts Ghostscript for an EPS."""
    data = encoded((128, 96), kind)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == kind
    assert decode(data, "RGB", 320) is None
    assert set(hash_picture(data).values()) == {None}


@cache
def tiny(kind: str) -> bytes:
    return encoded((32, 32), kind)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"]), st.data())
def test_no_damage_raises(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(tiny(kind))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    decode(bytes(damaged), "RGB", 64)


def spoil(root: str) -> None:
    """Replace some pictures of the first shard by bytes that are none."""
    broken = {f"00000{number:04d}": image for number, image in BROKEN.items()}
    change_samples(root, lambda sample: replace(sample, image=broken.get(sample.key, sample.image)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a signal asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_undecodable_pictures_score_null_and_are_counted(small_corpus: str) -> None:
    spoil(small_corpus)
    signals = ("caption", *PICTURE_SIGNALS)
    summary = score.run(
        score.Config(root=small_corpus, signals=signals, workers=Workers(local=True))
    )
    for signal, columns in PICTURE_SIGNALS.items():
        assert summary.counts[f"{signal} with nulls"] == len(BROKEN)
        table = read_columns(small_corpus, signal)
        for name in columns:
            nulls = [i for i, value in enumerate(table[name].to_pylist()) if value is None]
            assert nulls == sorted(BROKEN), (signal, name)
    assert "caption with nulls" not in summary.counts


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"signals 'safety': .*`pip install nudenet`"):
        score.load_signal("safety", "/nowhere", {})


def test_a_gpu_that_the_runtime_cannot_use_is_one_line() -> None:
    signal = score.load_signal("safety", "/nowhere", {"device": "cuda"})
    with pytest.raises(ConfigError, match=r"gpus_per_worker: onnxruntime .* no GPU"):
        signal.identity()


@pytest.mark.parametrize("name", ["safety", "text_overlay"])
def test_the_number_of_threads_leaves_the_scores_as_they_are(small_corpus: str, name: str) -> None:
    shard = read_manifest(small_corpus).shards[0]
    alone, together = (
        score.load_signal(name, small_corpus, {"num_threads": num})(shard) for num in ("1", "2")
    )
    assert alone.equals(together)


def test_sessions_keep_to_their_worker_s_threads() -> None:
    model = shipped.shipped_model("safety", "nudenet", "nudenet", "320n.onnx")
    assert Path(model.path).is_file()
    session = shipped.open_session(model, {"num_threads": "1"})
    assert session.get_session_options().intra_op_num_threads == 1
    assert session.get_providers() == ["CPUExecutionProvider"]
