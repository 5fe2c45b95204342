import pytest
import torch

from retrieval.encoding.encoder import load_encoder
from training.config import TextConfig
from training.text import CaptionEncoder, CaptionTokens
from training.text_transformer import TextTransformer


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


def test_tower_reads_a_few_at_once_as_all(captions: CaptionEncoder) -> None:
    texts = ["cat", "a cat in the snow", "red heart", "dog", "cat"]
    whole, mask = captions.encode(texts)
    parts, same_mask = captions.encode(texts, 2)
    torch.testing.assert_close(parts, whole, atol=2e-3, rtol=2e-3)
    assert torch.equal(mask, same_mask)


def test_tokens_of_a_trained_reader_end_where_the_caption_ends() -> None:
    captions = CaptionTokens(width=16, context_length=8, device=torch.device("cpu"))
    ids, mask = captions.encode(["cat", "a cat in the snow", "one two three four five six seven"])
    assert ids.shape == mask.shape == (3, 8)
    assert mask.sum(1).tolist() == [3, 7, 8]
    assert ids.dtype == torch.int64
    assert captions.encode(["cat"])[0].shape == (1, 3)


def test_trained_reader_sees_all_tokens_of_its_caption_and_no_padding() -> None:
    torch.manual_seed(0)
    reader = TextTransformer(TextConfig(width=16, num_layers=2, num_heads=2, context_length=8))
    ids, mask = CaptionTokens(16, 8, torch.device("cpu")).encode(["red cat", "a cat in the snow"])
    states = reader(ids, mask)
    torch.testing.assert_close(reader(ids[:1, :4], mask[:1, :4]), states[:1, :4])
    changed = ids.clone()
    changed[0, 2] = 7  # a later token, seen by an earlier one
    assert (reader(changed, mask)[0, 1] - states[0, 1]).abs().max() > 1e-4
    assert reader(ids, torch.zeros_like(mask)).isfinite().all()
