"""Pictures in a temporary file, and a disk for it that is full."""

import subprocess
import sys

from pipeline.downloading.spool import Spool
from tests.pipeline.downloads import REPOSITORY


def test_what_was_appended_is_read_in_any_order() -> None:
    with Spool.opened() as spool:
        places = [spool.append(bytes([number]) * number) for number in range(5)]
        assert [spool.read(place) for place in reversed(places)] == [
            bytes([number]) * number for number in reversed(range(5))
        ]


FULL = """
import resource, tempfile
from infra.errors import StorageError
from pipeline.downloading.spool import Spool

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
with Spool.opened() as spool:
    place = spool.append(b"a" * 4000)
    try:
        spool.append(b"b" * 4000)
    except StorageError as error:
        print(str(error).removeprefix(tempfile.gettempdir()))
    assert spool.read(place) == b"a" * 4000
"""


def test_a_full_disk_is_named_and_what_was_there_stays() -> None:
    """EFBIG stands in for ENOSPC: half of the second picture fits."""
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(": can't be written (")
    assert done.stdout.count("\n") == 1
