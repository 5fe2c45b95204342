"""Score a model, or a set of pictures, against a corpus.

    carrara evaluate RUN ROOT --guidance-scale 1 2 3 5
    carrara evaluate FOLDER ROOT --extractors ViT-B-32/laion2b_s34b_b79k

Reads   RUN's checkpoint, which draws a picture for each of ROOT's captions that are picked; or a
        folder of pictures, or a corpus of them; and ROOT's own pictures
Writes  OUT/scores.json            every score with its interval, settings, digests of the weights
        OUT/trade-off-<n>.svg      several guidance scales as a curve, one for each extractor
        OUT/nearest.png            the drawn pictures nearest to pictures of the corpus, beside them
        OUT/pictures/<digest>/     what was drawn, a corpus; the same command draws nothing twice

What the scores are: training/evaluating/scores.py.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import Field

from infra import storage
from infra.cluster import Workers
from infra.config import EXECUTION_ONLY, POSITIONAL, Place
from infra.errors import ConfigError, InputError
from infra.summary import Stopwatch, Summary
from training.drawing.settings import DrawSettings

if TYPE_CHECKING:
    from training.evaluating.reference import Reference
    from training.evaluating.report import Row
    from training.evaluating.scores import Judge, Scores

MANY = Parameter(consume_multiple=True)
"""On the command line: --guidance-scale 1 2 3."""

REAL = "the corpus itself"
"""The set of real pictures that were not compared with: what a perfect model would score."""

MIN_PICTURES = 8
NUM_NEAREST_SHOWN = 12


class Config(DrawSettings):
    """Score a trained model, or a set of pictures, against a corpus."""

    run: Annotated[Place, POSITIONAL]
    """The training run; or a folder of pictures, or a corpus of them."""
    root: Annotated[Place, POSITIONAL]
    """The corpus to compare with, whose captions are drawn."""
    selection: str | None = None
    """Compare only with what this selection of ROOT keeps."""
    captions_file: Annotated[Place | None, EXECUTION_ONLY] = None
    """Draw these captions instead of ROOT's: a .txt with one a line, a .csv, .jsonl or .parquet."""
    caption_column: str = "caption"
    """Where the captions of a .csv, .jsonl or .parquet stand."""
    extractors: Annotated[tuple[str, ...], MANY] = ()
    """What makes numbers of pictures: encoders by name, as `embed` takes them, or inception, over
    which alone the distance is called FID; none: the run's own encoder."""
    num_images: int = Field(1000, ge=MIN_PICTURES)
    """Pictures drawn and pictures of ROOT compared with, at most as many as it has. Distances
    shrink as there are more: compare only scores of equally many."""
    guidance_scale: Annotated[tuple[Annotated[float, Field(ge=0)], ...], MANY] = (3.0,)
    """How far the captions pull; several make the curve."""
    training: Annotated[Place | None, EXECUTION_ONLY] = None
    """The corpus in which nearest pictures are looked for; none: ROOT."""
    num_nearest: int = Field(20_000, ge=MIN_PICTURES)
    """Nearest pictures are looked for among so many, picked at random where there are more."""
    image_size: int | None = Field(None, ge=8)
    """Side of all pictures, which are cut to their middle square; none: what the run draws, or for
    a folder that of its first picture."""
    num_bootstraps: int = Field(100, ge=20)
    """Resamples that the intervals are taken from."""
    output: Annotated[Place | None, EXECUTION_ONLY] = None
    """Folder for what is written; none: RUN/evaluation, or for a set of pictures ./evaluation."""
    samples_per_shard: Annotated[int, EXECUTION_ONLY] = Field(250, ge=1, le=10_000)
    """Pictures that a worker draws at a time."""
    workers: Annotated[Workers, EXECUTION_ONLY] = Workers()
    """Who draws and looks; each takes a GPU where the cluster has some."""


@dataclass(frozen=True)
class Entry:
    """A set of pictures that is scored."""

    name: str
    guidance_scale: float | None
    home: str
    """The corpus or folder that it lies in."""


def run(config: Config) -> Summary:
    from training.evaluating.extractors import extractor_digest
    from training.evaluating.reference import read_reference
    from training.evaluating.report import publish_scores, publish_tradeoffs

    with Stopwatch() as watch:
        is_run = storage.exists(storage.join(config.run, "run.json"))
        if not is_run and len(config.guidance_scale) > 1:
            raise ConfigError(
                f"--guidance-scale: {config.run} is no training run, so nothing is drawn; expected "
                "a run with several scales"
            )
        output = _output(config, is_run)
        extractors = _extractors(config, is_run)
        digests = {name: extractor_digest(name) for name in extractors}
        size = _image_size(config, is_run)
        reference = read_reference(config, extractors, size)
        judges = _judges(config, reference)
        entries = _drawn(config, reference, output) if is_run else [_given(config)]
        scored = [_score(config, entry, judges, size) for entry in entries]
        rows = _real_rows(reference, judges) + [row for one in scored for row in one.rows]
        about = config.model_dump(mode="json", exclude={"workers", "device", "batch_size"})
        about |= {"image_size": size, "extractors": digests, "num_real": reference.num_real}
        outputs = publish_scores(output, rows, about) | publish_tradeoffs(output, rows)
        outputs |= _publish_nearest(output, reference, entries[0], scored[0], size)
    num_drawn = sum(one.num_pictures for one in scored)
    return Summary(
        stage="evaluate",
        num_in=num_drawn,
        num_out=num_drawn,
        unit="pictures",
        counts={"of the corpus": reference.num_real},
        seconds=watch.seconds,
        outputs=outputs,
        details={"rows": [row.as_json() for row in rows]},
        table=[row.shown() for row in rows],
    )


