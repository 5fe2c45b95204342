"""What the page and the card tell of licences and languages, against the rows themselves."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.cluster import Workers
from pipeline import report, score, select
from pipeline.corpus import Manifest, iter_samples, read_rows, write_manifest, write_shard

LICENCES = ["CC0-1.0"] * 7 + ["CC-BY-4.0"] * 4 + [None, "CC-BY-4.0"]
"""Of a shard's rows; the last one failed, so that its licence is of no sample."""

GERMAN = dict.fromkeys((2, 14, 15), "Ein rotes Haus am Ufer eines Sees im Winter")
"""Captions by their numbers, 12 a shard; the others are English, and these three are CC0."""


@pytest.fixture
def licensed(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    """A corpus whose list told licences, scored and selected by them."""
    root = str(tmp_path / "corpus")
    manifest = make_corpus(root, captions=GERMAN)
    shards = []
    for shard in manifest.shards:
        rows = read_rows(root, shard).append_column("license", [LICENCES])
        samples = list(iter_samples(root, shard))
        shards.append(write_shard(root, shard.name, samples, rows, {}))
    write_manifest(root, manifest.model_copy(update={"shards": shards}))
    score.run(score.Config(root=root, signals=("caption",), workers=Workers(local=True)))
    select.run(select.Config(root=root, name="free", where="license = 'CC0-1.0'"))
    return root


def page_and_card(root: str) -> tuple[str, str]:
    """The text that a reader sees, and the card."""
    outputs = report.run(report.Config(root=root)).outputs
    html = Path(outputs["page"]).read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    return text, Path(outputs["card"]).read_text(encoding="utf-8")


def test_licences_are_told_with_their_counts(licensed: str) -> None:
    page, card = page_and_card(licensed)
    assert (
        "Licences What the list says of each picture. samples kept "
        "CC0-1.0 14 14 CC-BY-4.0 8 0 unknown 2 0 " in page
    )
    assert "| CC0-1.0 | 14 |\n| CC-BY-4.0 | 8 |\n| unknown | 2 |\n" in card


def test_a_list_without_licences_says_so(small_corpus: str) -> None:
    page, card = page_and_card(small_corpus)
    assert "Licences" not in page
    assert "each picture and caption is its owner's" in card


def test_languages_are_told_with_their_counts(licensed: str) -> None:
    page, card = page_and_card(licensed)
    assert " samples kept en 21 11 de 3 3 " in page.partition(" Languages ")[2]
    assert "| en | 21 |\n| de | 3 |\n" in card
