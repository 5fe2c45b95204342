import pytest

from infra.planning.encoders import encoder_cost, transformer_flops


@pytest.mark.parametrize(
    ("name", "dim", "gflops"),
    [("ViT-B-32", 512, 14.78), ("ViT-B-16", 512, 41.09), ("ViT-L-14", 768, 175.33)],
)
def test_costs_are_those_that_open_clip_publishes(name: str, dim: int, gflops: float) -> None:
    """docs/model_profile.csv of open_clip: picture and 77 tokens together."""
    cost = encoder_cost(name)
    assert cost is not None
    assert cost.dim == dim
    assert cost.flops(77) / 1e9 == pytest.approx(gflops, rel=0.005)


def test_what_is_no_pair_of_transformers_is_not_guessed_at() -> None:
    assert encoder_cost("RN50") is None
    assert encoder_cost("no-such-model") is None


def test_a_layer_costs_its_projections_and_its_attention() -> None:
    assert transformer_flops(1, 10, 3) == 24 * 3 * 100 + 4 * 9 * 10
