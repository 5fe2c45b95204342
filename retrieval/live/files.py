"""Files as they were when they were opened, whatever becomes of their names.

An overwritten or compacted index takes its old files' names away while searches still read them. A
memory map keeps what it was made of.
"""

import pyarrow as pa

from infra import storage


def map_file(url: str) -> pa.Buffer:
    """All bytes, memory-mapped; of a remote file a copy that goes away with the buffer.

    No descriptor stays open: a large index has more files than a process may hold.
    """
    with storage.local_copy(url) as path, pa.memory_map(str(path)) as file:
        return file.read_buffer()
