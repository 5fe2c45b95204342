"""T-MARS: does a caption still fit its picture once the text in the picture is painted over?

    carrara score ROOT --signals text_overlay
    carrara score ROOT --signals masked_clip

Reads   ROOT/columns/text_overlay/ (where text stands), ROOT/embeddings/<encoder>/ (the captions'
        vectors), ROOT/shards/ (the pictures with text, no others)

Maini et al., "T-MARS: Improving Visual Representations by Circumventing Text Feature Learning"
(ICLR 2024): find the text, paint over it from its surroundings, and drop the pairs whose picture
then has a low CLIP similarity to the caption. A picture without text keeps the similarity it has.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from infra import storage
from infra.errors import ConflictError, InputError
from infra.records import read_record
from pipeline.corpus import ColumnsManifest, Shard, iter_samples, read_manifest
from pipeline.score import Options
from retrieval.captions.corpus import EmbeddedCorpus
from retrieval.encoding.pictures import decode_picture

if TYPE_CHECKING:
    from retrieval.encoding.encoder import Encoder

TEXT_SIGNAL = "text_overlay"
BATCH_SIZE = 64

INPAINT_RADIUS = 3
"""Pixels around a painted one that give its colour (OpenCV's example)."""

Boxes = list[list[list[float]]]
"""Each four corners [x, y], as shares of the picture's width and height."""


class MaskedClipSignal:
    name = "masked_clip"
    schema = pa.schema([("masked_clip_similarity", pa.float32())])

    def __init__(self, root: str, options: Options) -> None:
        self._root, self._options = root, options
        self._corpus = EmbeddedCorpus(root, options)
        self._text = _text_manifest(root)

    def identity(self) -> dict[str, Any]:
        (column,) = self.schema.names
        text = self._text.identity.get("models", {}).get("text_boxes", {})
        return {
            "version": 1,
            "text": self._text.config_digest,
            "models": {column: {**self._corpus.models, **text}},
            **self._corpus.identity(),
        }

    def __call__(self, shard: Shard) -> pa.Table:
        images = self._corpus.rows(shard, "image")
        texts = self._corpus.rows(shard, "text")
        places = {uid: place for place, uid in enumerate(self._corpus.uids(shard))}
        found = self._masked(shard, places)
        while masked := list(islice(found, BATCH_SIZE)):
            rows = self._encoder.encode_images([picture for _, picture in masked])
            images[[place for place, _ in masked]] = rows
        cosines = np.einsum("nd,nd->n", images, texts)
        (column,) = self.schema.names
        return self._corpus.columns(shard, {column: pa.array(cosines, pa.float32())})

    def _masked(self, shard: Shard, places: dict[str, int]) -> Iterator[tuple[int, Image.Image]]:
        """Row and painted-over picture of each embedded sample with text in its picture."""
        url = storage.join(self._root, "columns", TEXT_SIGNAL, f"{shard.name}.parquet")
        table = storage.read_table(url, ["uid", "text_boxes"])
        boxes = {
            uid: json.loads(found)
            for uid, found in zip(*(column.to_pylist() for column in table.columns), strict=True)
            if found not in (None, "[]")
        }
        for sample in iter_samples(self._root, shard):
            if sample.uid in places and sample.uid in boxes:
                picture = decode_picture(sample.image)
                yield places[sample.uid], paint_over(picture, boxes[sample.uid])

    @cached_property
    def _encoder(self) -> "Encoder":
        from retrieval.embedding.shard_embedding import limit_threads

        limit_threads(int(self._options.get("num_threads") or 1))
        return self._corpus.load_encoder(self._options.get("device") or "cpu")


def paint_over(picture: Image.Image, boxes: Boxes) -> Image.Image:
    """The same picture with the boxes filled from their surroundings."""
    import cv2

    mask = np.zeros((picture.height, picture.width), np.uint8)
    for box in boxes:
        corners = np.array(box) * [picture.width, picture.height]
        cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 255)
    painted = cv2.inpaint(
        np.asarray(picture), mask, INPAINT_RADIUS, cv2.INPAINT_NS
    )  # Bertalmio et al. (2001)
    return Image.fromarray(painted)


def _text_manifest(root: str) -> ColumnsManifest:
    """Raises InputError where the text has not been looked for, ConflictError where elsewhere."""
    url = storage.join(root, "columns", TEXT_SIGNAL, "manifest.json")
    command = f"`carrara score {root} --signals {TEXT_SIGNAL}"
    if not storage.exists(url):
        raise InputError(f"{root}: nobody has looked for text in the pictures; run {command}`")
    manifest = read_record(url, ColumnsManifest)
    if manifest.corpus_digest != read_manifest(root).digest:
        raise ConflictError(f"{url}: of another state of the corpus; run {command} --overwrite`")
    return manifest
