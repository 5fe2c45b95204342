"""Search a corpus by words, by picture, by embedding, and by sums of them.

    carrara query ROOT "french cat" -k 40 --png hits.png
    carrara query ROOT "cat + ./pool.jpg - 0.5*cartoon" --where "width > 512" --safe --dedup
    carrara query ROOT --image generated.png --json
    carrara query ROOT --questions list.txt --parquet hits.parquet

Reads   ROOT/index/<encoder>/; ROOT/columns/ for --where and --safe; ROOT/shards/ for pictures
Writes  the files asked for (the page needs no network), and ROOT/selections/<name> with --save

There are exactly k hits where the corpus has them; what was folded or hidden is said.
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import Field

from infra.config import POSITIONAL, Place, StageConfig
from infra.errors import ConfigError
from infra.summary import Stopwatch, Summary
from infra.watching.events import tell
from pipeline.fetching.fetch_settings import FetchSettings
from retrieval.embedding.embeddings import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from retrieval.asking.asker import Asker
    from retrieval.asking.pages import Asked
    from retrieval.asking.question import Answer, Question
    from retrieval.search import Retriever

SHARED = (
    *("k", "offset", "modality", "where", "safe", "dedup", "unique_urls", "diversify"),
    *("multilingual", "aesthetic_score", "aesthetic_weight"),
)
"""Settings that are a question's; a line of --questions may have its own."""


class Config(StageConfig):
    root: Annotated[Place, POSITIONAL]
    """The corpus: a folder or an fsspec URL."""
    text: Annotated[str | None, POSITIONAL] = None
    """What to look for: words, ./picture.jpg, https://..., uid:..., added with + and -."""
    k: Annotated[int, Parameter(alias="-k"), Field(ge=1)] = 10
    """How many hits."""
    offset: int = Field(default=0, ge=0)
    """How many of the first hits to leave out."""
    image: str | None = None
    """Look for what resembles this picture: a file or a URL."""
    questions: str | None = None
    """Many at once: a .txt of a query a line, a .jsonl of questions, a .npy of embeddings."""
    modality: Modality = "image"
    """Compare the query with pictures (image) or with captions (text)."""
    where: str | None = None
    """SQL that is true for the samples to look among, such as "width > 512 and language = 'en'"."""
    safe: bool = False
    """Leave out what the safety columns don't hold for safe."""
    dedup: bool = False
    """Show one picture of each group of near copies."""
    unique_urls: bool = False
    """Show one sample of each URL."""
    diversify: float = Field(default=0.0, ge=0, le=1)
    """0: nearest first; towards 1: unlike what is shown already."""
    multilingual: bool = False
    """Read the words by the multilingual text tower of the encoder's space."""
    aesthetic_score: int | None = Field(default=None, ge=0, le=10)
    """Move the query towards pictures of this rating."""
    aesthetic_weight: float | None = 0.5
    """By how much."""
    encoder: str | None = None
    """Whose index; none: the only one there is."""
    device: str = "cpu"
    """Where the query is encoded: cpu, cuda."""
    jsonl: Place | None = None
    """Write the hits here, a line each."""
    parquet: Place | None = None
    """Write the hits here, a row each."""
    html: Place | None = None
    """Write a page of the hits here."""
    png: Place | None = None
    """Write a contact sheet of the hits here."""
    save: str | None = Field(default=None, pattern=r"^[\w][\w.-]*$")
    """Keep the hits as a selection of this name, for `pack` and `train`."""
    overwrite: bool = False
    """Replace a selection of this name that stands for something else."""
    previews: bool = True
    """Show small pictures in a terminal that can."""
    find_copy: bool = True
    """For a picture: say whether it is a copy of one in the corpus."""
    fetch: FetchSettings = FetchSettings()


def run(config: Config) -> Summary:
    """Raises InputError for a corpus without an index or a picture that can't be used."""
    with Stopwatch() as watch:
        labels, questions = _questions(config)
        from retrieval.asking.asker import Asker
        from retrieval.asking.pages import Asked
        from retrieval.asking.shown import drawing, table_rows
        from retrieval.search import Retriever

        retriever = Retriever.open(config.root, config.encoder)
        asker = Asker(
            retriever, fetch=config.fetch, device=config.device, quick_start=config.device == "cpu"
        )
        questions = asker.with_pictures(questions)
        answers = asker.answer_many(questions)
        if config.find_copy:
            _find_copies(retriever, asker, questions, answers)
        asked = [Asked(*one) for one in zip(labels, questions, answers, strict=True)]
        for one in asked:
            for note in one.answer.notes:
                tell("note", f"query: {f'{one.label}: ' if len(asked) > 1 else ''}{note}")
        outputs = _write(config, retriever, asked)
    return Summary(
        stage="query",
        num_in=retriever.num_rows,
        num_out=sum(len(one.answer.hits) for one in asked),
        counts=_passed_over(asked),
        seconds=watch.seconds,
        outputs=outputs,
        details={"modality": config.modality, "encoder": retriever.encoder, **_details(asked)},
        table=table_rows(asked),
        draw=(lambda: drawing(retriever, asked)) if config.previews else None,
    )


