import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ConfigError, ConflictError, InputError
from pipeline.corpus import iter_samples, read_manifest
from retrieval.asking.asker import Asker
from retrieval.asking.question import Answer, Question, Term
from retrieval.asking.ranking import SAME_URL
from retrieval.encoding.encoder import load_encoder
from retrieval.search import Retriever

NUM = 80
WORDLESS = "\N{VARIATION SELECTOR-16}"
"""Not empty, and nothing to any tokenizer."""


def is_safe(row: int) -> bool:
    """As the fixture scored it; one has no score."""
    return row % 3 != 0 and row != 7


def ask(asker: Asker, *terms: Term, **fields: Any) -> Answer:
    return asker.answer(Question(terms=list(terms) or [Term(text="a face")], **fields))


def rows(answer: Answer) -> list[int]:
    return [hit.row for hit in answer.hits]


def all_rows(asker: Asker, question: Question) -> list[tuple[int, float]]:
    """Every row and its similarity, nearest first, by the stored vectors alone."""
    total = sum(term.weight * asker.embed(term).astype(np.float64) for term in question.terms)
    state = asker.retriever.state
    similarities = state.vectors(np.arange(NUM), question.modality) @ (
        total / np.linalg.norm(total)
    )
    order = np.argsort(-similarities, kind="stable")
    return [(int(row), float(similarities[row])) for row in order]


