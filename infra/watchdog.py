"""Says which items take suspiciously long: a worker that hangs answers no more than one at work.

Nothing is ended for it. How long is too long depends on the work, and whoever reads the line knows.
"""

from collections.abc import Mapping

from infra.watching.events import tell

LONG_S = 900.0
"""Of a download's, an extraction's and a score's shards nearly all take less; a large model's
embeddings without a GPU take more, and are told of for nothing."""

NUM_NAMED = 5


class Watchdog:
    """Told again and again what is at work, it says what has been for long, and again each time
    that has doubled."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._limits: dict[str, float] = {}
        """For how many seconds an item may be at work before the next word on it."""

    def look(self, seconds: Mapping[str, float]) -> None:
        """`seconds`: for how long the items that are at work have been, by name."""
        self._limits = {name: self._limits.get(name, LONG_S) for name in seconds}
        long = {name: each for name, each in seconds.items() if each >= self._limits[name]}
        if not long:
            return
        self._limits |= {name: 2 * each for name, each in long.items()}
        longest = sorted(long.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{name} for {_words(each)}" for name, each in longest[:NUM_NAMED])
        more = f" and {len(longest) - NUM_NAMED} more" if len(longest) > NUM_NAMED else ""
        tell(
            "long",
            f"{self._task}: no answer from those at work on {named}{more}; if they hang, end the "
            "command and give it again",
            task=self._task,
            shards=dict(longest),
        )


def _words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
