"""The text that stands in a picture, and how much of the caption it only repeats.

Reads the shards' tars. RapidOCR's PP-OCR models, which ship in its package, find and read the text.

Nearly 40% of LAION's pictures hold text that overlaps with their caption; what a model learns from
such pairs is to read (Maini et al., "T-MARS", ICLR 2024). T-MARS itself masks the text and asks
CLIP whether the rest of the picture still fits: `masked_clip` (retrieval/signals/masked.py) does,
by the `text_boxes` found here. The overlap is that of Lin et al., "Parrot Captions Teach CLIP to
Spot Text" (ECCV 2024): the share of the caption's words that stand in the picture.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline.corpus import Shard
from pipeline.sample import Sample
from pipeline.score import Options
from pipeline.signals.pictures import Scores, score_pictures
from pipeline.signals.shipped import device_identity, num_threads, shipped_model

if TYPE_CHECKING:
    from rapidocr import RapidOCR

MAX_SIDE = 640
"""Pixels. Pictures are read at their own size up to here: text from 10 pixels on is found, at 15
times the speed of RapidOCR's own setting, which enlarges the short side to 736."""

BATCH_SIZE = 16

MIN_PART_LENGTH = 4
"""Letters from which a word counts as found within others: readers drop spaces ("SUMMERSALE")."""

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
"""Chinese and Japanese are written without spaces: there each character counts as a word."""


class TextOverlaySignal:
    name = "text_overlay"
    schema = pa.schema(
        [
            ("num_text_boxes", pa.int32()),
            ("share_of_text", pa.float32()),
            ("caption_overlap", pa.float32()),
            ("text_in_picture", pa.string()),
            ("text_boxes", pa.string()),
        ]
    )

    def __init__(self, root: str, options: Options) -> None:
        self._root, self._options = root, options
        self._finder, self._reader = (
            shipped_model(self.name, "rapidocr", "rapidocr", f"models/PP-OCRv6_{task}_small.onnx")
            for task in ("det", "rec")
        )

    def identity(self) -> dict[str, Any]:
        weights = {model.name: model.sha256 for model in (self._finder, self._reader)}
        return {
            "version": 1,
            "max_side": MAX_SIDE,
            "models": dict.fromkeys(self.schema.names, weights),
            **device_identity(self._options),
        }

    def __call__(self, shard: Shard) -> pa.Table:
        return score_pictures(
            self._root, shard, self.schema, self._score, side=MAX_SIDE, batch_size=BATCH_SIZE
        )

    def _score(self, batch: Sequence[tuple[Sample, Image.Image]]) -> list[Scores]:
        return [self.read(picture, sample.caption) for sample, picture in batch]

    def read(self, picture: Image.Image, caption: str) -> Scores:
        pixels = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])  # B, G, R
        boxes, texts = self._find(pixels)
        text = "\n".join(texts)
        return {
            "num_text_boxes": len(texts),
            "share_of_text": share_of_area(boxes, picture.width, picture.height),
            "caption_overlap": overlap(caption, text),
            "text_in_picture": text,
            "text_boxes": as_json(boxes, picture.width, picture.height),
        }

    def _find(self, pixels: np.ndarray) -> tuple[np.ndarray, Sequence[str]]:
        """Boxes [n, 4, 2] in pixels and the n texts in them, in reading order."""
        found = self._ocr(pixels)
        boxes, texts = getattr(found, "boxes", None), getattr(found, "txts", None)
        if boxes is None or texts is None:  # nothing found, or nothing of it could be read
            return np.zeros((0, 4, 2)), ()
        return boxes, texts

    @cached_property
    def _ocr(self) -> "RapidOCR":
        import cv2
        from rapidocr import RapidOCR

        cv2.setNumThreads(num_threads(self._options))
        engine = "EngineConfig.onnxruntime"
        return RapidOCR(
            params={
                "Global.log_level": "critical",
                # Text upside down is rare, and looking for it costs a tenth of the time.
                "Global.use_cls": False,
                "Det.limit_type": "max",
                "Det.limit_side_len": MAX_SIDE,
                f"{engine}.intra_op_num_threads": num_threads(self._options),
                f"{engine}.inter_op_num_threads": 1,
                f"{engine}.use_cuda": self._options.get("device") == "cuda",
            }
        )


def share_of_area(boxes: np.ndarray, width: int, height: int) -> float:
    """The share of the picture that boxes [n, 4, 2] cover together."""
    import cv2

    mask = np.zeros((height, width), np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, np.round(box).astype(np.int32), 1)
    return float(mask.mean())


def as_json(boxes: np.ndarray, width: int, height: int) -> str:
    """A list of boxes, each four corners [x, y] as shares of width and height, to a thousandth.

    A string, since few tools join tables with nested columns.
    """
    corners = np.round(boxes / np.array([width, height]), 3).clip(0, 1)
    return json.dumps(corners.tolist(), separators=(",", ":"))


def overlap(caption: str, text: str) -> float:
    """The share of the caption's words that the text has, whatever their case; 0 without words."""
    wanted, read = set(words_of(caption)), words_of(text)
    seen, letters = set(read), "".join(read)
    found = [
        word
        for word in wanted
        if word in seen or (len(word) >= MIN_PART_LENGTH and word in letters)
    ]
    return len(found) / len(wanted) if wanted else 0.0


def words_of(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
