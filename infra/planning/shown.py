"""Sizes and sums in words, for tables."""

_UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def bytes_in_words(num: float) -> str:
    return _in_words(num, _UNITS, " B")


def count_in_words(num: float) -> str:
    return _in_words(num, _LARGE, "")


def dollars_in_words(num: float) -> str:
    return f"${num:,.0f}" if num >= 100 or num == 0 else f"${num:,.2f}"


def hours_in_words(hours: float) -> str:
    """Three digits, whatever the size."""
    if hours >= 100:
        return f"{hours:,.0f}"
    return f"{hours:.1f}" if hours >= 1 else f"{hours:.3g}"


def seconds_in_words(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.3g} s"


def _in_words(num: float, units: tuple[tuple[float, str], ...], bare: str) -> str:
    for unit, name in units:
        if num >= unit:
            return f"{num / unit:.3g} {name}" if num < 999.5 * unit else f"{num / unit:,.0f} {name}"
    return f"{num:.0f}{bare}"
