"""Lists of url and caption for the small CLIP, from emoji and clip art, with a tenth held out.

    python -m examples.small_clip.pairs WORK --clipart /usr/share/openclipart --emojilib FOLDER

Reads   examples/emoji, openclipart's png/ and svg/, emojilib's keywords (emoji-en-US.json)
Writes  WORK/pictures/{emoji,clipart}/   what the HTTP server serves
        WORK/train.parquet               url, caption, source, group; 2 to 5 captions a picture
        WORK/heldout.parquet             the same, one caption a picture

Held out by group, so that no near-duplicate straddles the split. Two pictures are of one group
when their titles have the same content words (gender, direction and numbers aside: "man cook" and
"woman cook"; two files titled "Cavallo"; the emoji and the clip art of one flag), or when their
16 x 16 thumbnails nearly agree. A group is held out when its hash says so: the same pictures, the
same split.
"""

import argparse
import csv
import hashlib
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from examples.small_clip.clipart import read_clipart

EMOJI = Path(__file__).parents[1] / "emoji"
HELD_OUT = 0.1
SAME_PICTURE = 4.0  # mean absolute difference of thumbnails, of 255: re-encodings and recolourings
MAX_KEYWORDS = 8
SINGLE_WORDS = 2  # keywords that are captions of their own: people search for "cat"
NOT_CONTENT = frozenset(
    "a an and at by for from in of on or the to with s icon symbol sign button picture cartoon "
    "bw man men woman women person people male female boy girl adult child facing left right "
    "colour color simple new one two three four five six seven eight nine ten eleven twelve "
    "thirty o clock showing".split()
)


@dataclass(frozen=True)
class Pair:
    path: str
    """Below WORK/pictures."""
    captions: tuple[str, ...]
    """The first is the one that is evaluated."""
    title: str
    source: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--clipart", type=Path, default=Path("/usr/share/openclipart"))
    parser.add_argument("--emojilib", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument(
        "--server", default="http://127.0.0.1:8765", help="where pictures/ is served"
    )
    arguments = parser.parse_args()
    pictures = arguments.work / "pictures"
    pairs = emoji_pairs(pictures, arguments.emojilib) + clipart_pairs(pictures, arguments.clipart)
    groups = group_pairs(pairs, np.stack([thumbnail(pictures / pair.path) for pair in pairs]))
    held_out = [is_held_out(group) for group in groups]
    for name, wanted, num_captions in (("train", False, None), ("heldout", True, 1)):
        rows = [
            {
                "url": f"{arguments.server}/{quote(pair.path)}",
                "caption": caption,
                "source": pair.source,
                "group": group,
            }
            for pair, group, held in zip(pairs, groups, held_out, strict=True)
            if held == wanted
            for caption in pair.captions[:num_captions]
        ]
        rows.sort(key=lambda row: hash_of(f"{row['url']}\0{row['caption']}"))  # mixes every shard
        pq.write_table(pa.Table.from_pylist(rows), arguments.work / f"{name}.parquet")
        print(f"{name}: {len({row['url'] for row in rows})} pictures, {len(rows)} rows")


def emoji_pairs(pictures: Path, emojilib: Path) -> list[Pair]:
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        archive.extractall(pictures / "emoji")
    words = json.loads((emojilib / "dist" / "emoji-en-US.json").read_text("utf-8"))
    pairs = []
    with (EMOJI / "captions.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            codes = row["file_name"].removesuffix(".png").split("-")
            found = words.get("".join(chr(int(code, 16)) for code in codes), [])
            more = [word.replace("_", " ") for word in found if re.search("[a-z]{3}", word)]
            captions = [row["caption"], f"{row['caption']}, {row['keywords']}"]
            if more:
                captions.append(", ".join(more[:MAX_KEYWORDS]))
            single = {word for word in more if " " not in word and word != row["caption"]}
            captions += sorted(single, key=lambda word: hash_of(f"{codes} {word}"))[:SINGLE_WORDS]
            pairs.append(
                Pair(f"emoji/{row['file_name']}", tuple(captions), row["caption"].lower(), "emoji")
            )
    return pairs


def clipart_pairs(pictures: Path, root: Path) -> list[Pair]:
    link = pictures / "clipart"
    if not link.exists():
        link.symlink_to((root / "png").resolve(), target_is_directory=True)
    return [
        Pair(
            f"clipart/{one.name}.png",
            tuple(dict.fromkeys((one.caption, one.title))),
            one.title,
            "clipart",
        )
        for one in read_clipart(root)
    ]


def thumbnail(path: Path) -> np.ndarray:
    """[16 * 16 * 3] in [0, 255], on white."""
    with Image.open(path) as picture:
        picture.draft("RGB", (64, 64))
        small = picture.convert("RGBA").resize((16, 16), Image.Resampling.BOX)
    white = Image.new("RGBA", small.size, "white")
    return np.asarray(Image.alpha_composite(white, small).convert("RGB"), np.float32).reshape(-1)


def group_pairs(pairs: list[Pair], thumbnails: np.ndarray) -> list[str]:
    """One name a pair: the smallest path of its connected component."""
    parents = list(range(len(pairs)))

    def root(one: int) -> int:
        while parents[one] != one:
            parents[one] = one = parents[parents[one]]
        return one

    first_of: dict[frozenset[str], int] = {}
    for index, pair in enumerate(pairs):
        parents[root(index)] = root(first_of.setdefault(content_words(pair.title), index))
    for index in range(len(pairs)):
        difference = np.abs(thumbnails[index + 1 :] - thumbnails[index]).mean(axis=1)
        for other in np.flatnonzero(difference < SAME_PICTURE) + index + 1:
            parents[root(int(other))] = root(index)
    names: dict[int, str] = {}
    for index, pair in enumerate(pairs):
        names[root(index)] = min(pair.path, names.get(root(index), pair.path))
    return [names[root(index)] for index in range(len(pairs))]


def content_words(title: str) -> frozenset[str]:
    words = re.findall(r"[^\W\d_]+", title.lower())
    return frozenset(word for word in words if word not in NOT_CONTENT) or frozenset(words)


def is_held_out(group: str) -> bool:
    return hash_of(group) < HELD_OUT * 2**64


def hash_of(text: str) -> int:
    """[0, 2**64), the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


if __name__ == "__main__":
    main()
