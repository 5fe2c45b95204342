"""Recall of a model on the held-out shards, and on the emoji corpus that the demo builds.

    python -m examples.small_clip.evaluate WORK retrieval/models/Carrara-S [--json FILE]

Reads   WORK/heldout (a corpus of this pipeline), examples/emoji
Prints  recall@1 and @10 in both directions, strictly: only a query's own picture (or caption) is a
        hit, though several may fit. Chance is k / number of pairs. For the emoji also how well a
        caption's rank tells right captions from swapped ones.
"""

import argparse
import csv
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import open_clip
import torch
from PIL import Image

from pipeline.corpus import iter_samples, read_manifest

EMOJI = Path(__file__).parents[1] / "emoji"
Figures: TypeAlias = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("model", type=Path, help="folder with open_clip_config.json")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{arguments.model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{arguments.model}")
    model.eval()

    def embed(pairs: list[tuple[Image.Image, str]]) -> tuple[np.ndarray, np.ndarray]:
        pictures = torch.stack([preprocess(picture) for picture, _ in pairs])
        with torch.inference_mode():
            images = model.encode_image(pictures, normalize=True)
            texts = model.encode_text(tokenizer([text for _, text in pairs]), normalize=True)
        return images.numpy(), texts.numpy()

    held_out = list(held_out_pairs(arguments.work / "heldout"))
    images, texts = embed([(picture, text) for picture, text, _ in held_out])
    is_emoji = np.array([source == "emoji" for _, _, source in held_out])
    shipped = embed(list(emoji_pairs()))
    figures = {
        "held out": recall(images, texts),
        "held out, emoji only": recall(images[is_emoji], texts[is_emoji]),
        "held out, clip art only": recall(images[~is_emoji], texts[~is_emoji]),
        "emoji corpus (nine tenths seen in training)": recall(*shipped),
        "emoji corpus, swapped captions": swapped_ranks(*shipped),
    }
    for name, found in figures.items():
        print(f"{name}: " + ", ".join(f"{key} {value:g}" for key, value in found.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def held_out_pairs(root: Path) -> Iterator[tuple[Image.Image, str, str]]:
    for shard in read_manifest(str(root)).shards:
        for sample in iter_samples(str(root), shard):
            picture = Image.open(io.BytesIO(sample.image))
            yield (
                picture,
                sample.caption,
                "emoji" if "/emoji/" in sample.metadata["url"] else "clipart",
            )


def emoji_pairs() -> Iterator[tuple[Image.Image, str]]:
    captions = (EMOJI / "captions.csv").read_text("utf-8").splitlines()
    with zipfile.ZipFile(EMOJI / "pictures.zip") as archive:
        for row in csv.DictReader(captions):
            picture = Image.open(io.BytesIO(archive.read(row["file_name"]))).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            yield Image.alpha_composite(white, picture).convert("RGB"), row["caption"]


def ranks(queries: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """[n]: how many answers are closer to query i than answer i; ties count against it."""
    similarities = queries @ answers.T
    own = np.diag(similarities)[:, None]
    return np.asarray((similarities >= own).sum(axis=1) - 1)


def recall(images: np.ndarray, texts: np.ndarray) -> Figures:
    found: Figures = {"pairs": len(images)}
    for direction, rank in (
        ("image to text", ranks(images, texts)),
        ("text to image", ranks(texts, images)),
    ):
        for k in (1, 10):
            found[f"{direction} @{k}"] = round(float((rank < k).mean()), 4)
    for k in (1, 10):
        found[f"chance @{k}"] = round(k / len(images), 4)
    return found


def swapped_ranks(images: np.ndarray, texts: np.ndarray, seed: int = 0) -> Figures:
    """Every caption handed to another picture; how often its rank gives right and wrong away.

    AUROC: the chance that a right pair's rank is better than a wrong one's (ties count half).
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    wrong = np.empty_like(order)
    wrong[order] = np.roll(order, 1)  # one cycle: nobody keeps his own
    right_rank, wrong_rank = ranks(texts, images), ranks(texts[wrong], images)
    less = (right_rank[:, None] < wrong_rank[None]).mean()
    same = (right_rank[:, None] == wrong_rank[None]).mean()
    return {
        "AUROC of the rank": round(float(less + same / 2), 4),
        "median rank, right": float(np.median(right_rank)),
        "median rank, swapped": float(np.median(wrong_rank)),
    }


if __name__ == "__main__":
    main()
