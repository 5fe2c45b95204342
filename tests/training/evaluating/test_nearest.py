from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.evaluating.nearest import near_distance, nearest, nearest_other


def test_a_copy_is_at_distance_zero_from_the_picture_it_copies(
    normal: Callable[..., Tensor],
) -> None:
    corpus = normal(40, 8, 0)
    distances, rows = nearest(torch.stack([corpus[7], corpus[21] + 0.1]), corpus)
    assert distances.tolist() == pytest.approx([0, 0.1 * 8**0.5])
    assert rows.tolist() == [7, 21]


def test_the_corpus_itself_is_measured_without_each_picture_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = torch.tensor([[0.0], [1.0], [1.5], [10.0]])
    monkeypatch.setattr("training.evaluating.nearest.ROWS_AT_ONCE", 3)
    assert nearest_other(corpus).tolist() == [1.0, 0.5, 0.5, 8.5]


def test_five_of_a_hundred_real_pictures_are_nearer_than_near(
    normal: Callable[..., Tensor],
) -> None:
    own = nearest_other(normal(400, 3, 0))
    share = (own < near_distance(own)).double().mean().item()
    assert share == pytest.approx(0.05, abs=0.005)
