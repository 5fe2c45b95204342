"""Answers saved as a selection, which `pack` and `train` take.

Writes  ROOT/selections/<name>.parquet  <name>.toml, by `carrara select`

What was found becomes a policy of one rule, so that the selection says of every sample whether it
was found, and its record says by which question.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from infra.errors import ConfigError
from infra.summary import Summary
from pipeline import select
from pipeline.selecting.policy import Policy, Rule
from retrieval.asking.question import reason_of

NOT_FOUND = "not among the answers"
"""The reason for all that was not found."""


def save_selection(
    root: str, name: str, uids: Sequence[str], asked: str, *, overwrite: bool = False
) -> Summary:
    """Keep the samples of these uids and no others; `asked` is the question, in words.

    Raises ConfigError for a name that is none, ConflictError if it stands for something else.
    """
    listed = ", ".join(f"'{uid}'" for uid in sorted(set(uids)))
    keep = f"uid IN ({listed})" if listed else "false"
    policy = Policy(
        title=asked, signals=(), rules=(Rule(name=NOT_FOUND, keep=keep, source="carrara query"),)
    )
    with tempfile.TemporaryDirectory(prefix="carrara-") as spool:
        path = Path(spool, "policy.toml")
        path.write_text(_toml(policy), encoding="utf-8")
        try:
            config = select.Config(root=root, name=name, policy=str(path), overwrite=overwrite)
        except ValidationError as error:
            raise ConfigError(f"selection {name!r}: {reason_of(error)}") from None
        return select.run(config)


def _toml(policy: Policy) -> str:
    import tomli_w

    return tomli_w.dumps(policy.model_dump(mode="json", exclude_none=True))
