"""Which way up a picture is, by its EXIF block: a TIFF file without pictures, and hostile input."""

import struct

ORIENTATION = 0x0112
UPRIGHT = 1


def orientation_of(block: bytes) -> int:
    """1 to 8 as EXIF 2.32 section 4.6.4 numbers them; 1 where the block is absent or broken."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    try:
        if order is None:
            return UPRIGHT
        (offset,) = struct.unpack_from(order + "I", block, 4)
        (num_entries,) = struct.unpack_from(order + "H", block, offset)
        for entry in range(offset + 2, offset + 2 + 12 * num_entries, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", block, entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:
        pass  # an offset or a count that points beyond the block
    return UPRIGHT
