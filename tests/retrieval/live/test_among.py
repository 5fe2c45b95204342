import gc
import weakref
from typing import Any

import numpy as np

from retrieval.live.among import AllowedRows


def test_a_selector_keeps_the_rows_that_it_points_to() -> None:
    """As where two threads pack the same rows at once, and one's is left in the other's place."""
    rows = AllowedRows(np.arange(4096) % 3 == 0)
    selector: Any = rows.selector
    bits = weakref.ref(rows.packed[0])
    vars(rows).clear()
    gc.collect()
    assert bits() is not None
    assert [selector.is_member(number) for number in range(6)] == [True, False, False] * 2
