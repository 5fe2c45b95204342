import pytest
import torch

from training.layers import SMALL_SCORES, Attention, group_norm, in_heads, timestep_embedding


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_norm_is_torchs_forward_and_backward(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = group_norm(16)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    plain = torch.nn.GroupNorm(norm.num_groups, 16)
    plain.load_state_dict(norm.state_dict())
    x, gradient = torch.randn(2, 2, 16, 4, 6).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = x.detach().float().requires_grad_()
    output, expected = norm(x), plain(exact)
    output.backward(gradient)
    expected.backward(gradient.float())
    assert output.dtype == dtype
    assert output.is_contiguous(memory_format=torch.channels_last)
    atol, rtol = (0.03, 0.01) if dtype is torch.bfloat16 else (1e-5, 1e-5)
    torch.testing.assert_close(output.float(), expected, atol=atol, rtol=rtol)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.float(), exact.grad, atol=atol, rtol=rtol)
    for ours, torchs in zip(norm.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, torchs.grad, atol=atol, rtol=rtol)


def test_timestep_embedding_tells_neighbours_apart() -> None:
    assert torch.pdist(timestep_embedding(torch.arange(1000), 64)).min() > 0.1
