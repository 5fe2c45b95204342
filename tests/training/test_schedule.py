import pytest
import torch

from infra.errors import ConfigError
from training.schedule import cosine, gather, linear, make_schedule


def test_linear_table_has_the_closed_form_values() -> None:
    schedule = make_schedule("linear", 1000)
    assert schedule.betas.dtype == torch.float64
    assert schedule.betas.sum().item() == pytest.approx(10.05, rel=1e-12)
    assert schedule.alphas_cumprod[999].item() == pytest.approx(4.03583e-5, rel=1e-5)
    assert schedule.alphas_cumprod[499].item() == pytest.approx(0.0785872, rel=1e-5)
    assert schedule.posterior_variance[0].item() == 0
    assert schedule.posterior_variance[1].item() == pytest.approx(5.45319e-5, rel=1e-5)


def test_cosine_table_has_the_closed_form_values() -> None:
    schedule = make_schedule("cosine", 1000)
    assert schedule.betas.max().item() == 0.999
    assert schedule.alphas_cumprod[999].item() == pytest.approx(2.4288e-9, rel=1e-4)
    assert schedule.alphas_cumprod[499].item() == pytest.approx(0.493844, rel=1e-5)


def test_linear_reaches_the_same_noise_at_other_lengths() -> None:
    final = [linear(n).neg().log1p().sum().exp().item() for n in (500, 1000, 2000)]
    assert final[0] == pytest.approx(final[1], rel=0.15)
    assert final[2] == pytest.approx(final[1], rel=0.15)


@pytest.mark.parametrize("make", [linear, cosine])
def test_subsequence_keeps_alphas_cumprod_at_the_timesteps_it_visits(make: object) -> None:
    full = make_schedule(make.__name__, 1000)  # type: ignore[attr-defined]
    sub, timesteps = full.subsequence(50)
    assert len(timesteps) == 50
    assert timesteps[0] == 0
    assert timesteps[-1] == 999
    torch.testing.assert_close(sub.alphas_cumprod, full.alphas_cumprod[timesteps])
    whole, every = full.subsequence(1000)
    assert every == list(range(1000))
    torch.testing.assert_close(whole.posterior_variance, full.posterior_variance)


def test_gather_is_float32_of_the_float64_table() -> None:
    schedule = make_schedule("linear", 1000)
    t = torch.tensor([0, 999])
    gathered = gather((1 - schedule.alphas_cumprod).sqrt(), t, 4)
    assert gathered.shape == (2, 1, 1, 1)
    assert gathered.dtype == torch.float32
    # 1 - alphas_cumprod at t = 0 is beta_0 itself
    assert gathered[0].item() == pytest.approx(0.01, rel=1e-7)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_number_of_steps_is_named(num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_steps is {num_steps}: expected 1 to 1000"):
        make_schedule("linear", 1000).subsequence(num_steps)


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'sigmoid': expected one of cosine, linear"):
        make_schedule("sigmoid", 1000)
