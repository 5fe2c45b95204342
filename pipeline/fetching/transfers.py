"""One request over libcurl: an address in, a status, headers and bytes or the failure out.

A Transfer is a curl handle that serves one request after another. It keeps to what libcurl is told
(http and https, no proxy, no cookies, no netrc, no redirects of its own) and to what its callbacks
watch: the address of every socket, the size of the headers and of the decoded body, the sum of the
bytes that all transfers hold. Reads and writes no files.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pycurl

from pipeline.fetching.addresses import is_public_address
from pipeline.fetching.curl_handle import BROKEN, Descriptor, failure_of, is_connected, new_handle
from pipeline.fetching.fetch_settings import Failure, FetchSettings
from pipeline.fetching.web_address import WebAddress

MAX_HEADER_BYTES = 1 << 16
"""Of one answer, interim ones and trailers included; servers' own limits are 8 to 16 KB."""

MAX_DRAINED_BYTES = 1 << 14
"""Of a body that nobody wants (a 404's page) before the connection is given up for it."""

_WANTED = frozenset({b"date", b"location", b"retry-after", b"x-robots-tag", b"tdm-reservation"})

Headers = dict[bytes, list[str]]
Judge = Callable[[Headers], Failure | None]


@dataclass(slots=True)
class Traffic:
    """What the transfers of a Fetcher hold now, and what they have done so far."""

    eldest: "Transfer | None" = None
    """The one that may go on when there is no room for more bytes, so that always one can end."""
    num_bytes_in_flight: int = 0
    peak_bytes_in_flight: int = 0
    num_requests: int = 0
    num_connections: int = 0
    num_lookups: int = 0
    """Of names that libcurl's DNS cache did not hold."""
    num_retries: int = 0
    num_evictions: int = 0
    """Answers begun anew because all together held too many bytes."""


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: Headers = field(default_factory=dict)
    data: bytes = b""
    failure: Failure | None = None
    is_evicted: bool = False
    """It had to make room: to be asked for once more, through no fault of the server's."""


