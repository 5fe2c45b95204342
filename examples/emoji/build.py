"""Rebuild the emoji corpus from the npm package that it was taken from.

    npm pack emoji-datasource-google@16.0.0 && tar -xzf emoji-datasource-google-16.0.0.tgz
    python examples/emoji/build.py package

Reads   PACKAGE/emoji.json, PACKAGE/img/google/64/*.png, renames.csv (beside this file)
Writes  pictures.zip   the base emoji, 64 px, the package's own bytes, stored uncompressed
        captions.csv   file_name, caption, keywords, category: one row a picture, in emoji order
The same package gives the same bytes.
"""

import argparse
import csv
import json
import re
import zipfile
from pathlib import Path
from typing import Any, TypeAlias

Emoji: TypeAlias = dict[str, Any]  # an entry of emoji.json
HERE = Path(__file__).parent
COLUMNS = ("file_name", "caption", "keywords", "category")

# Unicode names come in capitals; these words keep theirs when the rest is lowered.
PROPER = {
    word.lower(): word
    for word in (
        "American Americas Asia Australia Africa Europe European Christmas David DNA Dharma DVD "
        "French Fuji Hindu I Japan Japanese Kaaba Latin Liberty Milky Mount OK Orthodox Petri "
        "Shinto Tanabata Tokyo"
    ).split()
}
HAIR = {
    "red hair": "{} with red hair",
    "curly hair": "{} with curly hair",
    "white hair": "{} with white hair",
    "blond hair": "{} with blond hair",
    "bald": "bald {}",
    "beard": "{} with a beard",
}
# "the" belongs before these when they follow "flag of".
ARTICLE = re.compile(
    r"^(United|European Union|Netherlands|Philippines|Bahamas|Gambia|Maldives|Seychelles|Comoros|"
    r"Isle of|U\.S\.|British|Central African|Dominican Republic|Caribbean|French Southern|"
    r"Palestinian|(?!South ).* Islands$)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("--output", type=Path, default=HERE, help="where to write both files")
    arguments = parser.parse_args()
    emoji = sorted(
        json.loads((arguments.package / "emoji.json").read_text("utf-8")),
        key=lambda one: one["sort_order"],
    )
    with (HERE / "renames.csv").open(newline="", encoding="utf-8") as file:
        renames = {row["short_name"]: row["caption"] for row in csv.DictReader(file)}
    write_captions(arguments.output / "captions.csv", emoji, renames)
    write_pictures(arguments.output / "pictures.zip", arguments.package / "img/google/64", emoji)


def write_captions(path: Path, emoji: list[Emoji], renames: dict[str, str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for one in emoji:
            caption = renames.get(one["short_name"]) or readable_name(one["name"])
            writer.writerow((one["image"], caption, keywords_of(one, caption), one["category"]))


def write_pictures(path: Path, folder: Path, emoji: list[Emoji]) -> None:
    """Stored, not deflated: PNG is compressed already, and a stored zip is the same everywhere."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(one["image"] for one in emoji):
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.external_attr = 0o644 << 16
            member.create_system = 3  # Unix, on whatever system this runs
            archive.writestr(member, (folder / name).read_bytes())


def readable_name(name: str) -> str:
    """A Unicode name as one would write it: "GRINNING FACE" -> "grinning face"."""
    if name.endswith(" Flag"):
        country = name.removesuffix(" Flag").replace(" & ", " and ")
        return f"flag of {'the ' if ARTICLE.match(country) else ''}{country}"
    text = re.sub(r"\boclock\b", "o'clock", name.lower())
    text = re.sub(r"\b(wo)?mans\b", lambda found: found.group().removesuffix("s") + "'s", text)
    if text.startswith("clock face "):
        text = text.replace("clock face ", "clock showing ")
    if text.startswith("keycap "):
        text = text.replace(": ", " ")
    if ": " in text:
        text = spell_out(*text.split(": "))
    else:
        # Here "sign" and "symbol" only say that it is a character.
        text = re.sub(r"\b(hands?|thumbs up|thumbs down|moon) (sign|symbol)$", r"\1", text)
    return re.sub(r"\w+", lambda word: PROPER.get(word.group(), word.group()), text)


def spell_out(subject: str, details: str) -> str:
    """ "family", "man, woman, boy" -> "family of a man, a woman and a boy"."""
    if details in HAIR:
        return HAIR[details].format(subject)
    people = [f"{'an' if person[0] in 'aeiou' else 'a'} {person}" for person in details.split(", ")]
    joined = " and ".join(filter(None, (", ".join(people[:-1]), people[-1])))
    verb = {"family": "family of", "kiss": "kiss between", "couple with heart": "heart between"}
    return f"{verb[subject]} {joined}"


def keywords_of(one: Emoji, caption: str) -> str:
    """What else the picture is called: its short names and its place in the Unicode order."""
    names = [
        re.sub(r"[_-]", " ", name) for name in one["short_names"] if re.search("[a-z]{2}", name)
    ]
    group = re.sub(r"[-&]", " ", one["subcategory"])
    words = [" ".join(text.split()) for text in (*names, group)]
    new = [text for text in dict.fromkeys(words) if text != caption.lower()]
    return ", ".join(text for text in new if not text.startswith("flag "))


if __name__ == "__main__":
    main()
