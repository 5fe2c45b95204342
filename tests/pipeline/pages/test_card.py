from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from infra.cluster import Workers
from infra.errors import ConflictError
from pipeline import report, score
from pipeline.corpus import read_manifest
from pipeline.pages.card import MARK, size_category


def test_the_hub_reads_the_card(small_corpus: str) -> None:
    here = Workers(local=True)
    score.run(score.Config(root=small_corpus, signals=("caption",), workers=here))
    report.run(report.Config(root=small_corpus, licence="apache-2.0", title="Some emoji"))
    card = DatasetCard.load(Path(small_corpus, "README.md"))
    assert card.data.license == "apache-2.0"
    assert card.data.pretty_name == "Some emoji"
    assert card.data.size_categories == ["n<1K"]
    assert "en" in card.data.language
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "shards/*.tar"}]
    assert "| HTTP 404 |" not in card.text  # the funnel tells statuses as the manifest counts them
    assert "| failed to download | −2 |" in card.text
    assert "| example.org | 26 | 24 |" in card.text
    assert read_manifest(small_corpus).digest in card.text


def test_a_readme_of_the_users_is_never_replaced(small_corpus: str) -> None:
    path = Path(small_corpus, "README.md")
    path.write_text("mine")
    with pytest.raises(ConflictError, match="was not written by `carrara report`"):
        report.run(report.Config(root=small_corpus))
    assert path.read_text() == "mine"
    other = str(Path(small_corpus, "CARD.md"))
    report.run(report.Config(root=small_corpus, card=other))
    report.run(report.Config(root=small_corpus, card=other))
    assert MARK in Path(other).read_text()


@pytest.mark.parametrize(
    ("num", "name"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (5_850_000_000, "1B<n<10B"),
        (10**12, "n>1T"),
    ],
)
def test_sizes_are_told_in_the_hubs_words(num: int, name: str) -> None:
    assert size_category(num) == name
