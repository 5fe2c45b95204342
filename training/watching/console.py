"""The run in one line, for people."""

from typing import Any


def note(line: dict[str, Any]) -> str:
    """Of a line of metrics.jsonl."""
    parts = [f"loss {line['loss']:.4f}"]
    if (held_out := line.get("held_out_loss")) is not None:
        parts.append(f"held out {held_out:.4f}")
    parts.append(f"{line['images_per_s']:,.0f} images/s")
    if (mfu := line.get("mfu_percent")) is not None:
        parts.append(f"MFU {mfu:.0f}%")
    parts.append(f"stall {line['stall_percent']:.0f}%")
    if (dollars := line.get("dollars_per_million_images")) is not None:
        parts.append(f"${dollars:,.2f} a million")
    if (bound := line.get("bound_by")) is not None:
        parts.append(f"bound by {bound}")
    return ", ".join(parts)
