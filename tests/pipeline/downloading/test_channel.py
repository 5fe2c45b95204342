"""Messages between a worker and a decoder."""

import socket
import threading

import pytest

from pipeline.downloading.channel import MAX_MESSAGE_BYTES, Channel


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


@pytest.mark.parametrize("size", [0, 1, 70_000, 5 << 20])
def test_a_message_of_any_size_arrives_whole(
    ends: tuple[socket.socket, socket.socket], size: int
) -> None:
    near, far = map(Channel, ends)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sender = threading.Thread(target=near.send, args=(b"head", data))
    sender.start()
    assert far.receive() == b"head" + data
    sender.join()
    near.close()
    far.close()


def test_an_end_that_is_gone_or_lies_about_its_length_ends_the_talk(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    channel = Channel(near)
    far.sendall((10).to_bytes(4) + b"cut")
    far.close()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(ConnectionError):
        channel.send(b"nobody", b"reads")
    channel.close()
    near, far = socket.socketpair()
    far.sendall((MAX_MESSAGE_BYTES + 1).to_bytes(4))
    with pytest.raises(ValueError, match="a message of"):
        Channel(near).receive()
    near.close()
    far.close()


@pytest.mark.parametrize("sent", [b"", b"\0", bytes([0, 0, 0, 9]), bytes([0, 0, 0, 9]) + b"cut"])
def test_a_message_that_does_not_come_is_waited_for_no_longer_than_said(
    ends: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    near, far = ends
    channel = Channel(near, timeout_s=1)
    far.sendall(sent)
    with pytest.raises(TimeoutError):
        channel.receive()
    with pytest.raises(BlockingIOError):
        channel.send(bytes(64 << 20))
    near.close()
    far.close()
