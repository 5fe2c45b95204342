from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from training.evaluating.bootstrap import resamples
from training.evaluating.manifold import is_inside, precision_score, recall_score


def circle(num: int, radius: float, centre: float = 0.0) -> Tensor:
    angle = torch.arange(num, dtype=torch.float64) * 2 * torch.pi / num
    return radius * torch.stack([angle.cos(), angle.sin()], 1) + centre


def test_what_was_built_to_cover_half_scores_half() -> None:
    """Real: two clusters. Drawn: one of them and, as many again, nothing real."""
    near, far, nowhere = circle(10, 0.1), circle(10, 0.1, 50.0), circle(10, 0.1, -50.0)
    real, drawn = torch.cat([near, far]), torch.cat([near + 1e-3, nowhere])
    weights = resamples(20, 100, 0)
    precision, recall = (score(drawn, real, weights) for score in (precision_score, recall_score))
    assert precision.value == recall.value == 0.5
    assert 0.2 < precision.low < 0.5 < precision.high < 0.8


def test_a_drawn_set_of_one_picture_is_precise_and_recalls_nothing() -> None:
    real = circle(12, 1.0)
    drawn = real[:1] + 1e-6 * circle(8, 1.0)
    assert is_inside(drawn, real).all()
    assert is_inside(real, drawn).sum() <= 1


def test_a_set_lies_in_its_own_manifold_and_disjoint_sets_in_none() -> None:
    one, other = circle(9, 1.0), circle(9, 1.0, 100.0)
    assert is_inside(one, one).all()
    assert not is_inside(one, other).any()


@pytest.mark.parametrize("k", [1, 3])
def test_overlapping_sets_agree_with_torch_fidelity(normal: Callable[..., Tensor], k: int) -> None:
    drawn, real = normal(60, 4, 0, 0.7, 0.8), normal(50, 4, 1)
    expected = calculate_precision_recall_full(drawn, real, neighborhood=k)
    got = [is_inside(drawn, real, k), is_inside(real, drawn, k)]
    assert [one.double().mean().item() for one in got] == pytest.approx(expected)
    assert 0 < expected[0] < 1
