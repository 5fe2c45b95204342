"""Many files changed as one: all is made ready beside the corpus, then put in place.

    ROOT/forget/plan.json     what is being done
                files/        new files, by their path within ROOT
                commit.json   written when all of them are there: from here on there is no way back

Killed before the commit, nothing has changed; killed after it, `apply` again ends in the same.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from infra import storage
from infra.progress import track

NUM_THREADS = 8
"""Files put in place at once, for the sake of object stores."""


class Journal:
    """The folder of one change to one corpus."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = storage.join(root, "forget")
        self.staged = storage.join(self.folder, "files")

    @property
    def is_committed(self) -> bool:
        return storage.exists(self.url("commit.json"))

    def url(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)

    def staged_url(self, path: str) -> str:
        return storage.join(self.staged, path)

    def apply(self, files: Iterable[str], removed: Iterable[str], last: str) -> None:
        """Put the staged files in place, `last` after all others; what is there already stays."""
        for path in removed:
            storage.remove(storage.join(self.root, path))
        staged = storage.list_files(self.staged)

        def put(path: str) -> None:
            if path in staged:
                storage.move(self.staged_url(path), storage.join(self.root, path))

        others = [path for path in files if path != last]
        with (
            track("forget: put in place", len(others), "files") as bar,
            ThreadPoolExecutor(NUM_THREADS) as pool,
        ):
            for _ in pool.map(put, others):
                bar.advance(1)
        put(last)

    def clear(self) -> None:
        # In this order: of a folder half removed nothing may pass for a plan that is still to be
        # carried out, whose receipt would then say that nothing was found, nor for a commit.
        storage.remove(self.url("plan.json"))
        storage.remove(self.url("commit.json"))
        storage.remove(self.folder)
