from types import FunctionType

import pytest
import torch

from infra.errors import ConfigError
from training.schedule import Spacing, cosine, linear, make_schedule, with_zero_terminal_snr


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
def test_subsequence_keeps_alphas_cumprod_at_the_timesteps_it_visits(make: FunctionType) -> None:
    full = make_schedule(make.__name__, 1000)
    sub, timesteps = full.subsequence(50)
    assert len(timesteps) == 50
    assert timesteps[0] == 0
    assert timesteps[-1] == 999
    torch.testing.assert_close(sub.alphas_cumprod, full.alphas_cumprod[timesteps])
    whole, every = full.subsequence(1000)
    assert every == list(range(1000))
    torch.testing.assert_close(whole.posterior_variance, full.posterior_variance)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_zero_terminal_snr_leaves_nothing_of_the_picture(name: str) -> None:
    plain, rescaled = make_schedule(name, 1000), make_schedule(name, 1000, zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    assert rescaled.betas[-1] == 1
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])
    # Algorithm 1 shifts and scales sqrt(alphas_cumprod): the differences stay in proportion.
    steps, before = rescaled.alphas_cumprod.sqrt().diff(), plain.alphas_cumprod.sqrt().diff()
    torch.testing.assert_close(steps / steps[0], before / before[0])
    assert with_zero_terminal_snr(linear(1)).tolist() == [1]


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("spacing", ["t", "log-snr", "angle"])
def test_steps_lie_evenly_in_what_they_are_asked_to(name: str, spacing: Spacing) -> None:
    schedule = make_schedule(name, 1000)
    _, timesteps = schedule.subsequence(12, spacing)
    assert (timesteps[0], timesteps[-1]) == (0, 999)
    place = {"t": torch.arange(1000.0), "log-snr": schedule.log_snr, "angle": schedule.angle}
    gaps = place[spacing][timesteps[1:-1]].diff().abs()  # the cosine schedule's last is cut off
    assert (gaps / gaps.mean() - 1).abs().max() < 0.2  # they are rounded to whole timesteps


@pytest.mark.parametrize("spacing", ["t", "log-snr", "angle"])
@pytest.mark.parametrize("num_steps", [1, 2, 700, 1000])
def test_no_timestep_is_visited_twice(num_steps: int, spacing: Spacing) -> None:
    schedule = make_schedule("cosine", 1000, zero_terminal_snr=True)
    sub, timesteps = schedule.subsequence(num_steps, spacing)
    assert timesteps == sorted(set(timesteps))
    assert len(timesteps) == sub.num_timesteps == num_steps
    assert timesteps[-1] == 999
    assert sub.betas.isfinite().all()


def test_schedule_cut_short_keeps_its_least_noisy_steps() -> None:
    schedule = make_schedule("cosine", 1000)
    shorter = schedule.until(300)
    assert torch.equal(shorter.alphas_cumprod, schedule.alphas_cumprod[:300])


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_number_of_steps_is_named(num_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_steps is {num_steps}: expected 1 to 1000"):
        make_schedule("linear", 1000).subsequence(num_steps)


@pytest.mark.parametrize("num_timesteps", [2, 10, 20])
def test_so_few_steps_that_a_linear_beta_would_pass_1_are_refused(num_timesteps: int) -> None:
    with pytest.raises(ConfigError, match=f"num_timesteps is {num_timesteps}: .* more than 20, or"):
        make_schedule("linear", num_timesteps)
    for schedule in (make_schedule("linear", 21), make_schedule("cosine", num_timesteps)):
        assert ((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1)).all()


def test_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'sigmoid': expected one of cosine, linear"):
        make_schedule("sigmoid", 1000)
