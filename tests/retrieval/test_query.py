import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from infra import storage
from infra.cluster import Workers
from infra.errors import CarraraError, ConfigError, ConflictError, InputError
from infra.summary import Summary
from pipeline import pack
from pipeline.corpus import (
    Manifest,
    iter_samples,
    read_manifest,
    read_rows,
    read_selection,
    write_manifest,
    write_shard,
)
from pipeline.fetching.fetch import FetchSettings
from pipeline.sample import Sample
from retrieval import embed, index, query
from retrieval.asking.pages import data_uri
from retrieval.embedding.embeddings import encoder_slug
from training.data import SampleStream
from training.streaming.batch import StreamSettings

HERE = Workers(local=True)
HOSTILE = '<script>alert("x")</script> & "quoted"'


def run(root: str, text: str | None = None, **settings: Any) -> Summary:
    return query.run(query.Config(root=root, text=text, **settings))


def hits(summary: Summary) -> list[dict[str, Any]]:
    found = summary.details["hits"]
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory,
    make_corpus: Callable[..., Manifest],
    tiny_encoder: str,
) -> str:
    """An indexed corpus in which one caption is markup."""
    root = str(tmp_path_factory.mktemp("query") / "corpus")
    manifest = make_corpus(root, num_shards=1, num_samples=12)
    (shard,) = manifest.shards
    first, *others = iter_samples(root, shard)
    first = Sample(first.key, first.uid, HOSTILE, first.image, first.extension, first.metadata)
    rows = read_rows(root, shard)
    captions = [HOSTILE, *rows["caption"].to_pylist()[1:]]
    rows = rows.set_column(rows.column_names.index("caption"), "caption", [captions])
    shard = write_shard(root, shard.name, [first, *others], rows, {})
    write_manifest(root, manifest.model_copy(update={"shards": [shard]}))
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=root))
    return root


