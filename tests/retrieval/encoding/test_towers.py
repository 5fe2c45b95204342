import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.cluster import Workers
from infra.errors import ConfigError, ConflictError, DamagedError, InputError
from pipeline.corpus import Manifest
from retrieval import embed, index
from retrieval.embedding.embeddings import DEFAULT_ENCODER, EMBEDDED_ENCODER
from retrieval.encoding.encoder import load_encoder
from retrieval.encoding.text_tower import EmbeddedTower, EncoderTower
from retrieval.encoding.towers import Tower, load_tower, multilingual_of, tower_of
from retrieval.encoding.weights import EMBEDDED_TOWERS, weights_digest
from retrieval.search import Retriever

(NAME,) = EMBEDDED_TOWERS
SCRIPTS = [
    "a cat",
    "Katze",
    "кошка",
    "قطة",
    "חתול",
    "बिल्ली",
    "แมว",
    "猫",
    "ねこ",
    "고양이",
    "γάτα",
    "🐈‍⬛",
    "❤️",
]


@pytest.fixture(scope="module")
def tower() -> Tower:
    return load_tower(NAME)


@pytest.fixture(scope="module")
def picture_index(
    tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Manifest]
) -> Retriever:
    """The first 800 emoji: faces, hearts, hands, people, animals, plants, food."""
    root = str(tmp_path_factory.mktemp("emoji") / "corpus")
    make_corpus(root, num_shards=1, num_samples=800)
    embed.run(embed.Config(root=root, encoder=EMBEDDED_ENCODER, workers=Workers(local=True)))
    index.run(index.Config(root=root))
    return Retriever.open(root)


def test_texts_of_any_script_become_unit_rows_that_do_not_depend_on_their_neighbours(
    tower: Tower,
) -> None:
    rows = tower.encode_texts(SCRIPTS)
    assert rows.shape == (len(SCRIPTS), tower.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for text, row in zip(SCRIPTS, rows, strict=True):
        np.testing.assert_allclose(tower.encode_texts([text])[0], row, atol=1e-5)
    similarities = rows @ rows.T - np.eye(len(rows))
    assert similarities.max() < 0.9999  # none is unknown, and so like another


def test_the_same_texts_give_the_same_bytes(tower: Tower) -> None:
    rows = tower.encode_texts(SCRIPTS * 50)
    assert rows.tobytes() == tower.encode_texts(SCRIPTS * 50).tobytes()
    assert rows.tobytes() == load_tower(NAME).encode_texts(SCRIPTS * 50).tobytes()


def test_case_spaces_and_variation_selectors_make_no_difference(tower: Tower) -> None:
    rows = tower.encode_texts(["Rotes HERZ", "  rotes \n herz ", "❤️", "❤", "İnek", "inek"])
    np.testing.assert_allclose(rows[0::2], rows[1::2], atol=1e-5)


@pytest.mark.parametrize("text", ["", "   ", "\ufe0f"])
def test_a_text_without_words_is_an_error_of_one_line(tower: Tower, text: str) -> None:
    with pytest.raises(InputError, match="no words") as raised:
        tower.encode_texts(["cat", text])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["chat " * 1_000_000, "x" * 5_000_000, "ก" * 100_000, "\ud83d cat"]
)
def test_very_long_and_broken_texts_are_read_as_far_as_they_go(tower: Tower, text: str) -> None:
    rows = tower.encode_texts([text, text[:2000]])
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


def test_no_texts_give_no_rows(tower: Tower) -> None:
    assert tower.encode_texts([]).shape == (0, tower.dim)


