"""Captions for Debian's openclipart: one per picture, from its SVG's metadata and its place.

Reads   ROOT/svg/**/*.svg   (package openclipart-svg; its PNG twin is in openclipart-png)

The rule, in order:
1. Folders whose pictures differ only in a number, a suit or a colour stop, and icons named after
   programs and menu commands ("kmines", "nextfuzzyuntrans"), are left out (LEFT_OUT).
2. The title is the work's dc:title. One that many pictures share names a series, not a picture
   ("gramastar", "Etiquette Icons", "Clipart by ... - contour_chipmunk"): the file's own name is
   taken instead, without the author's name and number that the library appended to it.
3. Keywords are the rdf:li of dc:subject plus the folders' names, without generated ones (hash,
   0x8b754fc), authors, and words about how the picture was filed (NOISE); at most six.
4. Caption = title, keyword, keyword, ...
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

LEFT_OUT = (
    "shapes/stars",
    "special/gradients",
    "recreation/games/cards/bordered",
    "recreation/games/cards/ornamental",
    "recreation/games/cards/simple",
    "recreation/games/cards/white",
    "unsorted/duplicates",
    "computer/icons/flat-theme/action",
    "computer/icons/flat-theme/applications",
    "computer/icons/lemon-theme/apps",
    "computer/icons/lemon-theme/mimetypes",
    "computer/icons/etiquette-theme/apps",
    "computer/icons/etiquette-theme/mimetypes",
)
NOISE = frozenset(
    "hash icons theme themes computer unsorted special webpage mimeicon appicon desktop gold lemon "
    "etiquette flat stock simple symbol symbols sign shape shapes recreation geography examples "
    "other generic clipart openclipart work study action actions menu mapsym gnome fs mime aiga "
    "contour miscellany equipment activities".split()
) | {
    "united nations member", "lemon theme icon", "signs and symbols", "map symbols", "map symbol",
    "aiga symbols", "flat theme", "lemon theme", "etiquette theme", "mime types", "musicstuff",
}  # fmt: skip
MAX_SHARED_TITLES = 5  # a title on more pictures than this names a series
MAX_KEYWORDS = 6
MAX_AREA = 16_000_000  # pixels
DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclass(frozen=True)
class ClipArt:
    name: str
    """Path below png/, without suffix."""
    title: str
    keywords: tuple[str, ...]

    @property
    def caption(self) -> str:
        return ", ".join((self.title, *self.keywords))


def read_clipart(root: Path) -> Iterator[ClipArt]:
    """Every clip art that has a PNG and words, in path order."""
    found = []
    for svg in sorted((root / "svg").rglob("*.svg")):
        name = svg.relative_to(root / "svg").with_suffix("").as_posix()
        if not name.startswith(LEFT_OUT) and is_sensible(root / "png" / f"{name}.png"):
            found.append((name, *read_metadata(svg)))
    shared = Counter(title for _, title, _, _ in found)
    for name, title, subjects, authors in found:
        own = (
            title if title and shared[title] <= MAX_SHARED_TITLES else words_of_file(name, authors)
        )
        keywords = clean_keywords((*subjects, *reversed(name.split("/")[:-1])), authors, own)
        if "flag" in keywords and "flag" not in own.split():
            own = f"flag of {own}"
            keywords = tuple(word for word in keywords if word != "flag")
        if own:
            yield ClipArt(name, own, keywords)


def is_sensible(png: Path) -> bool:
    """There, and not the one of 15,000 x 15,000 pixels: width and height from the PNG's header."""
    if not png.exists():
        return False
    with png.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return int(width) * int(height) <= MAX_AREA


def read_metadata(svg: Path) -> tuple[str, tuple[str, ...], frozenset[str]]:
    """Title, subjects and the words of its authors' names; all empty where the SVG has none."""
    title, subjects, authors = "", [], set()
    try:
        for _, element in ElementTree.iterparse(svg):
            if element.tag == f"{DC}subject":
                subjects += [
                    (item.text or "").replace("_", " ") for item in element.iter(f"{RDF}li")
                ]
            elif element.tag in (f"{DC}creator", f"{DC}rights"):
                for agent in element.iter(f"{DC}title"):
                    authors |= set(plain(agent.text or "").split())
            elif element.tag.endswith("}Work"):
                own = element.find(f"{DC}title")
                title = plain(own.text or "") if own is not None else ""
    except ElementTree.ParseError:
        pass  # some files of 2005 are no XML to a strict parser; the file's name still has words
    return re.sub(r"^clipart by [\w ]+? - ", "", title), tuple(subjects), frozenset(authors)


def plain(text: str) -> str:
    """Lower case, words separated by one space, no numbering."""
    text = re.sub(r"[_\s]+|(?<=\w)-(?=\w)", " ", text.lower())
    return " ".join(re.sub(r"[^\w\s,.'&+-]|\b\d+\w?\b", " ", text).split()).strip(" -,.")


def words_of_file(name: str, authors: frozenset[str]) -> str:
    """ "transportation/aiga-symbols/aiga_shops1" -> "shops"."""
    stem = re.sub(
        r"(?<=[a-z])\d+[a-z]?\b|\d+", " ", re.sub(r"[_-]", " ", name.split("/")[-1].lower())
    )
    kept = [word for word in stem.split() if word not in NOISE and not is_author(word, authors)]
    return " ".join(word for word in kept if len(word) > 1)


def is_author(word: str, authors: frozenset[str]) -> bool:
    """The library cut file names short, so a name's beginning counts, too."""
    return any(author == word or (len(word) > 2 and author.startswith(word)) for author in authors)


def clean_keywords(words: tuple[str, ...], authors: frozenset[str], title: str) -> tuple[str, ...]:
    kept = dict.fromkeys(
        plain(re.sub(r"(?i)(hash )?\(?0x[0-9a-f]+\)?", "", word)) for word in words
    )
    return tuple(
        word
        for word in kept
        if re.search("[a-z]{3}", word)
        and word not in NOISE
        and word not in title
        and not (word.endswith("s") and word[:-1] in kept)
        and not all(is_author(part, authors) for part in word.split())
    )[:MAX_KEYWORDS]
