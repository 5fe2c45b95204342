"""Real pictures with captions, for benchmarks: the emoji and clip art that the small CLIP knows.

Nine tenths of them it was trained on, a tenth by group it was not: `is_seen` says which. Fetched
from Debian (openclipart) and npm (emojilib, emojibase-data) into a folder of the caller's choice,
once; 360 MB.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.small_clip.pairs import (
    clipart_pairs,
    emoji_pairs,
    group_pairs,
    is_held_out,
    thumbnail,
)

CLIPART = "usr/share/openclipart"
DEBIAN = ("openclipart-png", "openclipart-svg")
NPM = {"emojilib": "emojilib@4.0.3", "emojibase": "emojibase-data@16.0.3"}
SIDE = 256
"""Longer side, as a download stores them; the encoder itself looks at 64 pixels."""


@dataclass(frozen=True)
class Drawn:
    path: Path
    caption: str
    is_seen: bool
    """By the small encoder in its training."""
    is_emoji: bool

    @property
    def code(self) -> str:
        """An emoji's code points, as in emojibase."""
        return self.path.stem.upper()

    def read(self) -> Image.Image:
        """On white, RGB."""
        with Image.open(self.path) as file:
            picture = file.convert("RGBA")
        picture.thumbnail((SIDE, SIDE))
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        return page.convert("RGB")


def drawn(work: Path) -> list[Drawn]:
    """Emoji first, each with the caption that the small CLIP's own evaluation takes.

    Which are held out follows from all pictures, so it is looked up once and kept.
    """
    fetch(work)
    pictures, record = work / "pictures", work / "drawn.json"
    if not record.exists():
        pairs = emoji_pairs(pictures, work / "emojilib" / "package")
        pairs += clipart_pairs(pictures, work / CLIPART)
        groups = group_pairs(pairs, np.stack([thumbnail(pictures / pair.path) for pair in pairs]))
        rows = [
            [pair.path, pair.captions[0], not is_held_out(group), pair.source == "emoji"]
            for pair, group in zip(pairs, groups, strict=True)
        ]
        record.write_text(json.dumps(rows), "utf-8")
    return [
        Drawn(pictures / path, caption, is_seen, is_emoji)
        for path, caption, is_seen, is_emoji in json.loads(record.read_text("utf-8"))
    ]


def emoji_names(work: Path, language: str) -> dict[str, str]:
    """The emoji's names in CLDR's words, by code points."""
    data = json.loads((work / f"emojibase/package/{language}/compact.json").read_text("utf-8"))
    return {one["hexcode"]: one["label"] for one in data}


def fetch(work: Path) -> None:
    """What is not there yet."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / CLIPART).exists():
        print(f"fetching {', '.join(DEBIAN)}", file=sys.stderr)
        subprocess.run(["apt-get", "download", "-qq", *DEBIAN], cwd=work, check=True)
        for archive in work.glob("openclipart-*.deb"):
            subprocess.run(["dpkg", "-x", str(archive), str(work)], check=True)
            archive.unlink()
    for name, package in NPM.items():
        if not (work / name).exists():
            print(f"fetching {package}", file=sys.stderr)
            packed = subprocess.run(
                ["npm", "pack", "--silent", package],
                cwd=work,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            archive = work / packed.stdout.split()[-1]
            (work / name).mkdir()
            subprocess.run(["tar", "-xzf", str(archive), "-C", str(work / name)], check=True)
            archive.unlink()
