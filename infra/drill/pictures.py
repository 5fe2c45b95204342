"""A site of drawn pictures for the rehearsal to download, each answered after a moment.

python -m infra.drill.pictures ADDRESS PORT
"""

import hashlib
import io
import sys
import time
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIDE = 48
ANSWER_AFTER_S = 0.4
"""So that a download lasts long enough to be struck on its way."""


def main() -> None:
    address, port = sys.argv[1:]
    server = ThreadingHTTPServer((address, int(port)), _Handler)
    server.daemon_threads = True
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(ANSWER_AFTER_S)
        body = _picture(self.path)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line a picture would drown the rest."""


@cache
def _picture(name: str) -> bytes:
    """Blocks of colours that follow from the name alone."""
    from PIL import Image

    seed = hashlib.sha256(name.encode()).digest()
    blocks = Image.frombytes("RGB", (3, 3), seed[:27])
    out = io.BytesIO()
    blocks.resize((SIDE, SIDE), Image.Resampling.NEAREST).save(out, "JPEG", quality=95)
    return out.getvalue()


if __name__ == "__main__":
    main()
