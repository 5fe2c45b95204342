import struct

import pytest
from PIL import Image

from pipeline.pixels.exif import orientation_of


def block(order: str, orientation: int, num_before: int = 0) -> bytes:
    """An EXIF block with other tags before the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = [(0x0100 + number, 4, 1, number) for number in range(num_before)]
    body = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    body += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    count = num_before + 1
    return mark + struct.pack(order + "IH", 8, count) + body + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_in_either_order_of_bytes(order: str, orientation: int) -> None:
    assert orientation_of(block(order, orientation, num_before=3)) == orientation


def test_what_pillow_writes_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    assert orientation_of(exif.tobytes().removeprefix(b"Exif\0\0")) == 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    assert orientation_of(block("<", orientation)) == 1


@pytest.mark.parametrize("cut", range(0, 50, 3))
def test_a_broken_block_is_upright(cut: int) -> None:
    assert orientation_of(block(">", 6, num_before=3)[:cut]) == 1


def test_an_offset_beyond_the_block_is_upright() -> None:
    assert orientation_of(b"II*\0" + struct.pack("<I", 0xFFFFFFF0)) == 1
    assert orientation_of(b"II*\0" + struct.pack("<IH", 8, 65535)) == 1
