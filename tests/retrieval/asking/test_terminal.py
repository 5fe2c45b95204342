"""Which pictures a terminal is sent: each case in a process whose stdout is a real terminal."""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

PROGRAM = (
    "from retrieval.asking.terminal import detect_previews; print('<', detect_previews(), '>')"
)
CLEARED = ("TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "COLORTERM", "NO_COLOR")


def detected(environment: dict[str, str], answer: bytes = b"") -> str:
    """By a program with this environment, on a terminal that answers DA1 so."""
    env = {name: value for name, value in os.environ.items() if name not in CLEARED}
    env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONIOENCODING": "utf-8"} | environment
    terminal, program = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=program, stdout=program, stderr=program, env=env
    )
    os.close(program)
    text, deadline = b"", time.monotonic() + 120
    while b">" not in text and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 1024)
            if text.endswith(b"\x1b[c") and answer:
                os.write(terminal, answer)
    process.wait()
    os.close(terminal)
    return text.decode().partition("< ")[2].partition(" >")[0]


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "tmux-256color", "LC_TERMINAL": "iTerm2"}, "blocks"),
        ({"TERM": "vt100"}, "None"),
        ({"TERM": "dumb"}, "None"),
        ({"NO_COLOR": "1"}, "None"),
    ],
)
def test_the_environment_says_so(environment: dict[str, str], kind: str) -> None:
    assert detected(environment) == kind


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(b"\x1b[?62;4;22c", "sixel"), (b"\x1b[?62;22;44c", "blocks"), (b"", "blocks")],
)
def test_a_terminal_is_asked_for_sixels(answer: bytes, kind: str) -> None:
    assert detected({}, answer) == kind


def test_what_is_no_terminal_gets_none() -> None:
    env = {**os.environ, "TERM": "xterm-kitty"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "< None >\n"