class Transfer:
    """`curl` is to be added to a CurlMulti by the caller, who also watches the deadline."""

    def __init__(self, settings: FetchSettings, traffic: Traffic) -> None:
        self._max_bytes_in_flight = settings.max_bytes_in_flight
        self._traffic = traffic
        self.curl = new_handle(settings)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_open_socket)
        self.curl.setopt(pycurl.SOCKOPTFUNCTION, self._on_socket)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        self.curl.setopt(pycurl.RESOLVER_START_FUNCTION, self._on_resolve)
        self._reset()

    def _reset(self) -> None:
        self._lines: list[bytes] = []
        self._num_header_bytes = 0
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        self._num_drained = 0
        self._answer = Answer()
        self._is_past_head = False
        self._is_refused = False
        self._is_truncated = False
        self._socket_error: OSError | None = None
        self._sockets: list[int] = []
        self.is_resolved = False

    def begin(
        self,
        address: WebAddress,
        *,
        may_be_private: bool,
        max_bytes: int,
        judge: Judge | None,
        on_resolved: Callable[[], None],
    ) -> None:
        """`judge` looks at a good answer's headers before its body is read; without one, a body
        that is too long is cut off and no failure."""
        self._reset()
        self._may_be_private = may_be_private
        self._max_bytes = max_bytes
        self._judge = judge
        self._on_resolved = on_resolved
        self.curl.setopt(pycurl.URL, address.url)

    def end(self, error: int = pycurl.E_OK) -> Answer:
        """What came of it; `error` is libcurl's code."""
        answer = self._answer
        if error == pycurl.E_OK or self._is_truncated:
            answer.data = b"".join(self._chunks)
            if answer.status < 200:  # none at all, or the connection ended before the head did
                answer.failure = BROKEN
        elif answer.failure is None and not answer.is_evicted:
            answer.failure = self._failure(error)
        self._traffic.num_bytes_in_flight -= self._num_bytes
        self._traffic.num_connections += self.curl.getinfo(pycurl.NUM_CONNECTS)
        self._chunks.clear()
        return answer

    def time_out(self) -> Answer:
        """What came of it by the deadline: the reason tells how far it got."""
        reason = "timeout"
        is_sent = self.curl.getinfo(pycurl.REQUEST_SIZE)
        if not is_sent and not any(map(is_connected, self._sockets)):
            reason = "host unreachable" if self.is_resolved else "dns"
        self._answer.failure = Failure(reason, retryable=True)
        return self.end(pycurl.E_OPERATION_TIMEDOUT)

    def close(self) -> None:
        self.curl.close()

    def _on_resolve(self) -> int:
        # libcurl asks this before it looks a name up, and not where its cache has the answer.
        self._traffic.num_lookups += 1
        return 0

    def _on_open_socket(self, _: int, address: Any) -> Any:
        self.is_resolved = True
        self._on_resolved()
        if not self._may_be_private and not is_public_address(str(address.addr[0])):
            self._is_refused = True
            return pycurl.SOCKET_BAD
        try:
            return Descriptor(address.family, address.socktype, address.protocol)
        except OSError as error:  # a machine without IPv6, or one that is out of descriptors
            self._socket_error = error
            return pycurl.SOCKET_BAD

    def _on_socket(self, number: int, _: int) -> int:
        self._sockets.append(number)
        return int(pycurl.SOCKOPT_OK)

    def _on_header(self, line: bytes) -> int | None:
        self._num_header_bytes += len(line)
        if self._num_header_bytes > MAX_HEADER_BYTES:
            return self._abort(Failure("too large"))
        if self._is_past_head:
            return None  # trailers
        if line.strip():
            self._lines.append(line)
            return None
        return self._on_head()

    def _on_head(self) -> int | None:
        status_line, *lines = self._lines or [b""]
        self._lines = []
        digits = status_line.partition(b" ")[2][:3]
        status = int(digits) if digits.isdigit() else 0
        if 100 <= status < 200:
            return None  # the answer proper follows
        self._is_past_head = True
        answer = self._answer
        answer.status = status
        declared = b""
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name in _WANTED:
                answer.headers.setdefault(name, []).append(_text(value))
            elif name == b"content-length":
                declared = value.strip()
        if not 200 <= status < 300 or self._judge is None:
            return None
        failure = self._judge(answer.headers)
        if failure is None and declared.isdigit() and _exceeds(declared, self._max_bytes):
            failure = Failure("too large")
        return None if failure is None else self._abort(failure)

    def _on_body(self, chunk: bytes) -> int | None:
        size = len(chunk)
        if not 200 <= self._answer.status < 300:
            self._num_drained += size
            return None if self._num_drained <= MAX_DRAINED_BYTES else self._cut_off()
        if self._num_bytes + size > self._max_bytes:
            return self._cut_off() if self._judge is None else self._abort(Failure("too large"))
        traffic = self._traffic
        in_flight = traffic.num_bytes_in_flight + size
        if in_flight > self._max_bytes_in_flight and traffic.eldest is not self:
            self._answer.is_evicted = True
            return -1
        self._chunks.append(chunk)
        self._num_bytes += size
        traffic.num_bytes_in_flight = in_flight
        traffic.peak_bytes_in_flight = max(traffic.peak_bytes_in_flight, in_flight)
        return None

    def _abort(self, failure: Failure) -> int:
        self._answer.failure = failure
        return -1

    def _cut_off(self) -> int:
        self._is_truncated = True
        return -1

    def _failure(self, error: int) -> Failure:
        if error == pycurl.E_COULDNT_CONNECT:
            if self._socket_error and self._socket_error.errno in (errno.EMFILE, errno.ENFILE):
                raise self._socket_error
            if self._is_refused:
                return Failure("refused address")
        return failure_of(self.curl, error)


def _text(value: bytes) -> str:
    # Whatever bytes a Location has are the bytes that are asked for.
    return value.strip().decode("utf-8", errors="surrogateescape")


def _exceeds(declared: bytes, max_bytes: int) -> bool:
    return len(declared) > 18 or int(declared) > max_bytes
