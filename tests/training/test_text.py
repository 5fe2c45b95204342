import pytest
import torch

from retrieval.encoding.encoder import load_encoder
from training.text import CaptionEncoder


@pytest.fixture
def captions(tiny_text_encoder: str) -> CaptionEncoder:
    return CaptionEncoder(load_encoder(tiny_text_encoder), torch.device("cpu"))


def test_tokens_are_padded_to_the_longest_caption(captions: CaptionEncoder) -> None:
    tokens, mask = captions.encode(["cat", "a cat in the snow"])
    assert tokens.shape == (2, 7, captions.width)  # start, five words, end
    assert mask.sum(1).tolist() == [3, 7]
    assert not tokens[0, 3:].any()


def test_remembered_captions_read_the_same_beside_any_other(captions: CaptionEncoder) -> None:
    captions.remember(["cat", "a cat in the snow", "red heart"])
    alone, _ = captions.encode(["red heart"])
    tokens, mask = captions.encode(["a cat in the snow", "red heart", "unheard of"])
    assert torch.equal(tokens[1][mask[1]], alone[0])


def test_memory_and_tower_agree(captions: CaptionEncoder) -> None:
    fresh, mask = captions.encode(["cat", "red heart"])
    captions.remember(["red heart", "cat", "dog"])
    remembered, same_mask = captions.encode(["cat", "red heart"])
    torch.testing.assert_close(remembered, fresh, atol=2e-3, rtol=2e-3)
    assert torch.equal(mask, same_mask)
