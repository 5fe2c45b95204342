"""Samples that a client chose -> a selection of the corpus, which `pack` and `train` take.

Writes  ROOT/selections/<name>.parquet  <name>.toml
"""

from retrieval.serving.indices import Served
from retrieval.serving.messages import SelectionAnswer


def save(served: Served, name: str, uids: list[str]) -> SelectionAnswer:
    raise NotImplementedError
