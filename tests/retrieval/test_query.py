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

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from infra import storage
from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, InputError
from infra.summary import Summary
from pipeline.corpus import (
    Manifest,
    Sample,
    iter_samples,
    read_manifest,
    read_rows,
    write_manifest,
    write_shard,
)
from pipeline.fetching.fetch import FetchSettings
from retrieval import embed, index, query
from retrieval.embeddings import encoder_slug

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
    with pytest.raises(ConfigError, match="both were given"):
        run(root, "a cat", image=str(picture))


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"\xff\xd8\xff\xe0 not a JPEG"])
def test_a_picture_that_can_not_be_used_is_named(
    root: str, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "query.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"--image {path}")) as raised:
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


def test_thumbnails_of_large_pictures_are_small() -> None:
    noise = Image.effect_noise((3000, 2000), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert len(query._data_uri(noise)) < 100_000


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
