"""libcurl's many transfers on one epoll: which sockets are ready, which transfers have ended.

CurlMulti's own `select` stops at descriptor 1024 and looks at every transfer each time round; the
socket interface does neither. Reads and writes no files.
"""

import select
import time
from contextlib import suppress

import pycurl

_MASKS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
_MAX_EVENTS = 256


class CurlLoop:
    def __init__(self, max_idle_connections: int) -> None:
        self._epoll = select.epoll()
        self._sockets: set[int] = set()
        self._watched: int | None = None
        self.is_watched_ready = False
        """When the last `wait` ended."""
        self._timer_due: float | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_idle_connections)

    def add(self, curl: pycurl.Curl) -> None:
        self._multi.add_handle(curl)

    def remove(self, curl: pycurl.Curl) -> None:
        self._multi.remove_handle(curl)

    def wait(self, timeout_s: float) -> list[tuple[pycurl.Curl, int]]:
        """The transfers that have ended, with libcurl's codes, after at most `timeout_s`."""
        if self._timer_due is not None:
            timeout_s = min(timeout_s, self._timer_due - time.monotonic())
        multi = self._multi
        self.is_watched_ready = False
        for number, events in self._epoll.poll(max(0.0, timeout_s), _MAX_EVENTS):
            if number in self._sockets:  # an event before may have closed it
                multi.socket_action(number, _actions(events))
            elif number == self._watched:
                self.is_watched_ready = True
        if self._timer_due is not None and self._timer_due <= time.monotonic():
            self._timer_due = None
            multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        ended: list[tuple[pycurl.Curl, int]] = []
        num_left = 1
        while num_left:
            num_left, good, bad = multi.info_read()
            ended += [(curl, pycurl.E_OK) for curl in good]
            ended += [(curl, error) for curl, error, _ in bad]
        return ended

    def watch(self, descriptor: int | None) -> None:
        """One more that ends a `wait` when it is readable; None: none any more."""
        if self._watched is not None:
            self._epoll.unregister(self._watched)
        self._watched = descriptor
        if descriptor is not None:
            self._epoll.register(descriptor, select.EPOLLIN)

    def close(self) -> None:
        self._multi.close()
        self._epoll.close()

    def _on_socket(self, what: int, number: int, *_: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self._sockets.discard(number)
            # A socket that is closed has left the epoll by itself.
            with suppress(OSError):
                self._epoll.unregister(number)
            return
        if number in self._sockets:
            with suppress(FileNotFoundError):
                self._epoll.modify(number, _MASKS[what])
                return
        self._sockets.add(number)
        self._epoll.register(number, _MASKS[what])

    def _on_timer(self, timeout_ms: int) -> None:
        self._timer_due = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000


def _actions(events: int) -> int:
    actions = 0
    if events & (select.EPOLLIN | select.EPOLLHUP):
        actions |= pycurl.CSELECT_IN
    if events & select.EPOLLOUT:
        actions |= pycurl.CSELECT_OUT
    if events & select.EPOLLERR:
        actions |= pycurl.CSELECT_ERR
    return actions
