"""What a command says on stderr: words for people, or with `--log json` one JSON object a line.

{"time": ..., "run": ..., "stage": ..., "event": "progress", "task": ..., "done": ..., ...}
"""

import json
import sys
from typing import Any

from infra.watching.run import current, now

_as_json = False


def log_as_json(wanted: bool) -> None:
    """From here on, for this process."""
    global _as_json
    _as_json = wanted


def logs_json() -> bool:
    return _as_json


def tell(event: str, message: str | None, **fields: Any) -> None:
    """`message` is for people, None: not for them; programs get the event and its fields."""
    if _as_json:
        run = current()
        own = {} if run is None else {"run": run.name, "stage": run.stage}
        line = {"time": now().isoformat(), **own, "event": event, **fields}
        if message is not None:
            line["message"] = message
        print(json.dumps(line, ensure_ascii=False, default=str), file=sys.stderr, flush=True)
    elif message is not None:
        print(message, file=sys.stderr, flush=True)
