import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from pipeline.signals.text_overlay import (
    TextOverlaySignal,
    as_json,
    overlap,
    share_of_area,
)


def photo(seed: int) -> Image.Image:
    """256 x 192, soft colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(colours).resize((256, 192), Image.Resampling.BICUBIC)


def poster(text: str, seed: int = 0, size: int = 20) -> Image.Image:
    picture = photo(seed)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    box = draw.multiline_textbbox((10, 40), text, font)
    draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), "white")
    draw.multiline_text((10, 40), text, "black", font)
    return picture


@pytest.fixture(scope="module")
def signal() -> TextOverlaySignal:
    return TextOverlaySignal("/nowhere", {})


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("SUMMER SALE", "Summer sale"),
        ("Keep calm and\ncarry on", "keep calm and carry on"),
        ("fresh coffee 2024", "Fresh Coffee, 2024!"),
    ],
)
def test_rendered_text_is_read_and_overlaps_with_its_caption(
    signal: TextOverlaySignal, text: str, caption: str
) -> None:
    scores = signal.read(poster(text), caption)
    assert scores["text_in_picture"].split() == text.split()
    assert scores["num_text_boxes"] == len(text.splitlines())
    assert scores["caption_overlap"] == 1
    assert 0.03 < scores["share_of_text"] < 0.4


def test_a_caption_that_says_something_else_does_not_overlap(signal: TextOverlaySignal) -> None:
    picture = poster("SUMMER SALE")
    assert signal.read(picture, "a red bicycle by a wall")["caption_overlap"] == 0
    half = signal.read(picture, "bicycle in the summer sale")["caption_overlap"]
    assert half == pytest.approx(2 / 5)


def test_a_picture_without_text_has_none(signal: TextOverlaySignal) -> None:
    scores = signal.read(photo(1), "summer sale")
    assert scores == {
        "num_text_boxes": 0,
        "share_of_text": 0,
        "caption_overlap": 0,
        "text_in_picture": "",
        "text_boxes": "[]",
    }


def test_boxes_lie_where_the_text_is(signal: TextOverlaySignal) -> None:
    (corners,) = json.loads(signal.read(poster("SUMMER SALE"), "")["text_boxes"])
    xs, ys = np.array(corners).T * np.array([[256], [192]])
    assert 0 <= xs.min() < 20
    assert 100 < xs.max() < 190
    assert 30 < ys.min() < 50
    assert 55 < ys.max() < 80


def test_larger_text_covers_more_and_overlapping_boxes_count_once() -> None:
    left = np.array([[[0, 0], [49, 0], [49, 99], [0, 99]]])
    assert share_of_area(left, 100, 100) == pytest.approx(0.5)
    both = np.concatenate([left, left + np.array([20, 0])])
    assert share_of_area(both, 100, 100) == pytest.approx(0.7)
    assert share_of_area(np.zeros((0, 4, 2)), 100, 100) == 0


def test_boxes_beyond_the_picture_end_at_its_edge() -> None:
    box = np.array([[[-3.0, 5], [120, 5], [120, 60], [-3, 60]]])
    assert as_json(box, 100, 50) == "[[[0.0,0.1],[1.0,0.1],[1.0,1.0],[0.0,1.0]]]"


@pytest.mark.parametrize(
    ("caption", "text", "share"),
    [
        ("Summer sale", "SUMMERSALE", 1),  # the reader lost the space
        ("art", "party", 0),  # too short to count as part of a word
        ("上海的夜景", "上海", 2 / 5),  # characters, where there are no spaces
        ("ｓａｌｅ", "SALE", 1),  # full-width letters
        ("sale sale cat", "sale", 1 / 2),
        ("", "sale", 0),
        ("!!!", "sale", 0),
    ],
)
def test_overlap_is_the_share_of_the_captions_words(caption: str, text: str, share: float) -> None:
    assert overlap(caption, text) == pytest.approx(share)


@settings(deadline=None)
@given(st.text(), st.text())
def test_overlap_stays_between_zero_and_one(caption: str, text: str) -> None:
    assert 0 <= overlap(caption, text) <= 1
    assert overlap(caption, caption) in (0, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (700, 3), (64, 64)])
def test_pictures_of_any_shape_are_read(signal: TextOverlaySignal, size: tuple[int, int]) -> None:
    assert signal.read(Image.new("RGB", size, "white"), "a cat")["num_text_boxes"] == 0
