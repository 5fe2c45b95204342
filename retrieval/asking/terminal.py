"""What a terminal can show of pictures: by a protocol of its own, else by coloured half blocks.

    kitty     https://sw.kovidgoyal.net/kitty/graphics-protocol/ (kitty, Ghostty)
    iterm2    https://iterm2.com/documentation-images.html (iTerm2, WezTerm)
    sixel     DEC's, https://vt100.net/docs/vt3xx-gp/chapter14.html (foot, mlterm, xterm -ti vt340)
    blocks    any terminal of 256 colours or more: the upper half of a cell is the character's
              colour, the lower half its ground

Nothing is guessed from a name that others use too: where the environment doesn't say, the terminal
is asked for its attributes. What is no terminal gets none.
"""

import os
import re
import select
import sys
import time
from typing import Literal

from rich.console import Console

Previews = Literal["kitty", "iterm2", "sixel", "blocks"]

ANSWER_TIMEOUT_S = 0.3
"""For a terminal's own answer, which one at the other end of an ssh gives too."""
ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
SIXEL = b"4"
"""Among the primary attributes: sixel graphics."""


def detect_previews() -> Previews | None:
    """By stdout, stdin and the environment; None: no pictures."""
    console = Console()
    if not console.is_terminal or not sys.stdout.isatty() or console.is_dumb_terminal:
        return None
    if not _is_within_another():
        if kind := _by_environment():
            return kind
        if SIXEL in _primary_attributes():
            return "sixel"
    has_colours = console.color_system in ("256", "truecolor") and not console.no_color
    return "blocks" if has_colours and console.encoding.startswith("utf") else None


def _is_within_another() -> bool:
    """tmux and screen have a terminal of their own between, which knows no pictures."""
    term = os.environ.get("TERM", "")
    return "TMUX" in os.environ or "STY" in os.environ or term.startswith(("tmux", "screen"))


def _by_environment() -> Previews | None:
    term, program = os.environ.get("TERM", ""), os.environ.get("TERM_PROGRAM", "")
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in os.environ:
        return "kitty"
    # The second is what ssh hands on.
    if program in ("iTerm.app", "WezTerm") or os.environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def _primary_attributes() -> list[bytes]:
    """What the terminal answers to DA1; empty where it does not, or where this can't be asked."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return []
    if not sys.stdin.isatty():
        return []
    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    before = termios.tcgetattr(source)
    answer = b""
    try:
        tty.setcbreak(source, termios.TCSANOW)
        os.write(target, b"\x1b[c")
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not (found := ATTRIBUTES.search(answer)):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([source], [], [], left)[0]:
                return []
            answer += os.read(source, 1024)
        return found[1].split(b";")
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)


def cell_pixels() -> tuple[int, int]:
    """Width and height of a character's cell; what is usual where the terminal doesn't tell."""
    try:
        import fcntl
        import struct
        import termios

        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        rows, columns, width, height = struct.unpack("HHHH", size)
    except (ImportError, OSError):
        return 10, 20
    return (width // columns, height // rows) if width and height and rows else (10, 20)
