"""Messages between a worker and a decoder over a socket: four bytes of length, then the bytes.

`multiprocessing.connection` does the same with two writes, the first of which wakes the reader for
four bytes, and with three copies of what is read. Reads and writes no files.
"""

import socket

MAX_MESSAGE_BYTES = 1 << 31
"""A decoder that hostile bytes have taken over may claim any length."""


class Channel:
    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, *parts: bytes) -> None:
        """One message of these parts; raises ConnectionError where nobody reads."""
        length = sum(map(len, parts)).to_bytes(4)
        num_sent = self._socket.sendmsg([length, *parts])
        if num_sent < 4 + int.from_bytes(length):
            self._socket.sendall(b"".join((length, *parts))[num_sent:])

    def receive(self) -> bytes:
        """Raises EOFError, or ConnectionError, where nobody writes any more."""
        size = int.from_bytes(self._exactly(4))
        if size > MAX_MESSAGE_BYTES:
            raise EOFError
        return self._exactly(size)

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
        if len(data) < size:
            raise EOFError
        return data
