import base64
import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipeline.corpus import read_selection

StartService = Callable[..., AbstractContextManager[httpx.Client]]


def search(client: httpx.Client, **asked: Any) -> Any:
    answer = client.post("/v1/search", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def uids(answer: Any) -> list[str]:
    return [hit["uid"] for hit in answer["hits"]]


def test_the_indices_are_told_with_what_can_be_asked_of_them(
    client: httpx.Client, tiny_encoder: str
) -> None:
    (index,) = client.get("/v1/indices").json()
    assert (index["name"], index["num_rows"]) == ("emoji", 24)
    assert index["modalities"] == ["image", "text"]
    assert {"width", "caption"} <= set(index["columns"])
    assert (index["multilingual"], index["safe"]) == (False, False)
    # The encoder is a folder of this machine: its last part is told, no more.
    assert index["encoder"] == tiny_encoder.rsplit("/", 1)[-1]


def test_a_picture_finds_its_own_sample(
    client: httpx.Client, samples: list[Any], picture: str
) -> None:
    hits = search(client, terms=[{"image": picture}], k=3)["hits"]
    first, sample = hits[0], samples[3]
    assert (first["uid"], first["caption"]) == (sample.uid, sample.caption)
    assert first["similarity"] == pytest.approx(1, abs=2e-3)
    assert (first["width"], first["height"]) == (64, 64)
    assert first["metadata"]["sha256"] == sample.metadata["sha256"]
    assert len(hits) == 3


def test_terms_of_every_kind_add_up(client: httpx.Client, samples: list[Any], picture: str) -> None:
    uid = samples[3].uid
    (alone,) = search(client, terms=[{"uid": uid}], k=1, **{"with": ["embedding"]})["hits"]
    vector = alone["embedding"]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=2e-3)
    mixed = [
        {"text": samples[3].caption, "weight": 0.1},
        {"image": picture, "weight": 2},
        {"embedding": vector},
        {"uid": uid},
        {"text": "something else", "weight": -0.1},
    ]
    assert uids(search(client, terms=mixed, k=2))[0] == uid
    away = uids(search(client, terms=[{"uid": uid, "weight": -1}], k=24))
    assert away[-1] == uid


def test_a_query_in_words_of_algebra_is_the_same_as_its_terms(client: httpx.Client) -> None:
    terms = [{"text": "cat"}, {"text": "cartoon", "weight": -0.5}]
    by_terms = search(client, terms=terms, k=24)
    assert uids(search(client, query="cat - 0.5*cartoon", k=24)) == uids(by_terms)
    by_address = client.get("/v1/search", params={"query": "cat - 0.5*cartoon", "k": 24})
    assert uids(by_address.json()) == uids(by_terms)


def test_a_file_s_name_is_but_words(client: httpx.Client, served_root: str) -> None:
    for query in (f"{served_root}/manifest.json", "./pool.jpg", "file:///etc/passwd"):
        as_words = search(client, terms=[{"text": query}], k=3)
        assert search(client, query=query, k=3) == as_words


def test_where_restricts_and_there_are_exactly_k(client: httpx.Client) -> None:
    answer = search(client, terms=[{"text": "face"}], k=5, where="caption ilike '%face%'")
    assert len(answer["hits"]) == 5
    assert all("face" in hit["caption"].lower() for hit in answer["hits"])


def test_pages_by_cursor_are_the_whole_list_once(client: httpx.Client) -> None:
    asked: dict[str, Any] = {"terms": [{"text": "face"}], "k": 7}
    whole = uids(search(client, **asked | {"k": 24}))
    pages, cursor = [], None
    while True:
        answer = search(client, **asked, cursor=cursor)
        pages.append(uids(answer))
        cursor = answer["cursor"]
        if cursor is None:
            break
    assert [len(page) for page in pages] == [7, 7, 7, 3]
    assert [uid for page in pages for uid in page] == whole


def test_a_cursor_of_another_question_is_refused(client: httpx.Client) -> None:
    cursor = search(client, terms=[{"text": "face"}], k=7)["cursor"]
    for wrong in (cursor, "bm9uc2Vuc2U=", "%%%", "eyI="):
        asked = {"terms": [{"text": "cat"}], "k": 7, "cursor": wrong}
        answer = client.post("/v1/search", json=asked)
        assert (answer.status_code, "cursor" in answer.json()["error"]) == (400, True)


def test_a_batch_is_its_questions_one_by_one(client: httpx.Client, picture: str) -> None:
    questions = [
        {"terms": [{"text": "cat"}], "k": 3},
        {"terms": [{"image": picture}], "k": 2, "modality": "text"},
        {"query": "dog - cat", "k": 4},
    ]
    answers = client.post("/v1/batch", json={"questions": questions}).json()["answers"]
    for answer, question in zip(answers, questions, strict=True):
        alone = search(client, **question)
        assert uids(answer) == uids(alone)
        # A batch of an encoder's rounds otherwise than its texts one by one.
        for one, other in zip(answer["hits"], alone["hits"], strict=True):
            assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)


def test_a_batch_has_limits(client: httpx.Client) -> None:
    cat = {"query": "cat", "k": 1}
    for questions, told in (([cat] * 101, "101 questions"), ([cat | {"k": 6_000}] * 2, "12,000")):
        answer = client.post("/v1/batch", json={"questions": questions})
        assert (answer.status_code, told in answer.json()["error"]) == (400, True)