QUESTIONS = st.builds(
    Question,
    terms=st.lists(
        st.builds(
            Term,
            text=st.sampled_from(["a cat", "smile", "heart", "angry face"]),
            weight=st.sampled_from([1.0, 0.5, -0.3]),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda term: term.text,
    ),
    k=st.integers(1, 100),
    offset=st.sampled_from([0, 0, 1, 7, 90]),
    modality=st.sampled_from(["image", "text"]),
    where=st.sampled_from([None, "caption LIKE '%face%'", "key < '000000010'", "false"]).map(
        lambda sql: sql and sql.replace("key", "image_path")
    ),
    safe=st.booleans(),
    dedup=st.booleans(),
    unique_urls=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(question=QUESTIONS)
def test_there_are_exactly_the_k_that_every_row_tried_in_turn_gives(
    asker: Asker, question: Question
) -> None:
    state = asker.retriever.state
    urls = {hit.row: hit.url for hit in state.hits(np.arange(NUM), np.zeros(NUM))}
    is_in = np.ones(NUM, bool) if question.where is None else state.select(question.where)
    shown: list[int] = []
    passed_over: list[int] = []
    for row, _ in all_rows(asker, question):
        if not is_in[row]:
            continue
        if question.safe and not is_safe(row):
            continue
        if question.unique_urls and urls[row] in {urls[one] for one in shown}:
            passed_over.append(len(shown))
        elif question.dedup and state.groups[row] in {state.groups[one] for one in shown}:
            continue
        else:
            shown.append(row)
    end = question.offset + question.k
    answer = asker.answer(question)
    assert rows(answer) == shown[question.offset : end]
    assert [hit.rank for hit in answer.hits] == list(range(question.offset + 1, len(shown) + 1))[
        : question.k
    ]
    if len(shown) >= end and not question.offset:
        assert answer.hidden.get(SAME_URL, 0) == sum(before < end for before in passed_over)
    if len(answer.hits) < question.k:
        assert any("there are no more" in note for note in answer.notes)


def test_copies_are_folded_under_the_one_that_is_shown(asker: Asker) -> None:
    state = asker.retriever.state
    answer = ask(asker, k=10, dedup=True)
    assert len(answer.hits) == 10
    assert answer.folded
    for hit in answer.hits:
        for copy in answer.folded.get(hit.uid, []):
            assert state.groups[copy.row] == state.groups[hit.row]
            assert copy.similarity <= hit.similarity
    assert len({int(state.groups[row]) for row in rows(answer)}) == 10


@pytest.mark.parametrize("diversify", [0.0, 0.4])
def test_pages_one_after_the_other_are_the_whole(asker: Asker, diversify: float) -> None:
    settings: dict[str, Any] = {"safe": True, "dedup": True, "diversify": diversify, "k": 6}
    pages = [ask(asker, offset=6 * page, **settings) for page in range(4)]
    found = [row for page in pages for row in rows(page)]
    assert len(found) == len(set(found)) == 24
    assert [hit.rank for page in pages for hit in page.hits] == list(range(1, 25))
    if not diversify:
        assert found == rows(ask(asker, safe=True, dedup=True, k=24))


def test_where_hardly_anything_is_safe_the_safe_ones_are_found(
    plain_root: str, tmp_path: Path, score: Callable[..., None]
) -> None:
    root = str(tmp_path / "emoji")
    shutil.copytree(plain_root, root)
    score(root, "safety", "nudity_exposed", [0.1 if row == 70 else 0.9 for row in range(NUM)])
    answer = ask(Asker(Retriever.open(root)), Term(text="a face"), k=1, safe=True)
    assert rows(answer) == [70]


def test_every_page_says_among_how_many_it_looks(asker: Asker) -> None:
    num_safe = sum(map(is_safe, range(NUM)))
    for offset in (0, 30):
        answer = ask(asker, k=10, offset=offset, safe=True, where="caption LIKE '%face%'")
        num_faces = int(asker.retriever.select("caption LIKE '%face%'").sum())
        assert answer.notes[:2] == [
            f"where: {num_faces} of {NUM} samples",
            f"safe mode: {num_safe} of {NUM} samples are known to be safe",
        ]
        assert answer.hidden == {}


def test_diverse_answers_are_less_alike(asker: Asker) -> None:
    def likeness(answer: Answer) -> float:
        vectors = asker.retriever.vectors(np.array(rows(answer)), "image")
        return float((vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)].mean())

    plain, diverse = ask(asker, k=8), ask(asker, k=8, diversify=0.6)
    assert len(diverse.hits) == 8
    assert rows(diverse)[0] == rows(plain)[0]
    assert likeness(diverse) < likeness(plain) - 0.05


def test_many_questions_are_answered_as_each_alone(asker: Asker) -> None:
    questions = [
        Question(terms=[Term(text="a cat"), Term(text="smile", weight=-1)], k=5),
        Question(terms=[Term(text="heart")], k=3, modality="text"),
        Question(terms=[Term(text="a cat")], k=7, where="caption LIKE '%face%'", dedup=True),
        Question(terms=[Term(text="smile")], k=5),
    ]
    together = asker.answer_many(questions)
    alone = [asker.answer(question) for question in questions]
    assert [rows(answer) for answer in together] == [rows(answer) for answer in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(
            [hit.similarity for hit in one.hits], [hit.similarity for hit in other.hits], atol=1e-5
        )
    assert asker.answer_many([]) == []


def test_what_can_not_be_asked_holds_up_no_other(asker: Asker, emoji_root: str) -> None:
    picture = next(iter_samples(emoji_root, read_manifest(emoji_root).shards[0])).image
    cat = Term(text="cat")
    good = [
        Question(terms=[cat], k=5),
        Question(terms=[Term(image=picture)], k=5),
        Question(terms=[Term(text="rotes Herz")], k=5, multilingual=True),
    ]
    bad = {
        "no such sample": Question(terms=[cat, Term(uid="f" * 32)]),
        "embedding: is zero": Question(terms=[Term(embedding=[0.0] * 256)]),
        "undecodable picture": Question(terms=[Term(image=picture[: len(picture) // 2])]),
        "not a picture": Question(terms=[cat, Term(image=b"<html>")]),
        "cancel each other out": Question(terms=[cat, cat.model_copy(update={"weight": -1.0})]),
        "no words; expected": Question(terms=[Term(text=WORDLESS)], multilingual=True),
        "did you mean 'width'": Question(terms=[cat], where="widht > 3"),
    }
    told = asker.answer_each([good[0], *bad.values(), *good[1:]])
    for message, error in zip(bad, told[1 : 1 + len(bad)], strict=True):
        assert isinstance(error, InputError | ConfigError)
        assert message in str(error)
    for answer, alone in zip([told[0], *told[-2:]], asker.answer_many(good), strict=True):
        assert isinstance(answer, Answer)
        assert rows(answer) == rows(alone)


def test_a_picture_finds_itself_by_bytes_by_uid_and_by_embedding(
    asker: Asker, emoji_root: str
) -> None:
    samples = [
        sample
        for shard in read_manifest(emoji_root).shards
        for sample in iter_samples(emoji_root, shard)
    ]
    vector = asker.embed(Term(image=samples[31].image))
    for term in (
        Term(image=samples[31].image),
        Term(uid=samples[31].uid),
        Term(embedding=(3 * vector).tolist()),
    ):
        (hit,) = ask(asker, term, k=1).hits
        assert hit.uid == samples[31].uid
        assert hit.similarity == pytest.approx(1, abs=5e-3)


def test_a_term_taken_away_moves_off(asker: Asker) -> None:
    face, cat = Term(text="a face"), Term(text="cat")
    without = ask(asker, face, cat.model_copy(update={"weight": -1.0}), k=80)
    away = asker.embed(cat)
    near = asker.retriever.vectors(np.array(rows(without)), "image") @ away
    assert near[:20].mean() < near[-20:].mean() - 0.1


def test_other_languages_go_through_their_own_tower(asker: Asker) -> None:
    assert asker.multilingual
    german = ask(asker, Term(text="rotes Herz"), k=80, multilingual=True)
    assert rows(german) != rows(ask(asker, Term(text="rotes Herz"), k=80))
    mixed = asker.answer_many(
        [
            Question(terms=[Term(text="rotes Herz")], multilingual=True, k=80),
            Question(terms=[Term(text="red heart")], k=80),
        ]
    )
    assert rows(mixed[0]) == rows(german)


def test_a_rating_pulls_towards_pictures_that_have_it(asker: Asker) -> None:
    def share(answer: Answer) -> float:
        return float(np.mean([row % 3 == 2 for row in rows(answer)]))

    pulled = ask(asker, k=10, aesthetic_score=8, aesthetic_weight=3.0)
    direction = asker.retriever.vectors(np.arange(2, NUM, 3), "image").mean(axis=0)
    vectors = asker.retriever.vectors(np.arange(NUM), "image")
    query = asker.embed(Term(text="a face")) + 3 * direction / np.linalg.norm(direction)
    assert rows(pulled) == np.argsort(-(vectors @ query))[:10].tolist()
    assert any("rated 8" in note for note in pulled.notes)
    nearest = ask(asker, k=10, aesthetic_score=10, aesthetic_weight=3.0)
    assert rows(nearest) == rows(pulled)
    assert any("nearest to 10" in note for note in nearest.notes)


def test_without_ratings_the_answer_says_so(plain_root: str) -> None:
    asker = Asker(Retriever.open(plain_root))
    plain = ask(asker, k=5)
    rated = ask(asker, k=5, aesthetic_score=9, aesthetic_weight=0.5)
    assert rows(rated) == rows(plain)
    assert any("--signals aesthetic" in note for note in rated.notes)


def test_safe_mode_without_scores_names_the_command(plain_root: str) -> None:
    asker = Asker(Retriever.open(plain_root))
    assert asker.safety is None
    with pytest.raises(InputError, match=r"carrara score .*--signals safety"):
        ask(asker, safe=True)


@pytest.mark.parametrize(
    ("terms", "fields", "error", "message"),
    [
        ([Term(embedding=[1.0, 2.0])], {}, InputError, "embedding of 2 numbers.* takes 256"),
        ([Term(embedding=[0.0] * 256)], {}, InputError, "embedding: is zero"),
        ([Term(uid="f" * 32)], {}, InputError, "no such sample"),
        ([Term(uid="0f3c")], {}, InputError, "no such sample.*expected 32 hex digits"),
        ([Term(image=b"<html>")], {}, InputError, "not a picture"),
        ([Term(image_url="http://127.0.0.1/x.png")], {}, InputError, "refused address"),
        ([Term(text="cat", weight=0)], {}, InputError, "cancel each other out"),
        (
            [Term(text="cat"), Term(text="cat", weight=-1)],
            {},
            InputError,
            "cancel each other out",
        ),
        ([Term(text="cat")], {"where": "widht > 3"}, ConfigError, "did you mean 'width'"),
        ([Term(text="cat")], {"where": "width >"}, ConfigError, "where 'width >'"),
    ],
)
def test_what_can_not_be_asked_is_one_line(
    asker: Asker, terms: list[Term], fields: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        ask(asker, *terms, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "none given"),
        ({"text": "a", "uid": "b"}, "text and uid given"),
        ({"text": " "}, "no words"),
        ({"text": "a", "weight": float("nan")}, "finite"),
        ({"embedding": [float("nan")]}, "NaN"),
    ],
)
def test_a_term_is_one_thing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Term(**fields)


CAT, PICTURE, VECTOR = Term(text="cat"), Term(image=b"..."), Term(embedding=[1.0])


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (Question(terms=[CAT, Term(text="dog", weight=0.5)]), "text"),
        (Question(terms=[PICTURE, Term(uid="0" * 32), Term(image_url="http://e.org")]), "image"),
        (Question(terms=[CAT, PICTURE]), None),
        (Question(terms=[VECTOR]), None),
        (Question(terms=[CAT, Term(text="dog", weight=-1)]), None),
        (Question(terms=[CAT], aesthetic_score=8, aesthetic_weight=0.5), None),
        (Question(terms=[CAT], aesthetic_score=8), "text"),
    ],
)
def test_a_question_is_of_one_kind_where_all_its_terms_are(
    asked: Question, kind: str | None
) -> None:
    assert asked.asked_by == kind


def test_an_encoder_of_other_weights_is_refused(asker: Asker, tiny_encoder: str) -> None:
    other = Asker(asker.retriever, encoder=load_encoder(tiny_encoder))
    with pytest.raises(ConflictError, match="weights changed"):
        ask(other, Term(text="cat"))


def test_questions_come_back_from_json_with_their_pictures() -> None:
    question = Question(terms=[Term(image=b"\x00\xff picture", weight=0.5), Term(text="a")], k=3)
    assert Question.model_validate_json(question.model_dump_json()) == question
