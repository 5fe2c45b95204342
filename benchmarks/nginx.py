"""A real nginx that serves a folder over HTTP and HTTPS and closes every connection.

Closing after each answer is what a crawler meets when every picture lies on another host: a new
connection and, over HTTPS, a new TLS handshake a picture.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import certifi

from benchmarks.certificate import self_signed

CONFIGURATION = """
worker_processes 1;
daemon off;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work};
  uwsgi_temp_path {work}; scgi_temp_path {work};
  types {{ image/jpeg jpg; }}
  sendfile on;
  keepalive_timeout 0;
  server {{ listen 127.0.0.1:{http_port} backlog=4096; root {pictures}; }}
  server {{
    listen 127.0.0.1:{https_port} ssl backlog=4096; root {pictures};
    ssl_certificate {work}/certificate.pem; ssl_certificate_key {work}/key.pem;
    ssl_session_cache off; ssl_session_tickets off;
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    http: str
    """Base URL."""
    https: str
    trusted: Path
    """For SSL_CERT_FILE: the web's root certificates, as a crawl needs them, and this server's."""

    def base(self, scheme: str) -> str:
        return self.https if scheme == "https" else self.http


@contextmanager
def serve(pictures: Path, work: Path) -> Iterator[Server]:
    """nginx (Debian: `apt-get install nginx-light`) on free ports, WORK for what it writes."""
    work.mkdir(parents=True, exist_ok=True)
    _write_certificate(work)
    http_port, https_port = _free_port(), _free_port()
    configuration = work / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            work=work.resolve(),
            pictures=pictures.resolve(),
            http_port=http_port,
            https_port=https_port,
        )
    )
    server = subprocess.Popen(["nginx", "-p", work.resolve(), "-c", configuration.resolve()])
    try:
        _wait_for(http_port)
        yield Server(
            f"http://127.0.0.1:{http_port}",
            f"https://127.0.0.1:{https_port}",
            work / "trusted.pem",
        )
    finally:
        server.terminate()
        server.wait()


def _write_certificate(work: Path) -> None:
    key, certificate = self_signed()
    (work / "key.pem").write_bytes(key)
    (work / "certificate.pem").write_bytes(certificate)
    (work / "trusted.pem").write_bytes(Path(certifi.where()).read_bytes() + certificate)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nginx does not listen on port {port}")
