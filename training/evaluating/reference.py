"""The corpus that sets are compared with: which of its pictures, and their features.

Reads   ROOT/manifest.json, ROOT/shards/
"""

from collections.abc import Sequence
from dataclasses import dataclass

from infra.errors import InputError
from training.drawing.pictures import among, choose, find_pictures
from training.evaluate import MIN_PICTURES, Config
from training.evaluating.features import Features, extract

ByExtractor = dict[str, Features]


@dataclass(frozen=True)
class Reference:
    real: ByExtractor
    """What sets are compared with."""
    others: ByExtractor | None
    """As many more; None where the corpus has too few."""
    nearest: ByExtractor
    """Among which nearest pictures are looked for."""
    nearest_home: str
    """Their corpus."""

    @property
    def num_real(self) -> int:
        return len(self.captions)

    @property
    def captions(self) -> tuple[str | None, ...]:
        """Of the pictures that sets are compared with."""
        return next(iter(self.real.values())).captions


def read_reference(config: Config, extractors: Sequence[str], size: int | None) -> Reference:
    num_wanted = max(2 * config.num_images, config.num_nearest)
    names, features = _features(config, extractors, size, config.root, num_wanted)
    num = min(config.num_images, len(names))
    others = names[num : 2 * num] if len(names) >= 2 * num else None
    nearest, nearest_home = _taken(features, names[: config.num_nearest]), config.root
    if config.training is not None:
        nearest_home = config.training
        _, nearest = _features(config, extractors, size, nearest_home, config.num_nearest)
    return Reference(
        real=_taken(features, names[:num]),
        others=None if others is None else _taken(features, others),
        nearest=nearest,
        nearest_home=nearest_home,
    )


def _features(
    config: Config, extractors: Sequence[str], size: int | None, home: str, num: int
) -> tuple[list[str], ByExtractor]:
    """Of at most so many pictures, and their names in a random order."""
    selection = config.selection if home == config.root else None
    found = find_pictures(home, selection)
    names = choose(found, num, config.seed)
    if len(names) < MIN_PICTURES:
        raise InputError(
            f"{home}: {len(names)} pictures; expected at least {MIN_PICTURES} to compare with"
        )
    features = extract(
        among(found, names),
        extractors,
        size,
        device=config.device,
        workers=config.workers,
        description="evaluate: corpus",
    )
    return names, features


def _taken(features: ByExtractor, names: Sequence[str]) -> ByExtractor:
    return {name: one.take(names) for name, one in features.items()}
