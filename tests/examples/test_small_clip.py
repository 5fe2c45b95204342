"""The recipe of the shipped encoder: its captions, its split, and what it gave."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from examples.small_clip.clipart import plain, read_clipart
from examples.small_clip.evaluate import emoji_pairs, recall
from examples.small_clip.pairs import Pair, content_words, group_pairs, is_held_out

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "retrieval" / "models" / "Carrara-S"

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title>{title}</dc:title>
<dc:subject><rdf:Bag><rdf:li>hash</rdf:li><rdf:li>HASH(0x8a07724)</rdf:li><rdf:li></rdf:li>
<rdf:li>big_cat</rdf:li><rdf:li>jane doe</rdf:li></rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>Jane Doe</dc:title></cc:Agent></dc:creator>
</cc:Work></rdf:RDF></metadata></svg>"""


def write_clipart(root: Path, name: str, title: str) -> None:
    for kind in ("svg", "png"):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "svg" / f"{name}.svg").write_text(SVG.format(title=title), "utf-8")
    Image.new("RGBA", (8, 8), "red").save(root / "png" / f"{name}.png")


def test_a_clip_arts_caption_is_its_title_and_what_it_is_filed_under(tmp_path: Path) -> None:
    write_clipart(tmp_path, "animals/tiger_jane_doe_01", "Sleepy_Tiger 01")
    (found,) = read_clipart(tmp_path)
    assert found.caption == "sleepy tiger, big cat, animals"


def test_a_title_that_many_share_gives_way_to_the_file_name(tmp_path: Path) -> None:
    for name in ("lion", "lynx", "puma", "tiger", "ocelot", "cheetah"):
        write_clipart(tmp_path, f"animals/contour_{name}_jan_01", "Clipart by Jane - bored cat")
    assert [one.title for one in read_clipart(tmp_path)] == [
        "cheetah", "lion", "lynx", "ocelot", "puma", "tiger",
    ]  # fmt: skip


def test_series_and_files_without_a_picture_are_left_out(tmp_path: Path) -> None:
    write_clipart(tmp_path, "shapes/stars/star_43pt19step", "gramastar")
    write_clipart(tmp_path, "food/pear", "Pear")
    (tmp_path / "png" / "food" / "pear.png").unlink()
    assert list(read_clipart(tmp_path)) == []


def test_an_svg_that_is_no_xml_still_has_the_words_of_its_name(tmp_path: Path) -> None:
    write_clipart(tmp_path, "food/green_pear_02", "unused")
    (tmp_path / "svg/food/green_pear_02.svg").write_text("<svg><title>", "utf-8")
    (found,) = read_clipart(tmp_path)
    assert found.caption == "green pear, food"


def test_plain_text_has_no_markup_of_its_library() -> None:
    assert plain("  Map_of-Norway 01a ") == "map of norway"


def test_variants_of_one_picture_or_title_are_one_group() -> None:
    titles = ["man cook", "woman cook", "cavallo", "pear", "green pear", "quince"]
    pairs = [Pair(f"{index}.png", (title,), title, "test") for index, title in enumerate(titles)]
    thumbnails = np.random.default_rng(0).uniform(0, 255, (len(pairs), 768)).astype(np.float32)
    thumbnails[5] = thumbnails[2] + 1  # a quince that looks like the horse
    groups = group_pairs(pairs, thumbnails)
    assert groups == ["0.png", "0.png", "2.png", "3.png", "4.png", "2.png"]


def test_words_that_only_tell_variants_apart_do_not_count() -> None:
    assert content_words("woman running facing right") == content_words("man running")
    assert content_words("keycap 4") == content_words("keycap 5")
    assert content_words("woman") == {"woman"}
    assert content_words("red heart") != content_words("blue heart")


def test_about_a_tenth_is_held_out_and_always_the_same() -> None:
    held_out = [is_held_out(f"emoji/{number}.png") for number in range(5000)]
    assert 0.08 < np.mean(held_out) < 0.12
    assert held_out == [is_held_out(f"emoji/{number}.png") for number in range(5000)]


def test_recall_is_strict_and_counts_a_tie_as_a_miss() -> None:
    images = np.eye(4, dtype=np.float32)
    assert recall(images, images)["image to text @1"] == 1.0
    assert recall(images, images[[1, 0, 2, 3]])["text to image @1"] == 0.5
    assert recall(np.ones((4, 4), np.float32), images)["text to image @1"] == 0.0


@pytest.fixture(scope="module")
def embedded() -> tuple[np.ndarray, np.ndarray]:
    """The first 300 emoji, loaded as a stranger would, with open_clip alone."""
    name = f"local-dir:{MODEL}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    pairs = [pair for pair, _ in zip(emoji_pairs(), range(300), strict=False)]
    with torch.inference_mode():
        images = model.encode_image(torch.stack([preprocess(picture) for picture, _ in pairs]))
        texts = model.encode_text(tokenizer([text for _, text in pairs]))
    return tuple(
        (vectors / vectors.norm(dim=1, keepdim=True)).numpy() for vectors in (images, texts)
    )


def test_the_shipped_model_finds_its_own_captions(embedded: tuple[np.ndarray, np.ndarray]) -> None:
    found = recall(*embedded)
    assert found["text to image @10"] > 0.5  # chance: 0.033
    assert found["image to text @10"] > 0.5


def test_the_shipped_model_keeps_to_its_size_and_has_a_card() -> None:
    assert (MODEL / "open_clip_model.safetensors").stat().st_size <= 24_000_000
    assert "Held out" in (MODEL / "README.md").read_text("utf-8")


def test_the_lists_are_made_from_the_real_emoji(tmp_path: Path) -> None:
    """The whole of pairs.py as the README runs it, with one clip art."""
    write_clipart(tmp_path / "clipart", "food/pear", "Pear")
    dist = tmp_path / "emojilib" / "dist"
    dist.mkdir(parents=True)
    (dist / "emoji-en-US.json").write_text('{"🐱": ["cat_face", "pet", ":3"]}', "utf-8")
    work = tmp_path / "work"
    command = [sys.executable, "-m", "examples.small_clip.pairs", str(work)]
    command += ["--clipart", str(tmp_path / "clipart"), "--emojilib", str(tmp_path / "emojilib")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    num_pictures = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert sum(num_pictures) == 1912
    assert 100 < num_pictures[1] < 300
    with zipfile.ZipFile(ROOT / "examples" / "emoji" / "pictures.zip") as archive:
        assert len(list((work / "pictures" / "emoji").iterdir())) == len(archive.namelist())
    shutil.rmtree(work)
