from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import score, select
from pipeline.corpus import Manifest
from tests.pipeline.takedown.forgotten import HERE


@pytest.fixture
def root(tmp_path: Path, make_corpus: Callable[..., Manifest]) -> str:
    """3 shards of 4 emoji, scored and selected."""
    place = str(tmp_path / "corpus")
    make_corpus(place, num_shards=3, num_samples=4)
    score.run(score.Config(root=place, signals=("caption", "image"), workers=HERE))
    select.run(select.Config(root=place, name="long", where="num_words > 1"))
    return place