@dataclass(frozen=True)
class Scored:
    rows: "list[Row]"
    """One an extractor."""
    nearest: list[tuple[str, str]]
    """By the first: the drawn pictures nearest to the corpus, and to which of it."""
    num_pictures: int


def _score(config: Config, entry: Entry, judges: "dict[str, Judge]", size: int) -> Scored:
    from training.drawing.pictures import among, choose, find_pictures
    from training.evaluating.features import extract

    found = find_pictures(entry.home)
    names = choose(found, config.num_images, config.seed)
    if len(names) < MIN_PICTURES:
        raise InputError(
            f"{entry.home}: {len(names)} pictures; expected at least {MIN_PICTURES} to score"
        )
    features = extract(
        among(found, names),
        tuple(judges),
        size,
        device=config.device,
        workers=config.workers,
        description=f"evaluate: {entry.name}",
    )
    rows = [
        _row(entry.name, entry.guidance_scale, extractor, judge.scores(features[extractor]))
        for extractor, judge in judges.items()
    ]
    first = next(iter(judges))
    pairs = judges[first].nearest_pairs(features[first], NUM_NEAREST_SHOWN)
    return Scored(rows, pairs, len(names))


def _real_rows(reference: "Reference", judges: "dict[str, Judge]") -> "list[Row]":
    """Of pictures of the corpus that nothing was compared with, where it has enough."""
    if reference.others is None:
        return []
    return [
        _row(REAL, None, extractor, judge.scores(reference.others[extractor], is_of_corpus=True))
        for extractor, judge in judges.items()
    ]


def _drawn(config: Config, reference: "Reference", output: str) -> list[Entry]:
    """Sets drawn for the same captions and from the same noise, one a guidance scale."""
    from training import sample
    from training.drawing.sets import PictureSet, draw_set
    from training.drawing.wanted import Wanted

    wanted = Wanted(_captions(config, reference), 1)
    entries = []
    for scale in config.guidance_scale:
        shared = config.model_dump(include=set(DrawSettings.model_fields))
        request = sample.make_request(sample.Config(run=config.run, guidance_scale=scale, **shared))
        pictures = PictureSet(output, "shards", request, wanted, config.samples_per_shard)
        home = storage.join(output, "pictures", pictures.digest)
        draw_set(replace(pictures, output=home), config.workers)
        entries.append(Entry(f"drawn, guidance {scale:g}", scale, home))
    return entries


def _captions(config: Config, reference: "Reference") -> tuple[str, ...]:
    """One a picture: of the pictures that sets are compared with, or those of the file in turn."""
    from training.drawing.captions import checked, read_captions

    if config.captions_file is None:
        return tuple(checked(reference.captions, config.root))
    captions = read_captions(config.captions_file, config.caption_column)
    return tuple(captions[i % len(captions)] for i in range(reference.num_real))


def _judges(config: Config, reference: "Reference") -> "dict[str, Judge]":
    import torch

    from training.evaluating.scores import Judge

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        extractor: Judge(
            extractor,
            real,
            reference.nearest[extractor],
            num_resamples=config.num_bootstraps,
            seed=config.seed,
            device=torch.device(device),
        )
        for extractor, real in reference.real.items()
    }


def _row(name: str, guidance_scale: float | None, extractor: str, scores: "Scores") -> "Row":
    from training.evaluating.extractors import distance_name
    from training.evaluating.report import Row

    return Row(name, guidance_scale, extractor, distance_name(extractor), scores)


def _publish_nearest(
    output: str, reference: "Reference", entry: Entry, scored: Scored, size: int
) -> dict[str, str]:
    from training.evaluating.report import publish_nearest

    return publish_nearest(output, entry.home, reference.nearest_home, scored.nearest, size)


def _given(config: Config) -> Entry:
    return Entry("given", None, config.run)


def _output(config: Config, is_run: bool) -> str:
    if config.output is not None:
        return config.output
    return storage.join(config.run, "evaluation") if is_run else storage.absolute("evaluation")


def _extractors(config: Config, is_run: bool) -> tuple[str, ...]:
    from retrieval.embedding.embeddings import DEFAULT_ENCODER
    from training.record import read_record

    if config.extractors:
        return tuple(dict.fromkeys(config.extractors))
    return (read_record(config.run).config.encoder if is_run else DEFAULT_ENCODER,)


def _image_size(config: Config, is_run: bool) -> int:
    """That all pictures are brought to: what is compared must have gone through the same."""
    from training.drawing.pictures import find_pictures, read_pictures
    from training.record import read_record

    if config.image_size is not None:
        return config.image_size
    if is_run:
        return read_record(config.run).config.image_size
    first = next(chunk for chunk in find_pictures(config.run) if chunk.names)
    picture = next(read_pictures(first, None))
    return min(picture.image.size)
