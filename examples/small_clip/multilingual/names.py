"""Names and keywords of emoji in many languages, as the Unicode CLDR gives them.

    python -m examples.small_clip.multilingual.names WORK CLDR

Reads   CLDR/annotations/<language>/annotations.json          single characters
        CLDR/annotationsDerived/<language>/annotations.json   flags, families, professions
        WORK/heldout.parquet, which examples.small_clip.pairs wrote; examples/emoji
Writes  held_out.csv beside this file: the emoji that no training sees, a column a language
"""

import argparse
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

CAPTIONS = Path(__file__).parents[2] / "emoji" / "captions.csv"
HELD_OUT = Path(__file__).parent / "held_out.csv"
LANGUAGES = tuple(
    "ar cs de el en es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh".split()
)
KINDS = ("annotations", "annotationsDerived")


@dataclass(frozen=True)
class Emoji:
    file_name: str
    """In examples/emoji."""
    characters: str
    caption: str
    """English, what the teacher was trained on."""


@dataclass(frozen=True)
class Words:
    """What one language calls one emoji."""

    name: str
    keywords: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("cldr", type=Path, help="where both packages were unpacked")
    parser.add_argument("--output", type=Path, default=HELD_OUT)
    arguments = parser.parse_args()
    held_out = file_names(pq.read_table(arguments.work / "heldout.parquet").to_pylist())
    words = {language: read_words(arguments.cldr, language) for language in LANGUAGES}
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file_name", *LANGUAGES))
        for one in read_emoji():
            if one.file_name in held_out:
                names = [words[language].get(one.characters) for language in LANGUAGES]
                writer.writerow((one.file_name, *(found.name if found else "" for found in names)))


def read_emoji() -> list[Emoji]:
    with CAPTIONS.open(newline="", encoding="utf-8") as file:
        return [
            Emoji(row["file_name"], characters_of(row["file_name"]), row["caption"])
            for row in csv.DictReader(file)
        ]


def characters_of(file_name: str) -> str:
    """ "1f600.png" -> the emoji itself, without variation selectors, as CLDR writes them."""
    codes = file_name.removesuffix(".png").split("-")
    return "".join(chr(int(code, 16)) for code in codes).replace("\ufe0f", "")


def file_names(rows: Iterable[dict[str, Any]]) -> set[str]:
    """Of the emoji among the rows of a list that examples.small_clip.pairs wrote."""
    places = (row["url"].rpartition("/emoji/") for row in rows)
    return {file_name for _, found, file_name in places if found}


def read_words(cldr: Path, language: str) -> dict[str, Words]:
    """By the emoji's characters; those without a name in this language are left out."""
    return dict(_entries(cldr, language))


def _entries(cldr: Path, language: str) -> Iterator[tuple[str, Words]]:
    for kind in KINDS:
        path = cldr / kind / language / "annotations.json"
        for characters, words in json.loads(path.read_text("utf-8"))[kind]["annotations"].items():
            if names := words.get("tts"):
                yield characters, Words(names[0], tuple(words.get("default", ())))


if __name__ == "__main__":
    main()
