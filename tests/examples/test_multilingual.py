"""The recipe of the multilingual tower: what it is taught, what is kept from it, what it gave."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from examples.small_clip.evaluate import emoji_pairs
from examples.small_clip.multilingual.evaluate import Space, figures, held_out_names, recall
from examples.small_clip.multilingual.lessons import Lessons, make_lessons, read_split
from examples.small_clip.multilingual.names import (
    HELD_OUT,
    LANGUAGES,
    characters_of,
    read_emoji,
    read_words,
)
from examples.small_clip.multilingual.pieces import cut_texts, learn_pieces, shuffled_batches
from examples.small_clip.multilingual.train import train
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.text_bag import Architecture, TextBag
from retrieval.encoding.towers import load_tower, multilingual_of
from retrieval.encoding.weights import EMBEDDED_TOWERS

(FOLDER,) = EMBEDDED_TOWERS.values()
DIM = 8
NAMES = {
    "1f408.png": {"en": ("cat", ["pet"]), "de": ("Katze", ["Haustier"])},
    "1f415.png": {"en": ("dog", ["pet"]), "de": ("Hund", ["Haustier", "bellen"])},
    "1f40d.png": {"en": ("snake", ["reptile"]), "de": ("Schlange", ["Reptil"])},
}


@pytest.fixture
def cldr(tmp_path: Path) -> Path:
    """Two packages in one folder; languages other than these two name nothing."""
    for kind in ("annotations", "annotationsDerived"):
        for language in LANGUAGES:
            place = tmp_path / "cldr" / kind / language
            place.mkdir(parents=True)
            words = {
                characters_of(name): {"tts": [named[language][0]], "default": named[language][1]}
                for name, named in NAMES.items()
                if kind == "annotations" and language in named
            }
            text = json.dumps({kind: {"annotations": words}})
            (place / "annotations.json").write_text(text, "utf-8")
    return tmp_path / "cldr"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """As examples.small_clip.pairs leaves it: the snake is held out, two cats and a pear seen."""

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        table = [
            {"url": f"http://127.0.0.1/{place}", "caption": caption, "group": place}
            for place, caption in rows
        ]
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{name}.parquet")

    write("heldout", [("emoji/1f40d.png", "snake"), ("clipart/quince.png", "quince")])
    seen = [("emoji/1f408.png", "cat"), ("emoji/1f415.png", "dog"), ("clipart/pear.png", "pear")]
    write("train", seen)
    return tmp_path


def encode(texts: Sequence[str]) -> np.ndarray:
    """A teacher: each text its own place."""
    rows = [np.random.default_rng([*text.encode()]).normal(size=DIM) for text in texts]
    return np.array([row / np.linalg.norm(row) for row in rows], np.float32)


@pytest.fixture
def lessons(work: Path, cldr: Path) -> Lessons:
    return make_lessons(read_split(work, validation=False), cldr, encode)


def target(lessons: Lessons, text: str) -> np.ndarray:
    return lessons.targets[lessons.texts.index(text)].numpy()


def test_words_are_read_by_the_emoji_that_they_name(cldr: Path) -> None:
    words = read_words(cldr, "de")
    assert words["🐕"].name == "Hund"
    assert words["🐕"].keywords == ("Haustier", "bellen")
    assert characters_of("2764-fe0f.png") == "❤"


def test_english_lands_where_the_teacher_puts_it(lessons: Lessons) -> None:
    for text in ("cat", "pet", "pear", "dog"):
        np.testing.assert_allclose(target(lessons, text), encode([text])[0], atol=1e-6)


def test_other_languages_land_on_the_english_captions_of_what_they_name(lessons: Lessons) -> None:
    cat, dog = encode(["cat", "dog"])
    np.testing.assert_allclose(target(lessons, "Katze"), cat, atol=1e-6)
    np.testing.assert_allclose(target(lessons, "🐕"), dog, atol=1e-6)
    both = (cat + dog) / np.linalg.norm(cat + dog)
    np.testing.assert_allclose(target(lessons, "Haustier"), both, atol=1e-6)
    assert lessons.shares[lessons.texts.index("Haustier")] == {0: 0.5, 1: 0.5}
    assert lessons.shares[lessons.texts.index("pear")] == {}


def test_nothing_of_a_held_out_emoji_is_taught(lessons: Lessons) -> None:
    assert not {"snake", "reptile", "Schlange", "Reptil", "🐍", "quince"} & set(lessons.texts)


def test_settings_are_chosen_on_other_emoji_than_those_held_out(work: Path) -> None:
    rows = [
        {"url": f"http://127.0.0.1/emoji/{one.file_name}", "caption": one.caption, "group": str(i)}
        for i, one in enumerate(read_emoji())
    ]
    pq.write_table(pa.Table.from_pylist(rows[100:]), work / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:100]), work / "heldout.parquet")
    split = read_split(work, validation=True)
    assert not {one.file_name for one in split.held_out} & {one.file_name for one in split.train}
    assert len(split.train) + len(split.held_out) == len(rows) - 100
    assert 0.05 < len(split.held_out) / len(rows) < 0.15
    assert not {one.caption for one in split.held_out} & set(split.captions)


def test_no_script_is_unknown_and_no_vowel_sign_cut_off() -> None:
    tokenizer = learn_pieces(["मुस्काता चेहरा"] * 5, vocab_size=400, context_length=8)
    assert len(tokenizer.encode("मुस्काता").ids) == 1
    assert len(tokenizer.encode("ጤና").ids) == 7  # a space and two letters of three bytes
    assert tokenizer.encode("MUSKATA ❤️").ids == tokenizer.encode("muskata ❤").ids
    assert len(tokenizer.encode("चेहरा " * 100).ids) == 8


def test_an_epoch_holds_each_text_once_and_little_padding() -> None:
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(1000)]
    tokenizer = learn_pieces(texts, vocab_size=500, context_length=16)
    places, padding = [], []
    for batch, tokens in shuffled_batches(tokenizer, texts, 10, np.random.default_rng(0)):
        places += batch.tolist()
        padding.append((tokens == 0).float().mean())
    assert sorted(places) == list(range(1000))
    assert places != list(range(1000))
    assert np.mean(padding) < 0.2
    whole = tokenizer.encode(texts[-1]).ids
    assert cut_texts(tokenizer, texts, dropout=0.0)[-1].tolist() == whole


def test_training_brings_texts_to_their_targets_and_goes_on_where_it_stopped(
    lessons: Lessons, tmp_path: Path
) -> None:
    tokenizer = learn_pieces(lessons.texts, vocab_size=300, context_length=8)
    architecture = Architecture(vocab_size=300, hidden=16, context_length=8, embed_dim=DIM)

    def student() -> TextBag:
        torch.manual_seed(0)
        return TextBag(architecture)

    def distance(model: TextBag) -> float:
        model.eval()
        tokens = [tokenizer.encode(text).ids for text in lessons.texts]
        width = max(map(len, tokens))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
        with torch.inference_mode():
            return float(1 - (model(padded) * lessons.targets).sum(dim=1).mean())

    checkpoint = tmp_path / "checkpoint.pt"
    model = student()
    before = distance(model)
    train(model, tokenizer, lessons, checkpoint, num_epochs=15, seed=0, batch_size=1)
    assert distance(model) < before / 2
    again = student()
    train(again, tokenizer, lessons, checkpoint, num_epochs=15, seed=0)  # nothing is left to do
    assert distance(again) == distance(model)


def test_recall_is_strict_and_counts_a_tie_as_a_miss() -> None:
    answers = np.eye(20, dtype=np.float32)
    assert recall(answers, answers, np.arange(20)) == [1.0, 1.0]
    assert recall(answers[:2], answers, np.array([5, 1])) == [0.5, 0.5]
    assert recall(np.ones((20, 20), np.float32), answers, np.arange(20)) == [0.0, 0.0]


def test_the_held_out_names_are_the_demos_in_every_language() -> None:
    own, names = held_out_names()
    assert len(own) == len(set(own)) == 208
    assert tuple(names) == LANGUAGES
    assert len(LANGUAGES) >= 12
    assert all(all(found) for found in names.values())
    assert "Unicode" in HELD_OUT.with_name("LICENSE.unicode").read_text("utf-8")[:30].title()


@pytest.fixture(scope="module")
def held_out_figures() -> dict[str, np.ndarray]:
    """By language, and by "teacher": recall @1 @10 of captions, pictures of all; of held-out."""
    teacher = load_encoder(EMBEDDED_ENCODER)
    tower = load_tower(multilingual_of(EMBEDDED_ENCODER) or "")
    pictures, captions = zip(*emoji_pairs(), strict=True)
    space = Space(teacher.encode_texts(captions), teacher.encode_images(pictures))
    own, names = held_out_names()
    found = {name: figures(tower.encode_texts, names[name], own, space) for name in LANGUAGES}
    return found | {"teacher": figures(teacher.encode_texts, names["en"], own, space)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_finds_held_out_emoji(
    held_out_figures: dict[str, np.ndarray], language: str
) -> None:
    """Chance is 0.048; the teacher's own recall of pictures, by the English names, 0.365."""
    *_, caption_at_10, _, picture_at_10 = held_out_figures[language]
    assert caption_at_10 > 0.28
    assert picture_at_10 > 0.25


def test_english_names_still_find_what_the_teacher_finds(
    held_out_figures: dict[str, np.ndarray],
) -> None:
    assert held_out_figures["en"][-1] > held_out_figures["teacher"][-1] - 0.1


def test_the_shipped_tower_keeps_to_its_size_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 24_000_000
    assert "Held out" in (FOLDER / "README.md").read_text("utf-8")
