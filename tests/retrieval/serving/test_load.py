"""Many clients at once, more than can be served, and changes of the index meanwhile."""

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.http_load import Load, run_load
from infra.cluster import Workers
from pipeline import forget
from pipeline.corpus import Manifest, iter_samples
from retrieval import embed, index
from retrieval.serving.indices import id_of

StartService = Callable[..., AbstractContextManager[httpx.Client]]


def mixed(picture: str) -> Callable[[int], bytes]:
    """Words, embeddings, algebra, pictures, filters."""

    def body(number: int) -> bytes:
        kinds: list[dict[str, Any]] = [
            {"terms": [{"text": f"face {number}"}]},
            {"terms": [{"embedding": [1.0, number, *[0.5] * 30]}]},
            {"query": f"cat - 0.5*dog {number}"},
            {"terms": [{"text": "cat"}], "where": "width >= 64", "dedup": True},
            {"terms": [{"image": picture}], "with": ["embedding"]},
        ]
        asked = kinds[number % len(kinds)]
        return json.dumps(asked | {"k": 10}).encode()

    return body


def load(client: httpx.Client, picture: str, num_clients: int, seconds: float) -> Load:
    assert client.base_url.port is not None
    return run_load(
        client.base_url.port,
        "/v1/search",
        mixed(picture),
        num_clients=num_clients,
        seconds=seconds,
    )


def test_200_clients_are_all_answered(client: httpx.Client, picture: str) -> None:
    met = load(client, picture, num_clients=200, seconds=2)
    assert met.num_errors == 0, met.statuses
    assert met.statuses["200"] >= 200


def test_beyond_its_limit_it_says_so_at_once_and_goes_on(
    served_root: str, start_service: StartService, picture: str
) -> None:
    with start_service(served_root, max_waiting=8) as client:
        found: dict[str, Load] = {}
        crowd = threading.Thread(target=lambda: found.update(met=load(client, picture, 60, 2)))
        crowd.start()
        time.sleep(1)
        assert client.get("/health").json() == {"status": "ok"}
        crowd.join()
        met = found["met"]
        assert set(met.statuses) == {"200", "503"}
        assert met.statuses["200"] >= 8
        assert client.post("/v1/search", json={"query": "cat"}).status_code == 200
        assert "carrara_requests_inside 0.0" in client.get("/metrics").text


def test_questions_that_can_not_be_answered_take_no_batch_apart(
    served_root: str, start_service: StartService, picture: str
) -> None:
    """Whatever a batch had to be asked again for would be counted again."""
    data = base64.b64decode(picture)
    half = base64.b64encode(data[: len(data) // 2]).decode()
    asked: list[dict[str, Any]] = [
        {"terms": [{"text": "cat"}]},
        {"terms": [{"uid": "f" * 32}]},
        {"terms": [{"text": "cat"}, {"text": "cat", "weight": -1}]},
        {"terms": [{"image": half}]},
    ]
    service = start_service(served_root, max_wait_s=300)
    with service as client, ThreadPoolExecutor(32) as clients:
        posts = [
            clients.submit(client.post, "/v1/search", json=asked[number % len(asked)])
            for number in range(64)
        ]
        statuses = [post.result().status_code for post in posts]
        assert statuses == [200, 400, 400, 400] * 16
        told = client.get("/metrics").text
    sizes = dict(re.findall(r"^carrara_batch_size_(sum|count) (\S+)$", told, re.MULTILINE))
    assert float(sizes["sum"]) == 64
    assert float(sizes["count"]) < 64


def test_what_waited_too_long_is_refused_with_a_time_to_come_back(
    served_root: str, start_service: StartService, picture: str
) -> None:
    with start_service(served_root, max_wait_s=1e-9) as client:
        for asked in ({"query": "cat"}, {"terms": [{"image": picture}]}):
            answer = client.post("/v1/search", json=asked)
            assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (503, True)
            assert "its turn" in answer.json()["error"]


def test_what_is_appended_is_found_within_seconds(
    served_root: str,
    start_service: StartService,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
    tmp_path: Path,
) -> None:
    root = str(shutil.copytree(served_root, tmp_path / "emoji"))

    def num_rows(client: httpx.Client) -> int:
        return int(client.get("/v1/indices").json()[0]["num_rows"])

    with start_service(root, refresh_s=0.1) as client:
        assert num_rows(client) == 24
        grown = make_corpus(root, num_shards=3)  # the first two as they were
        new = next(iter_samples(root, grown.shards[2]))
        asked = {"terms": [{"uid": new.uid}], "k": 1}
        assert client.post("/v1/search", json=asked).status_code == 400
        embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=Workers(local=True)))
        index.run(index.Config(root=root))
        until = time.monotonic() + 60
        while num_rows(client) == 24 and time.monotonic() < until:
            time.sleep(0.1)
        assert num_rows(client) == 36
        (hit,) = client.post("/v1/search", json=asked).json()["hits"]
        assert (hit["uid"], hit["caption"]) == (new.uid, new.caption)


def test_a_takedown_is_live_within_seconds(
    served_root: str, start_service: StartService, samples: list[Any], tmp_path: Path
) -> None:
    root = str(shutil.copytree(served_root, tmp_path / "emoji"))
    uid = samples[3].uid
    ids = {"indice_name": "emoji", "ids": [id_of(uid)]}

    def found(client: httpx.Client) -> list[bool]:
        hits = client.post("/v1/search", json={"query": "cat", "k": 24}).json()["hits"]
        return [
            uid in [hit["uid"] for hit in hits],
            client.get(f"/v1/thumbnail/emoji/{uid}").status_code == 200,
            client.post("/metadata", json=ids).status_code == 200,
        ]

    with start_service(root, refresh_s=0.1) as client:
        assert found(client) == [True] * 3
        forget.run(forget.Config(root=root, uid=(uid,), workers=Workers(local=True)))
        until = time.monotonic() + 60
        while any(found(client)) and time.monotonic() < until:
            time.sleep(0.1)
        assert found(client) == [False] * 3
        answer = client.post("/v1/search", json={"query": "cat", "k": 24}).json()
        assert len(answer["hits"]) == 23
