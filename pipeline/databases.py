"""DuckDB's files on this machine."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told_by_number(or_there: str | None = None) -> Iterator[None]:
    """That a disk is full, which DuckDB has in words alone, as the OSError that it is.

    `or_there`: another place that DuckDB may have filled.
    """
    import duckdb

    no_room = os.strerror(errno.ENOSPC)
    places = f", there or in {or_there}" if or_there else ""
    try:
        yield
    except duckdb.Error as error:
        if no_room in str(error):
            raise OSError(errno.ENOSPC, no_room + places) from None
        raise
