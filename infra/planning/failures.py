"""Machines are lost and links rot: what that costs, in closed form and by simulation.

Losses come as a Poisson process. What is lost is the work since the last safe point, which for
training is a checkpoint and for the other stages the shard that a worker was at.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

LINK_ROT_PER_MONTH = 0.01
"""An assumption (docs/plan.md): said of LAION-5B, by no source that could be found."""
MONTH_S = 30.44 * 86_400
LEAST_SIMULATED = 0.05
"""Goodput; playing through less takes ever longer."""
MOST_INTERVALS = 20_000
"""That are played through: more change nothing that is shown."""


def young_interval_s(checkpoint_s: float, mean_between_losses_s: float) -> float:
    """Young 1974, "A first order approximation to the optimum checkpoint interval": sqrt(2 C M)."""
    return math.sqrt(2 * checkpoint_s * mean_between_losses_s)


def daly_interval_s(checkpoint_s: float, mean_between_losses_s: float) -> float:
    """Daly 2006, "A higher order estimate of the optimum checkpoint interval", equation 37: the
    work between two checkpoints."""
    c, m = checkpoint_s, mean_between_losses_s
    if c >= 2 * m:
        return m
    ratio = c / (2 * m)
    return math.sqrt(2 * c * m) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - c


def goodput(work_s: float, save_s: float, restart_s: float, mean_between_losses_s: float) -> float:
    """The share of time that goes into work that counts, where `work_s` of it are followed by
    `save_s` of saving, and a loss costs what came since, and `restart_s` (Daly 2006, equation 20).
    """
    m = mean_between_losses_s
    if math.isinf(m):
        return work_s / (work_s + save_s)
    exponent = (work_s + save_s) / m
    if exponent > 700:  # no interval is ever finished
        return 0.0
    return work_s / (m * math.exp(restart_s / m) * math.expm1(exponent))


def simulated_goodput(
    work_s: float,
    save_s: float,
    restart_s: float,
    mean_between_losses_s: float,
    num_intervals: int,
    random: "Generator",
) -> float:
    """The same, played through: losses while working, saving and restarting alike."""
    clock = 0.0
    next_loss = random.exponential(mean_between_losses_s)
    need = work_s + save_s
    num_done = 0
    starting_s = 0.0
    while num_done < num_intervals:
        if clock + starting_s + need <= next_loss:
            clock += starting_s + need
            num_done += 1
            starting_s = 0.0
        else:
            clock = next_loss
            next_loss = clock + random.exponential(mean_between_losses_s)
            starting_s = restart_s
    return num_intervals * work_s / clock


def live_share(age_s: float, duration_s: float, rot_per_month: float) -> float:
    """Links still alive, in the mean over a download of that length that begins at that age."""
    if not rot_per_month:
        return 1.0
    rate = -math.log1p(-rot_per_month) / MONTH_S
    if rate * duration_s < 1e-9:
        return math.exp(-rate * age_s)
    return math.exp(-rate * age_s) * -math.expm1(-rate * duration_s) / (rate * duration_s)


def simulated_live_share(
    age_s: float, duration_s: float, rot_per_month: float, num_links: int, random: "Generator"
) -> float:
    """The same, link by link."""
    rate = -math.log1p(-rot_per_month) / MONTH_S
    deaths = random.exponential(1 / rate, num_links) if rate else math.inf
    fetched = age_s + duration_s * random.random(num_links)
    return float((deaths > fetched).mean())


@dataclass(frozen=True)
class Losses:
    """How a stage's machines are lost, and what each loss takes."""

    mean_between_s: float
    """Of all machines that stop together: one, or in training all of them."""
    work_s: float
    """Between two safe points."""
    save_s: float
    restart_s: float

    @property
    def goodput(self) -> float:
        return goodput(self.work_s, self.save_s, self.restart_s, self.mean_between_s)

    def simulated(self, total_s: float, random: "Generator") -> float:
        """Of one run of so much work; where hardly anything is ever finished, as calculated."""
        if math.isinf(self.mean_between_s) or self.goodput < LEAST_SIMULATED:
            return self.goodput
        num = min(max(1, round(total_s / self.work_s)), MOST_INTERVALS)
        return simulated_goodput(
            self.work_s, self.save_s, self.restart_s, self.mean_between_s, num, random
        )
