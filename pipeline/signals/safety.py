"""What of people's bodies a picture shows, by NudeNet's detector, which ships in its package.

Reads the shards' tars. A score is the detector's highest confidence, over the whole picture, in any
class of a group: a number to threshold, where NudeNet itself draws boxes from 0.2 on.
"""

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
from pipeline.signals.shipped import device_identity, open_session, shipped_model

if TYPE_CHECKING:
    import onnxruntime

LABELS = (
    *("FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED"),
    *("FEMALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED"),
    *("BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "FACE_MALE"),
    *("BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED"),
    "BUTTOCKS_COVERED",
)
"""The model's classes in its order (nudenet.py)."""

GROUPS = {
    "nudity_exposed": (
        *("FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED"),
        *("BUTTOCKS_EXPOSED", "ANUS_EXPOSED"),
    ),
    "nudity_covered": (
        *("FEMALE_BREAST_COVERED", "FEMALE_GENITALIA_COVERED"),
        *("BUTTOCKS_COVERED", "ANUS_COVERED"),
    ),
    "skin_exposed": ("MALE_BREAST_EXPOSED", "BELLY_EXPOSED", "ARMPITS_EXPOSED", "FEET_EXPOSED"),
    "face": ("FACE_FEMALE", "FACE_MALE"),
}
"""Left out: feet, belly and armpits under clothes, which tell nothing."""

SIDE = 320
"""Pixels that the model looks at."""

BATCH_SIZE = 4
"""On one core a picture alone is as fast; on a GPU more at once would be faster."""


class SafetySignal:
    name = "safety"
    schema = pa.schema(
        [(group, pa.float32()) for group in (*GROUPS, "nudity_max")],
    )

    def __init__(self, root: str, options: Options) -> None:
        self._root, self._options = root, options
        self._model = shipped_model(self.name, "nudenet", "nudenet", "320n.onnx")

    def identity(self) -> dict[str, Any]:
        weights = {self._model.name: self._model.sha256}
        return {
            "version": 1,
            "models": dict.fromkeys(self.schema.names, weights),
            **device_identity(self._options),
        }

    def __call__(self, shard: Shard) -> pa.Table:
        return score_pictures(
            self._root, shard, self.schema, self._score, side=SIDE, batch_size=BATCH_SIZE
        )

    def _score(self, batch: Sequence[tuple[Sample, Image.Image]]) -> list[Scores]:
        return [group_scores(one) for one in self.confidences([image for _, image in batch])]

    def confidences(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """[n, classes]: the highest confidence in each class over all places of a picture."""
        pixels = np.concatenate([_as_input(picture) for picture in pictures])
        (output,) = self._session.run(None, {"images": pixels})
        # [n, 4 of the box + classes, places]
        confidences: np.ndarray = output[:, 4:].max(axis=2)
        return confidences

    @cached_property
    def _session(self) -> "onnxruntime.InferenceSession":
        return open_session(self._model, self._options)


def group_scores(confidences: np.ndarray) -> Scores:
    by_label = dict(zip(LABELS, confidences.tolist(), strict=True))
    scores = {group: max(by_label[label] for label in labels) for group, labels in GROUPS.items()}
    return scores | {"nudity_max": max(scores["nudity_exposed"], scores["nudity_covered"])}


def _as_input(picture: Image.Image) -> np.ndarray:
    """[1, 3, SIDE, SIDE] in [0, 1], padded to a square at the right and the bottom.

    As nudenet.py does it for a file: its two conversions leave the channels in the order B, G, R.
    """
    import cv2

    pixels = np.asarray(picture)[:, :, ::-1]
    size = max(pixels.shape[:2])
    right, bottom = size - pixels.shape[1], size - pixels.shape[0]
    square = cv2.copyMakeBorder(pixels, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
    blob: np.ndarray = cv2.dnn.blobFromImage(square, 1 / 255, (SIDE, SIDE))
    return blob
