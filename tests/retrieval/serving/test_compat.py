"""The wire of clip-retrieval 2.45: its own client, and what its page sends."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from benchmarks.made_corpus import write_made_signal
from benchmarks.peers import peer_python
from pipeline.corpus import iter_samples, read_manifest, write_columns
from retrieval.serving.indices import id_of

StartService = Callable[..., AbstractContextManager[httpx.Client]]

CLIENT = (
    "--no-deps",  # of all that it asks for (torch, faiss, ...) its client imports requests
    "clip-retrieval==2.45.0",
    *("requests==2.32.5", "urllib3==2.5.0", "idna==3.10", "certifi", "charset-normalizer==3.4.3"),
)


@pytest.fixture(scope="session")
def peer(request: pytest.FixtureRequest) -> Path:
    """An environment with clip-retrieval, made once and kept in pytest's cache."""
    assert request.config.cache is not None
    return peer_python(request.config.cache.mkdir("clip-client"), *CLIENT)


def knn(client: httpx.Client, path: str = "/knn-service", **asked: Any) -> Any:
    asked = {"modality": "image", "num_images": 3, "indice_name": "emoji"} | asked
    return client.post(path, json=asked)


def test_their_client_runs_unchanged(
    peer: Path, client: httpx.Client, samples: list[Any], tmp_path: Path
) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(samples[3].image)
    answers = calls_of_their_client(peer, client, picture)
    assert [len(answers[name]) for name in ("text", "embedding", "captions")] == [5, 5, 3]
    first = answers["image"][0]
    assert (first["id"], first["caption"]) == (id_of(samples[3].uid), samples[3].caption)
    assert first["similarity"] == pytest.approx(1, abs=2e-3)
    assert base64.b64decode(first["image"]) == samples[3].image
    # What it can't have is told; the original would fetch from its own machine, and answer 500.
    assert "refused address" in answers["image_url"]["error"]
    assert "safe mode" in answers["defaults"]["error"]


def test_their_client_s_defaults_are_answered_where_safety_is_scored(
    peer: Path,
    served_root: str,
    start_service: StartService,
    samples: list[Any],
    tmp_path: Path,
) -> None:
    """Safe mode, deduplication and a rating, as their page and their client ask for them."""
    root = str(shutil.copytree(served_root, tmp_path / "emoji"))
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(samples[3].image)
    with start_service(root) as client:
        nearest = calls_of_their_client(peer, client, picture)["text"][0]["id"]
    score_safety(root, unsafe=nearest)
    with start_service(root) as client:
        hits = calls_of_their_client(peer, client, picture)["defaults"]
    # To an untrained encoder all pictures are near copies of one.
    assert [hit["id"] in {id_of(sample.uid) for sample in samples} for hit in hits] == [True]
    assert nearest not in [hit["id"] for hit in hits]


