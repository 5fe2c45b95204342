"""No answer tells where anything lies on the machine, and no path leads out of the page's files."""

import http.client
from pathlib import Path

import httpx
import pytest

KNN = {"text": "cat", "modality": "image", "num_images": 24, "indice_name": "emoji"}


def test_no_answer_has_a_path_of_the_machine(
    client: httpx.Client, served_root: str, tiny_encoder: str
) -> None:
    found = client.post("/knn-service", json=KNN)
    rated = {"query": "cat", "aesthetic_score": 9, "aesthetic_weight": 0.5}
    answers = [
        found,
        client.post("/knn-service", json=KNN | {"indice_name": "nothing"}),
        client.post("/metadata", json={"indice_name": "emoji", "ids": [found.json()[0]["id"]]}),
        client.post("/v1/search", json=rated),
    ]
    pages = ("/", "/config.json", "/openapi.json", "/metrics", "/v1/indices", "/indices-list")
    answers += [client.get(path) for path in pages]
    assert [answer.status_code for answer in answers] == [200, 404, *[200] * 8]
    for answer in answers:
        for place in (str(Path(served_root).parent), str(Path(tiny_encoder).parent)):
            assert place not in answer.text, answer.url


@pytest.mark.parametrize(
    "path",
    [
        *("/web/..%2f..%2fpyproject.toml", "/web/../serve.py", "/web/%2e%2e/serve.py"),
        *("/web/..%5c..%5cpyproject.toml", "/web//etc/passwd", "/web/%2fetc%2fpasswd"),
        *("/v1/thumbnail/emoji/..%2f..", "/v1/thumbnail/..%2f..%2femoji/x", "/%2e%2e/README.md"),
    ],
)
def test_no_spelling_of_a_path_leads_out(client: httpx.Client, path: str) -> None:
    # httpx would normalise the path.
    assert client.base_url.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=300)
    try:
        connection.request("GET", path)
        assert connection.getresponse().status == 404
    finally:
        connection.close()
