"""Messages between a worker and a decoder over a socket: four bytes of length, then the bytes.

`multiprocessing.connection` does the same with two writes, the first of which wakes the reader for
four bytes, and with three copies of what is read. Reads and writes no files.
"""

import socket
import struct

MAX_MESSAGE_BYTES = 1 << 31


class Channel:
    """Who has been taken over by hostile bytes may claim any length, and never send it: with
    `timeout_s` neither a read nor a write waits longer."""

    def __init__(
        self,
        end: socket.socket,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        timeout_s: int | None = None,
    ) -> None:
        self._socket, self._max_message_bytes = end, max_message_bytes
        if timeout_s is not None:
            # The kernel's own: with Python's each read of a few KiB would be a call of its own.
            timeval = struct.pack("@ll", timeout_s, 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *parts: bytes) -> None:
        """One message of these parts; raises ConnectionError where nobody reads any more, and
        BlockingIOError where nobody has read it in time."""
        length = sum(map(len, parts)).to_bytes(4)
        num_sent = self._socket.sendmsg([length, *parts])
        if num_sent < 4 + int.from_bytes(length):
            self._socket.sendall(b"".join((length, *parts))[num_sent:])

    def receive(self) -> bytes:
        """Raises EOFError, or ConnectionError, where nobody writes any more, TimeoutError where
        the message is not whole in time, and ValueError where it would be too long."""
        size = int.from_bytes(self._exactly(4))
        if size > self._max_message_bytes:
            raise ValueError(f"a message of {size} bytes")
        return self._exactly(size)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
            if len(data) == size:
                return data
            is_over = not self._socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            is_over = False
        raise EOFError if is_over else TimeoutError
