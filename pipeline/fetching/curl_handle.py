"""A curl handle as every transfer has it, its sockets, and what libcurl's error codes mean.

Speaks http and https and nothing else, obeys no proxy, cookie, netrc or redirect. Reads the CA
bundle: certifi's, or the one that SSL_CERT_FILE names.
"""

import errno
import os
import socket
from typing import Any

import certifi
import pycurl

from infra.errors import ConfigError
from pipeline.fetching.fetch_settings import Failure, FetchSettings

DNS_CACHE_S = 300
"""libcurl's own default is 60; a list's rows of one host come within minutes."""

TLS_GROUPS = "X25519:P-256:P-384:P-521"
"""RFC 8446's curves, without OpenSSL's post-quantum group, whose keys take a fifth of an https
request's CPU (0.77 ms with, 0.61 without): public pictures need no secrecy for decades."""

_BUFFER_BYTES = 1 << 16

BROKEN = Failure("connection broken", retryable=True)

_E_TOO_LARGE = 100
"""CURLE_TOO_LARGE, which pycurl has no name for."""

_FAILURES = {
    pycurl.E_URL_MALFORMAT: Failure("invalid url"),
    pycurl.E_COULDNT_RESOLVE_HOST: Failure("dns", retryable=True),
    pycurl.E_OPERATION_TIMEDOUT: Failure("timeout", retryable=True),
    pycurl.E_SSL_CONNECT_ERROR: Failure("tls"),
    pycurl.E_PEER_FAILED_VERIFICATION: Failure("tls"),
    pycurl.E_SSL_CIPHER: Failure("tls"),
    pycurl.E_SSL_CERTPROBLEM: Failure("tls"),
    pycurl.E_SSL_ISSUER_ERROR: Failure("tls"),
    pycurl.E_SSL_INVALIDCERTSTATUS: Failure("tls"),
    pycurl.E_BAD_CONTENT_ENCODING: Failure("undecodable answer"),
    pycurl.E_FILESIZE_EXCEEDED: Failure("too large"),
    # A head that libcurl itself finds too large (100 KB a line, 300 KB in all).
    _E_TOO_LARGE: Failure("too large"),
}
"""All else is an answer that ended before its end, or one that is no HTTP."""

_OUR_MISTAKES = frozenset(
    {
        pycurl.E_FAILED_INIT,
        pycurl.E_OUT_OF_MEMORY,
        pycurl.E_BAD_FUNCTION_ARGUMENT,
        pycurl.E_UNKNOWN_OPTION,
        pycurl.E_NOT_BUILT_IN,
        pycurl.E_SSL_CACERT_BADFILE,
    }
)


def new_handle(settings: FetchSettings) -> pycurl.Curl:
    curl = pycurl.Curl()
    for option, value in _options(settings).items():
        curl.setopt(option, value)
    return curl


def failure_of(curl: pycurl.Curl, error: int) -> Failure:
    """What it means that `curl` ended with libcurl's code `error`."""
    assert error not in _OUR_MISTAKES, f"libcurl: error {error}, {curl.errstr()}"
    cause = int(curl.getinfo(pycurl.OS_ERRNO))
    if error == pycurl.E_COULDNT_CONNECT:
        reason = "connection refused" if cause == errno.ECONNREFUSED else "host unreachable"
        return Failure(reason, retryable=True)
    if error == pycurl.E_SSL_CONNECT_ERROR and cause == errno.ECONNRESET:
        return BROKEN
    return _FAILURES.get(error, BROKEN)


class Descriptor:
    """A new socket for libcurl, which duplicates the descriptor: this one is closed right after."""

    __slots__ = ("_number",)

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        self._number = socket.socket(family, kind, protocol).detach()

    def fileno(self) -> int:
        return self._number

    def __del__(self) -> None:
        os.close(self._number)


def is_connected(number: int) -> bool:
    """Of a socket's descriptor; libcurl tells of a connection only when TLS stands, too."""
    try:
        with socket.socket(fileno=os.dup(number)) as duplicate:
            duplicate.getpeername()
    except OSError:
        return False
    return True


def _options(settings: FetchSettings) -> dict[int, Any]:
    return {
        pycurl.NOSIGNAL: 1,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.FOLLOWLOCATION: 0,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.PROXY: "",
        pycurl.NETRC: pycurl.NETRC_IGNORED,
        pycurl.PATH_AS_IS: 1,
        pycurl.USERAGENT: settings.user_agent,
        pycurl.HTTPHEADER: ["Accept: image/*,*/*;q=0.8"],
        # Asks for the bytes as they are; what comes compressed all the same is decoded, and the
        # caps are on what it decodes to.
        pycurl.ACCEPT_ENCODING: "identity",
        pycurl.CAINFO: _ca_bundle(),
        pycurl.SSL_EC_CURVES: TLS_GROUPS,
        pycurl.DNS_CACHE_TIMEOUT: DNS_CACHE_S,
        pycurl.BUFFERSIZE: _BUFFER_BYTES,
        pycurl.TCP_NODELAY: 1,
        # The caller's deadline comes first, and its clock stands still while it's kept waiting.
        pycurl.CONNECTTIMEOUT: 24 * 3600,
    }


def _ca_bundle() -> str:
    bundle = os.environ.get("SSL_CERT_FILE") or certifi.where()
    if not os.access(bundle, os.R_OK):
        raise ConfigError(f"SSL_CERT_FILE={bundle}: can't be read; name a bundle of certificates")
    return bundle
