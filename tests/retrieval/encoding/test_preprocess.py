"""Held against open_clip's own transforms: the same pictures, pixel by pixel and as embeddings."""

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms

from benchmarks.photos import photos
from infra.errors import InputError
from pipeline.pixels.jpeg import reduction_for
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.preprocess import Pixels, Preprocess

ROUNDING = 2
"""Levels of 255 by which a resize in whole numbers may differ from Pillow's."""
REDUCED, REDUCED_MEAN = 24, 2.0
"""The same where libjpeg left the upper frequencies out, at edges and on average."""


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    (data,) = photos(1)
    return Image.open(io.BytesIO(data)).convert("RGB")


def preprocess_of(**settings: Any) -> Preprocess:
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    open_clip.model.set_model_preprocess_cfg(model, asdict(PreprocessCfg(**settings)))
    return Preprocess.of_model(model)


def open_clips(data: bytes, **settings: Any) -> Pixels:
    """[H, W, 3], before it scales them to numbers."""
    transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    *geometry, _to_tensor, _normalize = transform.transforms
    with Image.open(io.BytesIO(data)) as opened:
        picture: Any = opened.convert("RGB")
    for step in geometry:
        picture = step(picture)
    return np.asarray(picture)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


@pytest.mark.parametrize("size", [64, 224, (48, 96)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_pixels_are_open_clips(mode: str, size: Any, photo: Image.Image) -> None:
    for interpolation in ("bicubic", "bilinear"):
        settings = {"size": size, "resize_mode": mode, "interpolation": interpolation}
        preprocess = preprocess_of(**settings, fill_color=255)
        for sides in ((37, 23), (301, 199), (96, 48), (480, 640)):
            data = jpeg(photo.resize(sides))
            theirs = open_clips(data, **settings, fill_color=255)
            ours = preprocess(data)
            assert ours.shape == theirs.shape
            difference = np.abs(ours.astype(int) - theirs)
            height, width = preprocess._resized(sides[1], sides[0])
            if reduction_for(sides, (width, height)) == 1:
                assert difference.max() <= ROUNDING
            else:
                assert difference.max() <= REDUCED
                assert difference.mean() <= REDUCED_MEAN


def test_embeddings_are_those_of_open_clips_preprocessing() -> None:
    """Also of photos that are decoded at a half and at a quarter of their scale."""
    encoder = load_encoder(EMBEDDED_ENCODER)
    settings = open_clip.get_model_preprocess_cfg(encoder._model)
    pictures = []
    for data in photos(4):
        with Image.open(io.BytesIO(data)) as picture:
            pictures += [data, jpeg(picture.resize((300, 211))), jpeg(picture.resize((90, 81)))]
    theirs = encoder.encode_pixels(np.stack([open_clips(data, **settings) for data in pictures]))
    ours = encoder.encode_pixels(np.stack([encoder.preprocess(data) for data in pictures]))
    assert (ours * theirs).sum(axis=1).min() > 0.9995


def test_a_picture_and_its_bytes_give_the_same(photo: Image.Image) -> None:
    preprocess = preprocess_of(size=224)
    with Image.open(io.BytesIO(data := jpeg(photo))) as opened:
        decoded = preprocess.of_picture(opened)
    np.testing.assert_array_equal(decoded, preprocess(data))


def test_what_is_rare_goes_by_pillow_and_comes_out_right(photo: Image.Image) -> None:
    preprocess = preprocess_of(size=64)
    expected = preprocess(jpeg(photo)).astype(int)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise by a viewer
    lying = photo.transpose(Image.Transpose.ROTATE_90)
    grey_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for data in (
        jpeg(lying, exif=turned),
        jpeg(photo.convert("CMYK")),
        png(photo),
    ):
        assert np.abs(preprocess(data).astype(int) - expected).mean() < 4
    grey = preprocess(jpeg(photo.convert("L"), icc_profile=grey_profile))
    assert (grey[:, :, 0] == grey[:, :, 2]).all()
    transparent = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    assert (preprocess(png(transparent)) == 255).all()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_a_line_of_pixels_takes_no_more_memory_than_its_middle() -> None:
    line = Image.new("RGB", (60_000, 1), "green")
    for data in (jpeg(line), png(line)):
        pixels = preprocess_of(size=224)(data)
        assert pixels.shape == (224, 224, 3)
        assert (pixels[:, :, 1] > 100).all()


@pytest.mark.parametrize("cut", [0.02, 0.5, 0.99])
def test_bytes_that_end_too_soon_are_an_input_error(cut: float, photo: Image.Image) -> None:
    data = jpeg(photo)
    with pytest.raises(InputError):
        preprocess_of(size=64)(data[: int(cut * len(data))])
