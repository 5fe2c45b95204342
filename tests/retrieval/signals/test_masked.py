import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from benchmarks.made_corpus import change_samples
from infra import storage
from infra.cluster import Workers
from infra.errors import ConflictError, InputError
from pipeline import score
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_columns,
    read_manifest,
)
from pipeline.sample import Sample
from retrieval import embed
from retrieval.captions.corpus import EmbeddedCorpus
from retrieval.encoding.pictures import decode_picture
from retrieval.signals.masked import paint_over

HERE = Workers(local=True)
WITH_TEXT = (1, 4)
BROKEN = 2


def poster(seed: int, text: str = "") -> bytes:
    """A PNG of soft colours, with a text on it."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    picture = Image.fromarray(colours).resize((192, 128), Image.Resampling.BICUBIC)
    if text:
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(22)
        box = draw.textbbox((10, 40), text, font)
        draw.rectangle((box[0] - 4, box[1] - 4, box[2] + 4, box[3] + 4), "white")
        draw.text((10, 40), text, "black", font)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    """Six pictures, two with text and one that can't be decoded; embedded, and scored by `clip`."""
    root = str(tmp_path_factory.mktemp("masked") / "corpus")
    make_corpus(root, num_shards=1, num_samples=6)

    def repainted(sample: Sample) -> Sample:
        number = int(sample.key)
        image = poster(number, "SUMMER SALE" if number in WITH_TEXT else "")
        return replace(sample, image=b"broken" if number == BROKEN else image, extension="png")

    change_samples(root, repainted)
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    run(root, "clip")
    return root


def run(root: str, *signals: str) -> None:
    score.run(score.Config(root=root, signals=signals, workers=HERE, overwrite=True))


def test_only_pictures_with_text_are_looked_at_again(root: str) -> None:
    run(root, "text_overlay")
    run(root, "masked_clip")
    plain = read_columns(root, "clip")["clip_similarity"].to_pylist()
    masked = read_columns(root, "masked_clip")["masked_clip_similarity"].to_pylist()
    boxes = read_columns(root, "text_overlay")["text_boxes"].to_pylist()
    encoder = EmbeddedCorpus(root, {}).load_encoder("cpu")
    for number, sample in enumerate(iter_samples(root, read_manifest(root).shards[0])):
        if number == BROKEN:
            assert masked[number] is None
        elif number in WITH_TEXT:
            picture = paint_over(decode_picture(sample.image), json.loads(boxes[number]))
            pair = encoder.encode_images([picture]) @ encoder.encode_texts([sample.caption]).T
            assert masked[number] == pytest.approx(float(pair[0, 0]), abs=1e-3)
            assert abs(masked[number] - plain[number]) > 1e-3
        else:
            assert masked[number] == plain[number]


def test_what_is_painted_over_looks_like_its_surroundings_and_nothing_else_changes() -> None:
    picture = Image.new("RGB", (100, 50), (10, 200, 30))
    ImageDraw.Draw(picture).rectangle((20, 10, 59, 29), "black")
    ImageDraw.Draw(picture).rectangle((80, 40, 85, 45), "red")
    box = [[0.18, 0.16], [0.62, 0.16], [0.62, 0.62], [0.18, 0.62]]
    painted = np.asarray(paint_over(picture, [box]))
    assert (painted[10:30, 20:60] == (10, 200, 30)).all()
    assert (painted[40:46, 80:86] == (255, 0, 0)).all()


def test_the_text_has_to_be_found_first_and_in_this_corpus(root: str) -> None:
    folder = storage.join(root, "columns", "text_overlay")
    storage.remove(folder)
    with pytest.raises(InputError, match=r"score .* --signals text_overlay`"):
        run(root, "masked_clip")
    run(root, "text_overlay")
    url = storage.join(folder, "manifest.json")
    digest = read_manifest(root).digest
    storage.publish_text(url, storage.read_text(url).replace(digest, "0" * 16))
    with pytest.raises(ConflictError, match="another state of the corpus"):
        run(root, "masked_clip")