@pytest.fixture(scope="module")
def picture(root: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus's fifth picture as a file."""
    samples = list(iter_samples(root, read_manifest(root).shards[0]))
    path = tmp_path_factory.mktemp("pictures") / "fifth.jpg"
    path.write_bytes(samples[4].image)
    return path


@pytest.fixture
def picture_url(picture: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(picture.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{picture.name}"
        server.shutdown()


def test_words_find_the_caption_that_they_are(root: str) -> None:
    caption = list(iter_samples(root, read_manifest(root).shards[0]))[7].caption
    summary = run(root, caption, k=5, modality="text")
    assert summary.num_out == 5
    assert hits(summary)[0]["caption"] == caption
    assert summary.table[0]["similarity"] == pytest.approx(1, abs=2e-3)
    json.dumps(summary.as_json())


def test_a_picture_finds_itself_from_a_file_and_from_a_url(
    root: str, picture: Path, picture_url: str
) -> None:
    allowed = FetchSettings(allow_hosts=("127.0.0.1",))
    by_file = run(root, image=str(picture), k=3)
    by_url = run(root, image=picture_url, k=3, fetch=allowed)
    assert hits(by_file)[0]["key"] == "000000004"
    assert hits(by_file) == hits(by_url)


def test_a_picture_at_a_private_address_is_not_fetched(root: str, picture_url: str) -> None:
    with pytest.raises(InputError, match="refused address"):
        run(root, image=picture_url)


def test_the_page_is_offline_and_captions_stay_text(
    root: str, picture: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    summary = run(root, image=str(picture), k=12, html=str(page))
    assert summary.outputs == {"html": str(page)}
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "&lt;script&gt;alert" in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 13  # the hits and the query
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "href" not in text


def test_the_contact_sheet_is_a_picture(root: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    run(root, "a face", k=7, png=str(sheet))
    with Image.open(sheet) as opened:
        assert opened.format == "PNG"
        assert opened.width > opened.height  # five columns, two rows


def test_a_query_is_words_or_a_picture(root: str, picture: Path) -> None:
    with pytest.raises(ConfigError, match="neither was given"):
        run(root)
    with pytest.raises(ConfigError, match="several were given"):
        run(root, "a cat", image=str(picture))


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff\xd8\xff\xe0 not a JPEG"])
def test_a_picture_that_can_not_be_used_is_named(
    root: str, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "query.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as raised:
        run(root, image=str(path))
    assert "\n" not in str(raised.value)


def test_several_indices_ask_which(root: str, tiny_encoder: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    record = copy / "index" / encoder_slug(tiny_encoder) / "index.json"
    other = copy / "index" / "other" / "index.json"
    other.parent.mkdir()
    other.write_text(record.read_text().replace(tiny_encoder, "some/other"))
    with pytest.raises(InputError, match=r"several encoders: .*some/other.*--encoder"):
        run(str(copy), "a cat")
    assert run(str(copy), "a cat", encoder=tiny_encoder).num_out == 10
    with pytest.raises(InputError, match="no index by 'third'"):
        run(str(copy), "a cat", encoder="third")


def test_an_encoder_whose_weights_changed_is_refused(
    small_corpus: str, tiny_encoder: str, tmp_path: Path
) -> None:
    encoder = str(tmp_path / "encoder")
    shutil.copytree(tiny_encoder, encoder)
    embed.run(embed.Config(root=small_corpus, encoder=encoder, workers=HERE))
    index.run(index.Config(root=small_corpus))
    weights = Path(encoder, "open_clip_model.safetensors")
    tensors = load_file(weights)
    tensors["text_projection"] = -tensors["text_projection"]
    save_file(tensors, weights)
    with pytest.raises(ConflictError, match="weights changed"):
        run(small_corpus, "a cat")


def test_algebra_adds_files_and_words(root: str, picture: Path, tmp_path: Path) -> None:
    alone = hits(run(root, image=str(picture), k=12))
    assert hits(run(root, str(picture), k=12)) == alone
    moved = hits(run(root, f"{picture} - 2*cat", k=12))
    assert [hit["uid"] for hit in moved] != [hit["uid"] for hit in alone]
    vector = tmp_path / "vector.npy"
    stored = np.load(next(Path(root).glob("embeddings/*/img_emb/img_emb_0.npy")))
    np.save(vector, stored[4])
    assert hits(run(root, str(vector), k=1))[0]["key"] == "000000004"
    vector.with_suffix(".json").write_text(json.dumps(stored[4].tolist()))
    assert hits(run(root, str(vector.with_suffix(".json")), k=1))[0]["key"] == "000000004"


def test_a_list_of_questions_is_answered_line_by_line(root: str, tmp_path: Path) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text("a face\n\nheart - face\n")
    summary = run(root, questions=str(lines), k=3, modality="text")
    answers = summary.details["answers"]
    assert isinstance(answers, list)
    assert [answer["query"] for answer in answers] == ["a face", "heart - face"]
    assert [len(answer["hits"]) for answer in answers] == [3, 3]
    assert answers[0]["hits"] == hits(run(root, "a face", k=3, modality="text"))
    objects = tmp_path / "list.jsonl"
    uid = answers[0]["hits"][0]["uid"]
    objects.write_text(
        '{"query": "a face", "k": 2}\n'
        + json.dumps({"terms": [{"uid": uid}], "where": "width = 64"})
    )
    answers = run(root, questions=str(objects), k=3).details["answers"]
    assert isinstance(answers, list)
    assert [len(answer["hits"]) for answer in answers] == [2, 3]
    assert answers[1]["query"] == f"uid:{uid}"
    assert answers[1]["hits"][0]["uid"] == uid


def test_rows_of_embeddings_are_questions(root: str, tmp_path: Path) -> None:
    stored = np.load(next(Path(root).glob("embeddings/*/img_emb/img_emb_0.npy")))
    np.save(tmp_path / "rows.npy", stored[:5])
    summary = run(root, questions=str(tmp_path / "rows.npy"), k=1)
    answers = summary.details["answers"]
    assert isinstance(answers, list)
    assert [answer["hits"][0]["key"] for answer in answers] == [f"{n:09d}" for n in range(5)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "\n \n", "no question in it"),
        ("list.txt", "cat\ncat + \n", "nothing on one side"),
        ("list.jsonl", '{"query": "cat"}\n{', "line 2: not JSON"),
        ("list.jsonl", "[1]", "line 1: .* is no object"),
        ("list.jsonl", '{"k": 3}', "line 1: expected either 'query'"),
        ("list.jsonl", '{"query": "cat", "k": 0}', "line 1: k: "),
        ("list.jsonl", '{"query": "cat", "kk": 1}', "line 1: kk: "),
        ("list.jsonl", '{"terms": [{"text": ""}]}', "line 1: text '': no words"),
        ("list.npy", "no array", "no embedding"),
        ("list.json", "[1, NaN]", "row 0: embedding: has a NaN"),
        ("list.json", '["a"]', "no embedding"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(
    root: str, tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CarraraError, match=message) as raised:
        run(root, questions=str(path))
    assert "\n" not in str(raised.value)


def test_hits_are_written_as_rows(root: str, tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "hits.jsonl", tmp_path / "hits.parquet"
    summary = run(root, "a face", k=3, dedup=True, jsonl=str(jsonl), parquet=str(parquet))
    rows = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert pq.read_table(parquet).to_pylist() == rows
    shown = [row for row in rows if row["folded_under"] is None]
    assert [row["uid"] for row in shown] == [hit["uid"] for hit in hits(summary)]
    # The encoder is untrained: to it all pictures are near copies of one.
    assert [row["rank"] for row in shown] == [1]
    assert [row["folded_under"] for row in rows[1:]] == [rows[0]["uid"]] * 11
    assert summary.counts["folded"] == 11
    assert {"width", "sha256", "url", "caption", "query"} <= rows[0].keys()


def test_many_questions_share_a_page_and_a_sheet(root: str, tmp_path: Path) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text('a face\n"<b>heart</b>"\n')
    page, sheet, alone = (tmp_path / name for name in ("page.html", "sheet.png", "alone.png"))
    run(root, "a face", k=3, png=str(alone))
    run(root, questions=str(lines), k=3, html=str(page), png=str(sheet), dedup=True)
    text = page.read_text(encoding="utf-8")
    assert text.count("<h1>") == 2
    assert "<b>heart" not in text
    assert text.count("11 near copies") == 2  # the encoder is untrained
    with Image.open(sheet) as both, Image.open(alone) as one:
        assert both.height > one.height


def test_no_hits_are_a_table_without_rows(root: str, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"hits.{name}") for name in ("jsonl", "parquet", "html", "png")}
    summary = run(root, "a face", where="width < 0", **paths)
    assert summary.num_out == 0
    assert "uid" in pq.read_table(paths["parquet"]).column_names
    assert Path(paths["jsonl"]).read_text() == ""
    assert "where: 0 of 12 samples" in Path(paths["html"]).read_text(encoding="utf-8")


def test_saved_hits_are_a_selection_that_pack_and_train_take(root: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "corpus")
    shutil.copytree(root, copy)
    summary = run(copy, "a face", k=4, save="faces")
    found = {hit["uid"] for hit in hits(summary)}
    kept = read_selection(copy, "faces").to_pylist()
    assert {row["uid"] for row in kept if row["keep"]} == found
    assert {row["reason"] for row in kept if not row["keep"]} == {"not among the answers"}
    packed = str(tmp_path / "packed")
    pack.run(pack.Config(root=copy, output=packed, selection="faces"))
    shards = read_manifest(packed).shards
    assert {one.uid for shard in shards for one in iter_samples(packed, shard)} == found
    stream = SampleStream(StreamSettings(root=copy, selection="faces", image_size=16, batch_size=4))
    assert stream.num_samples == 4
    assert {uid for step in range(2) for uid in stream.batch(step, range(4)).uids} == found
    run(copy, "a face", k=4, save="faces")  # the same again changes nothing
    with pytest.raises(ConflictError, match="another policy digest"):
        run(copy, "a face", k=5, save="faces")
    run(copy, "a face", k=5, save="faces", overwrite=True)
    assert sum(row["keep"] for row in read_selection(copy, "faces").to_pylist()) == 5


def test_a_copy_is_told(root: str, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = run(root, image=str(picture), k=1).details["copy"]
    assert isinstance(verdict, dict)
    assert verdict["is_copy"]
    assert f"query: {verdict['evidence']}" in capsys.readouterr().err
    assert run(root, image=str(picture), k=1, find_copy=False).details["copy"] is None


def test_a_hostile_caption_does_not_reach_the_terminal(
    small_corpus: str, make_corpus: Callable[..., Manifest], tiny_encoder: str
) -> None:
    make_corpus(small_corpus, num_shards=1, num_samples=4, captions={2: "a\x1b]0;owned\x07 cat"})
    embed.run(embed.Config(root=small_corpus, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=small_corpus))
    table = run(small_corpus, "a cat", k=4).table
    assert all(str(row["caption"]).isprintable() for row in table)


def test_thumbnails_of_large_pictures_are_small() -> None:
    noise = Image.effect_noise((3000, 2000), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert len(data_uri(noise)) < 100_000


def test_a_corpus_on_s3_is_embedded_indexed_and_searched(
    s3_bucket: str, tiny_encoder: str, make_corpus: Callable[..., Manifest]
) -> None:
    root = f"{s3_bucket}/corpus"
    make_corpus(root, num_shards=1, num_samples=4)
    embed.run(embed.Config(root=root, encoder=tiny_encoder, workers=HERE))
    index.run(index.Config(root=root))
    summary = run(root, "a face", k=4, png=f"{s3_bucket}/sheet.png", html=f"{s3_bucket}/page.html")
    assert summary.num_out == 4
    with storage.open_read(f"{s3_bucket}/sheet.png") as file, Image.open(file) as sheet:
        assert sheet.format == "PNG"
    assert storage.read_text(f"{s3_bucket}/page.html").count("<li>") == 4
