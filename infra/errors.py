"""The errors that a user can cause or must hear of, each one line long.

A message names the thing, the value it had, what was expected and what to do. `carrara.py` prints
it and exits with `exit_code`. Any other exception is a bug and keeps its traceback.
"""


class CarraraError(Exception):
    """The user's mistake: one line, exit code 2."""

    exit_code = 2


class InputError(CarraraError):
    """A list, corpus, picture or query that can't be used as it is."""


class ConfigError(CarraraError):
    """A setting that is unknown, out of range or at odds with another."""


class ConflictError(CarraraError):
    """The place to write to already holds something else."""


class DamagedError(CarraraError):
    """Bytes that are not what their manifest says they are."""


class StorageError(CarraraError):
    """A place that can't be reached, read or written as things are; may pass, so it is retried."""


class ShortfallError(CarraraError):
    """The work ran but fell short of the whole input; the message names what is missing."""

    exit_code = 1
