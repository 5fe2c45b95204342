"""How soon our default is as good as diffusers after N minutes: the loss on held-out pictures.

    python -m benchmarks.time_to_quality WORK --minutes N     N minutes of diffusers, 0.6 N ours
    python -m benchmarks.time_to_quality WORK --minutes 1 --channels 16 --no-compile     a try

Two networks of equal parameters (within 3%): our `unet` (size S; on a CPU with half its channels)
and diffusers' UNet2DConditionModel, of as many levels, blocks and places of attention. Both see the
same pictures and captions in the same order (emoji; a tenth of them, by caption, is held out), at
one batch size and one size of picture, through the same frozen text embeddings, noised by one
schedule, without which losses don't compare. They take turns of some seconds, so that what else the
machine does hits both.

ours        every setting that decides what is learnt is a default of `carrara train`: v with
            min-SNR weights, a tenth of the captions hidden, AdamW, warm-up, decay over the last
            part of the steps, the average. The steps are what fits into 0.6 N minutes, by a trial.
diffusers   its examples/text_to_image/train_text_to_image.py with its defaults: squared error in
            eps, AdamW at 1e-4 after its warm-up of 500 steps, EMAModel.

Each runs with the best of its own settings: bfloat16 or float32, channels-last or not, fused or
plain attention, compiled or not, by a trial of each (--no-compile leaves that one out: it takes
minutes on a CPU). The clock of a side counts its training, waiting for data included; not what
compiles, and not the looks, which are at the averaged weights of both, in float32, at the same
pictures, timesteps and noise: L_simple, the mean squared error in eps over all t.
"""

import argparse
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.diffusers_unet import DiffusersTrainer, Settings, channels_of_equal_parameters
from benchmarks.machine import processor
from benchmarks.result_corpus import build
from benchmarks.unet_sides import NUM_STEPS, Best, Side, best_settings, our_trainer, taking_part
from infra.cluster import Workers
from training.config import Config
from training.data import make_stream
from training.diffusion import make_objective
from training.layers import Backbone
from training.loop import Trainer
from training.model import TrainedModel, model_of
from training.network import make_network
from training.text import make_captions
from training.watching.examples import Example, read_examples
from training.watching.held_out_loss import loss_by_timestep

TARGET = 0.6
TOLERANCE = 0.03
"""Of equal parameters."""
TRIAL_S = 5.0
"""Of each of a side's settings."""


@dataclass(frozen=True)
class Point:
    seconds: float
    num_steps: int
    loss: float


def main() -> None:
    arguments = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, held_out = build(arguments.work, emoji_only=True)
    config = make_config(arguments, train)
    captions = make_captions(config, device)
    captions.remember(make_stream(config).captions())
    num_parameters = make_network(config, captions.width).num_parameters
    channels, theirs = channels_of_equal_parameters(config, captions.width, num_parameters)
    print(
        f"{machine(device)}; batches of {config.batch_size} at {config.image_size} pixels\n"
        f"parameters: ours {num_parameters:,}, diffusers' with channels {channels} {theirs:,} "
        f"({theirs / num_parameters - 1:+.1%})",
        flush=True,
    )
    assert abs(theirs / num_parameters - 1) < TOLERANCE

    def ours(settings: Settings) -> Trainer:
        return our_trainer(config, settings, device)

    def peer(settings: Settings) -> DiffusersTrainer:
        return DiffusersTrainer(config, channels, captions, settings, device)

    def best(name: str, make: Callable[[Settings], Any]) -> Best:
        compiles = not arguments.no_compile
        return best_settings(name, make, config, device, TRIAL_S, compiles=compiles)

    our_best, their_best = best("ours", ours), best("diffusers", peer)
    seconds = 60 * arguments.minutes
    num_steps = round(TARGET * seconds * our_best.images_per_s / config.batch_size)
    config = config.model_copy(update={"num_steps": max(num_steps, 10)})
    examples = read_examples(
        config.model_copy(update={"root": str(held_out)}), False, arguments.num_pictures
    )
    with ExitStack() as stack:
        enter = stack.enter_context
        side = enter(taking_part(ours(our_best.settings), config, our_best.settings, device))
        their_settings = their_best.settings
        other = enter(taking_part(peer(their_settings), config, their_settings, device))
        curves = take_turns(side, other, seconds, examples, arguments)
    conclude(*curves)


def parse() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of diffusers' training")
    parser.add_argument("--channels", type=int, default=64 if on_gpu else 32)
    parser.add_argument("--image-size", type=int, default=64 if on_gpu else 32)
    parser.add_argument("--batch-size", type=int, default=128 if on_gpu else 16)
    parser.add_argument("--num-looks", type=int, default=20)
    parser.add_argument("--num-pictures", type=int, default=256, help="looked at, at most")
    parser.add_argument("--slice-s", type=float, default=10.0, help="of diffusers in a turn")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args()


