import pytest
import torch

from training.layers import SMALL_SCORES, Attention, in_heads, timestep_embedding


@pytest.mark.parametrize("num_keys", [5, SMALL_SCORES // 64 + 1])  # plain products, and fused
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_torchs_whatever_computes_it(num_keys: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 64, 16, generator=generator)
    k, v = torch.randn(2, 2, num_keys, 16, generator=generator)
    mask = torch.arange(num_keys) < torch.tensor([[3], [1]])
    heads = [in_heads(x, 4).transpose(1, 2) for x in (q, k, v)]
    seen = mask[:, None, None].expand(-1, 4, 64, -1)
    scores = (heads[0] @ heads[1].mT / 2).masked_fill(~seen, -torch.inf)
    exact = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    output = Attention(4)(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), exact, atol=0.05, rtol=0.02)


def test_timestep_embedding_tells_neighbours_apart() -> None:
    assert torch.pdist(timestep_embedding(torch.arange(1000), 64)).min() > 0.1