# Questions


def _questions(config: Config) -> "tuple[list[str], list[Question]]":
    """Each question's words, for people, and the question."""
    given = [config.text is not None, config.image is not None, config.questions is not None]
    if sum(given) != 1:
        raise ConfigError(
            "a query is words, a picture or a list of questions: `carrara query ROOT WORDS`, "
            "`carrara query ROOT --image FILE_OR_URL` or `carrara query ROOT --questions FILE`; "
            f"{'several were' if any(given) else 'neither was'} given"
        )
    from retrieval.asking.lists import question_of, read_questions

    settings = config.model_dump(include=set(SHARED))
    if config.questions is not None:
        return read_questions(config.questions, settings)
    if config.image is not None:
        from retrieval.asking.files import read_picture
        from retrieval.asking.question import Term

        is_url = config.image.startswith(("http://", "https://"))
        term = Term(image_url=config.image) if is_url else read_picture(config.image)
        return [config.image], [question_of("--image", settings | {"terms": [term]})]
    assert config.text is not None
    if not config.text.strip():
        raise ConfigError(f"query {config.text!r}: no words; expected what to look for")
    return [config.text], [question_of("query", settings | {"query": config.text})]


def _find_copies(
    retriever: "Retriever",
    asker: "Asker",
    questions: "Sequence[Question]",
    answers: "Sequence[Answer]",
) -> None:
    """A verdict on each question that is one picture."""
    from retrieval.copies import CopyDetector
    from retrieval.encoding.pictures import decode_picture

    detector = CopyDetector(retriever)
    for question, answer in zip(questions, answers, strict=True):
        first, *others = question.terms
        if first.image is not None and not others and first.weight > 0:
            picture = decode_picture(first.image)
            answer.copy = detector.verdict(picture, asker.embed(first))
            if answer.copy is not None:
                answer.notes.append(answer.copy.evidence)


# What is told and written


def _passed_over(asked: "list[Asked]") -> dict[str, int]:
    """Over all questions: how many hits are folded, or hidden, by reason."""
    counts: dict[str, int] = {}
    for one in asked:
        num_folded = sum(one.answer.num_folded.values())
        for reason, num in {"folded": num_folded, **one.answer.hidden}.items():
            counts[reason] = counts.get(reason, 0) + num
    return {reason: num for reason, num in counts.items() if num}


def _details(asked: "list[Asked]") -> dict[str, object]:
    # Through JSON, for columns of the user's own list whose values JSON has no form for.
    found = [
        json.loads(json.dumps({"query": one.label, **asdict(one.answer)}, default=str))
        for one in asked
    ]
    return found[0] if len(found) == 1 else {"answers": found}


def _write(config: Config, retriever: "Retriever", asked: "list[Asked]") -> dict[str, str]:
    """The paths written, by kind."""
    from retrieval.asking import pages, records

    outputs = {}
    labels, answers = [one.label for one in asked], [one.answer for one in asked]
    if config.jsonl is not None:
        records.write_jsonl(config.jsonl, labels, answers)
        outputs["jsonl"] = config.jsonl
    if config.parquet is not None:
        records.write_parquet(config.parquet, labels, answers)
        outputs["parquet"] = config.parquet
    if config.png is not None or config.html is not None:
        shown = [
            hit
            for one in answers
            for hit in (*one.hits, *(copy for copies in one.folded.values() for copy in copies))
        ]
        pictures = pages.read_pictures(retriever, shown)
        if config.png is not None:
            pages.write_sheet(config.png, asked, pictures)
            outputs["png"] = config.png
        if config.html is not None:
            pages.write_page(config.html, asked, retriever, pictures)
            outputs["html"] = config.html
    if config.save is not None:
        outputs |= _save(config, asked)
    return outputs


def _save(config: Config, asked: "list[Asked]") -> dict[str, str]:
    from retrieval.asking.saved import save_selection

    assert config.save is not None
    uids = [hit.uid for one in asked for hit in one.answer.hits]
    wording = "; ".join(one.label for one in asked)
    saved = save_selection(config.root, config.save, uids, wording, overwrite=config.overwrite)
    return saved.outputs