def calls_of_their_client(peer: Path, client: httpx.Client, picture: Path) -> Any:
    """What clip_client_calls.py prints."""
    url = f"{client.base_url}/knn-service"
    calls = Path(__file__).parent / "clip_client_calls.py"
    arguments = [url, "emoji", "grinning face", str(picture), "http://127.0.0.1/cat.jpg"]
    done = subprocess.run(
        [peer, calls, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def score_safety(root: str, unsafe: int) -> None:
    """Columns as the signal `safety` writes them: the sample of that id is not safe."""
    for shard in read_manifest(root).shards:
        uids = [sample.uid for sample in iter_samples(root, shard)]
        nudity = [0.9 if id_of(uid) == unsafe else 0.1 for uid in uids]
        table = pa.table({"uid": uids, "nudity_exposed": pa.array(nudity, pa.float32())})
        write_columns(root, "safety", shard.name, table)
    write_made_signal(root, "safety")


def test_neither_a_content_type_nor_single_slashes_are_needed(client: httpx.Client) -> None:
    asked = {"text": "cat", "modality": "image", "num_images": 2, "indice_name": "emoji"}
    body = json.dumps(asked).encode()
    usual = client.post("/knn-service", json=asked).json()
    assert len(usual) == 2
    for path in ("//knn-service", "/knn-service", "///knn-service"):
        for headers in ({}, {"content-type": "text/plain"}):
            answer = client.post(f"{client.base_url}{path}", content=body, headers=headers)
            assert answer.json() == usual, (path, headers)
    assert client.get(f"{client.base_url}//indices-list").json() == ["emoji"]


def test_hits_past_num_images_have_only_id_and_similarity(client: httpx.Client) -> None:
    hits = knn(client, text="cat", num_images=2, num_result_ids=6).json()
    assert [set(hit) > {"id", "similarity", "caption", "url"} for hit in hits[:2]] == [True] * 2
    assert [set(hit) for hit in hits[2:]] == [{"id", "similarity"}] * 4
    similarities = [hit["similarity"] for hit in hits]
    assert similarities == sorted(similarities, reverse=True)


def test_an_id_is_exact_in_javascript_and_leads_to_the_sample(
    client: httpx.Client, samples: list[Any]
) -> None:
    ids = [id_of(sample.uid) for sample in samples]
    assert all(0 <= each < 2**53 for each in ids)
    assert max(ids) > 2**32
    answer = client.post("/metadata", json={"indice_name": "emoji", "ids": ids})
    found = [(each["id"], each["metadata"]["uid"]) for each in answer.json()]
    assert found == [(id_of(sample.uid), sample.uid) for sample in samples]
    assert client.post("/metadata", json={"ids": []}).json() == []


def test_the_first_query_that_is_not_empty_counts_and_empty_switches_are_off(
    client: httpx.Client, picture: str, samples: list[Any]
) -> None:
    page: dict[str, Any] = {
        "aesthetic_score": "",
        "aesthetic_weight": "",
        "use_mclip": False,
        "text": None,
    }
    hits = knn(client, image=picture, embedding_input=[1.0] * 32, **page).json()
    assert hits[0]["id"] == id_of(samples[3].uid)
    rated = knn(client, text="cat", image=picture, aesthetic_score="9", aesthetic_weight="0.5")
    assert rated.status_code == 200


def test_the_page_is_told_where_to_ask(client: httpx.Client) -> None:
    config = client.get("/config.json").json()
    assert config == {
        "defaultBackend": f"{client.base_url}/",
        "defaultIndex": "emoji",
        "urlColumn": "url",
        "allowSave": False,
        "needsKey": False,
        "inlineThumbnails": False,
    }


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({}, 400, "nothing to look for"),
        ({"text": "cat", "modality": "sound"}, 422, "modality"),
        ({"text": "cat", "num_images": None}, 422, "num_images"),
        ({"text": "cat", "indice_name": "nothing"}, 404, "no index 'nothing'"),
        ({"text": "cat", "num_images": 20_000}, 400, "10,000"),
        ({"text": "cat", "aesthetic_score": "high", "aesthetic_weight": 1}, 422, "aesthetic"),
        ({"image": "@"}, 400, "not base64"),
        ({"embedding_input": [1.0]}, 400, "takes 32"),
    ],
)
def test_what_the_original_answers_with_500_is_4xx_with_a_message(
    client: httpx.Client, asked: dict[str, Any], status: int, told: str
) -> None:
    answer = knn(client, **asked)
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text


def test_an_unknown_id_is_a_mistake(client: httpx.Client) -> None:
    for ids, status in (([7], 400), ([-1], 422), ([2**70], 422), (["x"], 422)):
        answer = client.post("/metadata", json={"indice_name": "emoji", "ids": ids})
        assert (answer.status_code, "error" in answer.json()) == (status, True)


def test_metrics_have_the_original_s_names(client: httpx.Client) -> None:
    before = samples_of(client, "full_knn_request_time_count")
    knn(client, text="cat")
    assert samples_of(client, "full_knn_request_time_count") == before + 1
    text = client.get("/metrics").text
    for name in (
        *("full_knn_request_time", "download_time", "text_clip_inference_time"),
        *("image_clip_inference_time", "metadata_get_time", "knn_index_time", "dedup_time"),
        *("safety_time", "image_prepro_time", "text_prepro_time"),
    ):
        assert f"# TYPE {name} histogram" in text
    assert samples_of(client, "knn_index_time_count") > 0
    assert samples_of(client, "text_clip_inference_time_count") > 0


def samples_of(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))