def make_config(arguments: argparse.Namespace, corpus: Path) -> Config:
    """The defaults, but for size, place and what is held out, which is a corpus of its own here."""
    settings: dict[str, Any] = {"size": "S", "unet": {"channels": arguments.channels}}
    return Config(
        root=str(corpus),
        run=str(arguments.work / "run"),  # where nothing is written
        encoder="Carrara-S/emoji_clipart",
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        held_out=0.0,
        num_steps=NUM_STEPS,  # in the trials
        workers=Workers(local=True),
        **settings,
    )


# The race


def take_turns(
    ours: Side[Trainer],
    theirs: Side[DiffusersTrainer],
    seconds: float,
    examples: Sequence[Example],
    arguments: argparse.Namespace,
) -> tuple[list[Point], list[Point]]:
    """Ours takes its steps, theirs its seconds: the same share of them in every turn."""
    first, steps = ours.num_steps, ours.trainer.config.num_steps - ours.num_steps
    num_turns = max(1, round(seconds / arguments.num_looks / arguments.slice_s))
    sides: tuple[Side[Any], Side[Any]] = (ours, theirs)
    curves: tuple[list[Point], list[Point]] = ([], [])
    for look in range(arguments.num_looks + 1):
        for turn in range(num_turns if look else 0):
            share = ((look - 1) * num_turns + turn + 1) / (arguments.num_looks * num_turns)
            ours.train(to_step=first + round(share * steps))
            theirs.train(to_s=share * seconds)
        models = our_model(ours.trainer), their_model(theirs.trainer, ours.trainer)
        for side, model, curve in zip(sides, models, curves, strict=True):
            loss = loss_by_timestep(model, examples, arguments.num_pictures).loss
            curve.append(Point(side.spent_s, side.num_steps, loss))
        told = "     ".join(
            f"{name} {point.seconds:8.1f} s {point.num_steps:7,} steps {point.loss:8.5f}"
            for name, (*_, point) in zip(("ours", "diffusers"), curves, strict=True)
        )
        print(told, flush=True)
    return curves


def our_model(trainer: Trainer) -> TrainedModel:
    weights = trainer.state.averaged_weights()
    return model_of(trainer.config, trainer.state.step, weights, trainer.captions, trainer.space)


def their_model(trainer: DiffusersTrainer, beside: Trainer) -> TrainedModel:
    """Read as ours is: what puts out eps, on the same captions."""
    config = beside.config.model_copy(update={"prediction": "eps", "weighting": "uniform"})
    return TrainedModel(
        config=config,
        step=0,
        network=CalledAsOurs(trainer.averaged()),
        objective=make_objective(config, beside.worker.device),
        space=beside.space,
        captions=beside.captions,
        device=beside.worker.device,
    )


class CalledAsOurs(Backbone):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    def forward(self, x_t: Tensor, t: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        eps: Tensor = self._network(
            x_t, t, encoder_hidden_states=text_tokens, encoder_attention_mask=text_mask
        ).sample
        return eps


# What it means


def conclude(ours: Sequence[Point], theirs: Sequence[Point]) -> None:
    goal, end = theirs[-1], ours[-1]
    print(
        f"\ndiffusers after {goal.seconds:.0f} s, {goal.num_steps:,} steps: {goal.loss:.5f} "
        f"(its lowest: {min(point.loss for point in theirs):.5f})\n"
        f"ours after {end.seconds:.0f} s, {end.num_steps:,} steps: {end.loss:.5f}, which is "
        f"{end.loss / goal.loss:.3f} of that"
    )
    reached_s = seconds_to(ours, goal.loss)
    if reached_s is None:
        print(
            f"ours / diffusers: more than {end.seconds / goal.seconds:.2f} of the time, for ours "
            f"did not get there (expected at most {TARGET})"
        )
    else:
        print(
            f"ours / diffusers: {reached_s / goal.seconds:.2f} of the time, {reached_s:.0f} s "
            f"against {goal.seconds:.0f} (expected at most {TARGET})"
        )


def seconds_to(curve: Sequence[Point], loss: float) -> float | None:
    """When it first gets there, on a line between two looks."""
    if curve[0].loss <= loss:
        return curve[0].seconds
    for before, after in pairwise(curve):
        if after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss)
            return before.seconds + share * (after.seconds - before.seconds)
    return None


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return (
        f"{processor()} ({platform.machine()}), {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