def test_thumbnails_come_by_uid_and_within_answers(
    client: httpx.Client, samples: list[Any]
) -> None:
    uid = samples[5].uid
    answer = client.get(f"/v1/thumbnail/emoji/{uid}", params={"size": 32})
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 64
    hits = search(client, terms=[{"uid": uid}], k=2, **{"with": ["thumbnail"]})["hits"]
    for hit in hits:
        Image.open(io.BytesIO(base64.b64decode(hit["thumbnail"]))).verify()
    for unknown in ("0" * 32, "abc", "0" * 31, "é", uid.upper()):
        assert client.get(f"/v1/thumbnail/emoji/{unknown}").status_code == 404
    assert client.get(f"/v1/thumbnail/nothing/{uid}").status_code == 404


def test_a_damaged_shard_takes_no_more_than_its_own_pictures(
    served_root: str,
    start_service: StartService,
    samples: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = shutil.copytree(served_root, tmp_path / "emoji")
    (root / "shards" / "00000.tar").unlink()
    there = {sample.uid for sample in samples[12:]}
    theirs = {"text": "cat", "modality": "image", "num_images": 24, "indice_name": "emoji"}
    with start_service(str(root)) as client:
        hits = search(client, query="cat", k=24, **{"with": ["thumbnail"]})["hits"]
        assert {hit["uid"] for hit in hits if "thumbnail" in hit} == there
        for _ in range(2):
            answer = client.post("/knn-service", json=theirs)
            assert answer.status_code == 200
            assert len(answer.json()) == 24
            assert {hit["uid"] for hit in answer.json() if "image" in hit} == there
        assert client.get(f"/v1/thumbnail/emoji/{samples[0].uid}").status_code == 404
    assert capsys.readouterr().err.count("00000.tar: is missing") == 1


def test_a_copy_of_the_corpus_s_own_picture_is_told_where_asked(
    client: httpx.Client, samples: list[Any], picture: str
) -> None:
    asked = {"terms": [{"image": picture}], "k": 1}
    verdict = search(client, **asked, **{"with": ["copy"]})["copy"]
    assert (verdict["is_copy"], verdict["uid"]) == (True, samples[3].uid)
    assert verdict["hash_distance"] == 0
    assert search(client, **asked)["copy"] is None
    assert search(client, query="cat", **{"with": ["copy"]})["copy"] is None


def test_what_was_found_is_saved_as_a_selection(
    served_root: str, start_service: StartService, samples: list[Any], tmp_path: Path
) -> None:
    root = str(shutil.copytree(served_root, tmp_path / "emoji"))
    chosen = sorted(sample.uid for sample in samples[:3])
    with start_service(root, allow_save=True) as client:
        asked = {"name": "mine", "uids": chosen}
        elsewhere = {"Origin": "https://elsewhere.example"}
        assert client.post("/v1/selections", json=asked, headers=elsewhere).status_code == 403
        answer = client.post("/v1/selections", json=asked)
        assert (answer.status_code, answer.json()["rows"]) == (200, 3)
        kept = read_selection(root, "mine").filter(pc.field("keep"))
        assert sorted(kept["uid"].to_pylist()) == chosen
        other = client.post("/v1/selections", json=asked | {"uids": chosen[:1]})
        assert (other.status_code, "another selection" in other.json()["error"]) == (409, True)
        for name in ("../x", "", "a b", "x" * 65):
            assert client.post("/v1/selections", json=asked | {"name": name}).status_code == 422


def test_saving_is_off_unless_the_service_was_started_for_it(
    client: httpx.Client, samples: list[Any]
) -> None:
    asked = {"name": "mine", "uids": [samples[0].uid]}
    assert client.post("/v1/selections", json=asked).status_code == 403


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({}, 400, "terms"),
        ({"terms": [{"text": "cat"}], "query": "dog"}, 400, "both"),
        ({"terms": [{"text": "cat", "uid": "0" * 32}]}, 400, "a term is one of"),
        ({"terms": [{}]}, 400, "a term is one of"),
        ({"terms": [{"text": "   "}]}, 400, "no words"),
        ({"query": "cat +"}, 400, "nothing on one side"),
        ({"query": "uid:nonsense"}, 400, "uid"),
        ({"query": "1e300*cat"}, 400, "weight"),
        ({"query": "cat" + " + cat" * 16}, 400, "17 terms"),
        ({"terms": [{"text": "cat"}] * 17}, 422, "terms: "),
        ({"terms": [{"text": "cat"}], "k": 0}, 422, "k: "),
        ({"terms": [{"text": "cat"}], "k": 10_001}, 400, "10,000"),
        ({"terms": [{"text": "cat"}], "kk": 3}, 422, "kk: "),
        ({"terms": [{"text": "cat"}], "index": "nothing"}, 404, "emoji"),
        ({"terms": [{"text": "cat"}], "where": "nonsense ="}, 400, "where"),
        ({"terms": [{"text": "cat"}], "where": "colour = 'red'"}, 400, "colour"),
        ({"terms": [{"embedding": [1.0, 2.0]}]}, 400, "takes 32"),
        ({"terms": [{"embedding": [0.0] * 32}]}, 400, "zero"),
        ({"terms": [{"uid": "f" * 32}]}, 400, "no such sample"),
        ({"terms": [{"image": "!!!"}]}, 400, "not base64"),
        ({"terms": [{"image": "aGVsbG8="}]}, 400, "not a picture"),
        ({"terms": [{"text": "cat"}], "multilingual": True}, 400, "multilingual"),
        ({"terms": [{"text": "cat"}], "safe": True}, 400, "safe"),
    ],
)
def test_a_mistake_is_one_line_with_a_4xx(
    client: httpx.Client, served_root: str, asked: dict[str, Any], status: int, told: str
) -> None:
    answer = client.post("/v1/search", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, told in error) == (status, True), answer.text
    assert "\n" not in error
    assert served_root not in error
