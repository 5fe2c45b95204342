import pytest
import torch
from torch import Tensor

from training.guidance import guided

B, L, W = 3, 5, 8
X = torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(0))
T = torch.zeros(B, dtype=torch.long)
TOKENS, MASK = torch.ones(B, L, W), torch.ones(B, L, dtype=torch.bool)


class ByText:
    """x times the sum of the first token, -x without a text; counts the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(text_tokens) == len(text_mask)
        self.batches.append(len(x_t))
        scale = torch.where(text_mask.any(1), text_tokens[:, 0].sum(1), -1.0)
        return scale.view(-1, 1, 1, 1) * x_t


def test_guidance_interpolates_and_extrapolates_in_one_forward_pass() -> None:
    denoiser = ByText()
    assert torch.equal(guided(denoiser, TOKENS, MASK, 1.0)(X, T), 8 * X)
    assert torch.equal(guided(denoiser, TOKENS, MASK, 0.0)(X, T), -X)
    torch.testing.assert_close(guided(denoiser, TOKENS, MASK, 3.0)(X, T), -X + 3 * (9 * X))
    assert denoiser.batches == [B, 2 * B, 2 * B]


def test_negative_caption_takes_the_place_of_none() -> None:
    negative = 2 * TOKENS, MASK
    output = guided(ByText(), TOKENS, MASK, 3.0, negative=negative)(X, T)
    torch.testing.assert_close(output, 16 * X + 3 * (8 * X - 16 * X))
    # The caption itself as the negative: nothing to pull away from.
    same = guided(ByText(), TOKENS, MASK, 7.0, negative=(TOKENS, MASK))(X, T)
    torch.testing.assert_close(same, 8 * X)


def shifted(x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
    """Not a multiple of x, so that rescaling isn't a division by the guidance's own factor."""
    assert len(x_t) == len(t) == len(text_tokens)
    return torch.where(text_mask.any(1).view(-1, 1, 1, 1), x_t.flip(3), 0.3 * x_t + 0.1)


@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_rescaling_gives_back_the_conditional_contrast(scale: float) -> None:
    def output(rescale: float) -> Tensor:
        return guided(shifted, TOKENS, MASK, scale, rescale=rescale)(X, T)

    def std(pictures: Tensor) -> Tensor:
        return pictures.flatten(1).std(1)

    conditional = guided(shifted, TOKENS, MASK, 1.0)(X, T)
    torch.testing.assert_close(std(output(1.0)), std(conditional))
    # In between it mixes what is rescaled with what isn't (Lin et al. 2024, equation 16).
    torch.testing.assert_close(output(0.7), 0.7 * output(1.0) + 0.3 * output(0.0))
    assert not torch.allclose(std(output(0.0)), std(conditional))


def test_rescaling_leaves_the_conditional_prediction_alone() -> None:
    plain = guided(shifted, TOKENS, MASK, 1.0)(X, T)
    assert torch.equal(guided(shifted, TOKENS, MASK, 1.0, rescale=0.7)(X, T), plain)