def test_encoders_are_told_apart_by_whether_a_tower_shares_their_space() -> None:
    assert multilingual_of(EMBEDDED_ENCODER) == NAME
    assert multilingual_of("ViT-H-14/laion2b_s32b_b79k") == (
        "xlm-roberta-large-ViT-H-14/frozen_laion5b_s13b_b90k"
    )
    for own in (
        "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
        "nllb-clip-base-siglip/v1",
        "ViT-B-16-SigLIP2/webli",
        "ViT-H-14-worldwide-quickgelu/metaclip2_worldwide",
        "hf-hub:timm/ViT-B-16-SigLIP2",
        "hf-hub:laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
    ):
        assert multilingual_of(own) == own
    for english in (
        DEFAULT_ENCODER,
        "roberta-ViT-B-32/laion2b_s12b_b32k",
        "ViT-B-16-SigLIP/webli",
        "ViT-B-32/weights/of-the-worldwide-web.pt",
    ):
        assert multilingual_of(english) is None


def test_every_name_of_a_multilingual_model_is_one_that_open_clip_has() -> None:
    import open_clip

    names = {"/".join(pair) for pair in open_clip.list_pretrained()}
    assert "ViT-H-14/laion2b_s32b_b79k" in names
    assert multilingual_of("ViT-H-14/laion2b_s32b_b79k") in names
    # By the vocabulary: XLM-R's, NLLB's, XLM-V's and Gemma's have 250,000 words and more.
    for name in names:
        settings = open_clip.get_model_config(name.partition("/")[0])["text_cfg"]
        hub_name = settings.get("hf_model_name") or settings.get("hf_tokenizer_name") or ""
        reads_many = any(mark in hub_name for mark in ("xlm", "nllb", "i18n", "SigLIP2"))
        assert (multilingual_of(name) == name) == reads_many, name


def test_an_encoder_without_a_tower_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="xlm-roberta-base-ViT-B-32/laion5b") as raised:
        tower_of(DEFAULT_ENCODER, "0" * 64)
    assert "\n" not in str(raised.value)


def test_pictures_by_other_weights_than_the_teachers_are_refused() -> None:
    with pytest.raises(ConflictError, match="belongs to 'Carrara-S/emoji_clipart'") as raised:
        tower_of(EMBEDDED_ENCODER, "0" * 64)
    assert "\n" not in str(raised.value)
    assert tower_of(EMBEDDED_ENCODER, weights_digest(EMBEDDED_ENCODER)).name == NAME


def test_an_encoders_own_tower_gives_its_rows_for_its_own_weights(tiny_encoder: str) -> None:
    encoder = load_encoder(tiny_encoder)
    tower: Tower = EncoderTower("xlm-roberta-tiny/none", encoder)
    np.testing.assert_array_equal(tower.encode_texts(["gato"]), encoder.encode_texts(["gato"]))
    assert tower.dim == encoder.dim
    tower.check_space(encoder.weights_digest)
    with pytest.raises(ConflictError, match="belongs to"):
        tower.check_space("0" * 64)


def test_a_damaged_description_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "tower"
    shutil.copytree(EMBEDDED_TOWERS[NAME], folder)
    described = json.loads((folder / "tower.json").read_text())
    del described["teacher_digest"]
    (folder / "tower.json").write_text(json.dumps(described))
    with pytest.raises(DamagedError, match="teacher_digest"):
        EmbeddedTower(NAME, folder)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("red heart", "rotes Herz|corazón rojo|cœur rouge|赤いハート|قلب أحمر|红心|빨간색 하트"),
        ("horse face", "Pferdegesicht|cara de caballo|морда лошади|馬の顔|घोड़े का चेहरा|马头"),
        ("robot face", "Roboter|robot|робот|ロボット|रोबोट चेहरा|로봇 얼굴"),
    ],
)
def test_one_picture_index_answers_in_many_languages(
    picture_index: Retriever, wanted: str, names: str
) -> None:
    queries = [wanted, *names.split("|")]
    tower = tower_of(picture_index.encoder, picture_index.manifest.weights_digest)
    for query, hits in zip(
        queries, picture_index.search(tower.encode_texts(queries), 5), strict=True
    ):
        assert any(wanted in hit.caption.lower() for hit in hits), (
            query,
            [h.caption for h in hits],
        )
