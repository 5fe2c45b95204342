"""Teach a small text tower to land, from many languages, where the English tower lands.

    python -m examples.small_clip.multilingual.train WORK CLDR [--validation]

Reads   WORK/{train,heldout}.parquet (made by examples.small_clip.pairs), CLDR's names, the teacher
Writes  WORK/multilingual/   tokenizer.json, tower.json, and after each epoch checkpoint.pt
Run again, it goes on from the checkpoint. --validation holds out a tenth of the training groups
instead, in WORK/multilingual-validation: there settings are chosen, not on what is held out.

Shapes: n texts, L tokens, e emoji in training, d the width of the shared space.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from examples.small_clip.multilingual.lessons import Lessons, make_lessons, read_split
from examples.small_clip.multilingual.names import LANGUAGES
from examples.small_clip.multilingual.pieces import learn_pieces, shuffled_batches
from retrieval.embedding.embeddings import EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.text_bag import Architecture, TextBag
from retrieval.encoding.text_tower import TowerConfig

VOCAB_SIZE = 16_000
HIDDEN = 512
CONTEXT_LENGTH = 32
BATCH_SIZE = 512
LEARNING_RATE = 3e-3
PIECES_LEARNING_RATE = 1e-2
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.05
DROPOUT = 0.1
NAMING_WEIGHT = 0.3
TEMPERATURE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("cldr", type=Path, help="where both packages were unpacked")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.work / ("multilingual" + "-validation" * arguments.validation)
    folder.mkdir(exist_ok=True)
    split = read_split(arguments.work, validation=arguments.validation)
    teacher = load_encoder(EMBEDDED_ENCODER)
    lessons = make_lessons(split, arguments.cldr, teacher.encode_texts)
    print(f"{len(lessons.texts)} texts, {len(split.train)} emoji, {len(LANGUAGES)} languages")
    tokenizer = learn_pieces(lessons.texts, VOCAB_SIZE, CONTEXT_LENGTH)
    config = TowerConfig(
        teacher=EMBEDDED_ENCODER,
        teacher_digest=teacher.weights_digest,
        languages=list(LANGUAGES),
        architecture=Architecture(
            vocab_size=tokenizer.get_vocab_size(),
            hidden=HIDDEN,
            context_length=CONTEXT_LENGTH,
            embed_dim=teacher.dim,
        ),
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tower.json").write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
    torch.manual_seed(arguments.seed)
    model = TextBag(config.architecture, DROPOUT)
    train(model, tokenizer, lessons, folder / "checkpoint.pt", arguments.epochs, arguments.seed)


def train(
    model: TextBag,
    tokenizer: Tokenizer,
    lessons: Lessons,
    checkpoint: Path,
    num_epochs: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
) -> None:
    optimizers = make_optimizers(model)
    num_done = resume(checkpoint, model, optimizers)
    batches_per_epoch = math.ceil(len(lessons.texts) / batch_size)
    for epoch in range(num_done, num_epochs):
        start = time.monotonic()
        generator = np.random.default_rng((seed, epoch))
        torch.manual_seed(int(generator.integers(2**31)))
        sums = np.zeros(2)
        batches = shuffled_batches(tokenizer, lessons.texts, batch_size, generator)
        for step, (places, tokens) in enumerate(batches, start=epoch * batches_per_epoch):
            share = share_of_rate(step, num_epochs * batches_per_epoch)
            distance, surprise = losses(model(drop_pieces(tokens)), lessons, places)
            model.zero_grad()
            torch.autograd.backward(distance + NAMING_WEIGHT * surprise)
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = share * optimizer.defaults["lr"]
                optimizer.step()
            sums += (distance.item(), surprise.item())
        save(checkpoint, model, optimizers, epoch + 1)
        distance_now, surprise_now = sums / batches_per_epoch
        print(
            f"epoch {epoch + 1}: 1 - cosine {distance_now:.4f}, naming {surprise_now:.3f}, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )


def drop_pieces(tokens: torch.Tensor) -> torch.Tensor:
    """Some become padding, but never a text's first: what is left must be enough to tell."""
    dropped = torch.rand(tokens.shape) < DROPOUT
    dropped[:, 0] = False
    return tokens.masked_fill(dropped, 0)


def losses(
    rows: torch.Tensor, lessons: Lessons, places: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far from their targets the rows [n, d] are, and how little they tell which emoji is
    named: cross-entropy between a text's shares and the softmax over all English captions."""
    distance = (1 - (rows * lessons.targets[places]).sum(dim=1)).mean()
    shares = np.zeros((len(places), len(lessons.captions)), np.float32)  # [n, e]
    for row, place in zip(shares, places, strict=True):
        found = lessons.shares[place]
        row[list(found)] = list(found.values())
    likelihoods = torch.log_softmax(rows @ lessons.captions.T / TEMPERATURE, dim=1)
    return distance, -(torch.from_numpy(shares) * likelihoods).sum(dim=1).mean()


def make_optimizers(model: TextBag) -> list[torch.optim.Optimizer]:
    """Each piece is stepped by its own batches alone: a rare one must not fade in between."""
    others = [each for name, each in model.named_parameters() if not name.startswith("pieces.")]
    return [
        torch.optim.SparseAdam(model.pieces.parameters(), PIECES_LEARNING_RATE, betas=(0.9, 0.99)),
        torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def share_of_rate(step: int, num_steps: int) -> float:
    """Warm-up, then a cosine from 1 to 0."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * (1 + math.cos(math.pi * step / num_steps)) / 2


def resume(checkpoint: Path, model: TextBag, optimizers: list[torch.optim.Optimizer]) -> int:
    """How many epochs are done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["num_epochs"])


def save(
    checkpoint: Path, model: TextBag, optimizers: list[torch.optim.Optimizer], num_epochs: int
) -> None:
    partial = checkpoint.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"model": model.state_dict(), "optimizers": states, "num_epochs": num_epochs}
    torch.save(state, partial)
    partial.replace(checkpoint)


if __name__ == "__main__":
    main()
