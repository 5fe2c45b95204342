"""Every long command knows how far it is and how much is left, so that it can tell when it ends."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import carrara
from examples.emoji.server import serve, write_list
from infra.watching.run import Run, Task, at_work
from pipeline.corpus import read_manifest, read_rows

TINY = tomllib.loads((Path(__file__).parent / "tiny.toml").read_text())
METHODS = ("exact", "perceptual", "semantic")


def tasks_of(stage: str, **settings: Any) -> list[Task]:
    """What a stage counted, carried out in this process."""
    module = import_module(carrara.STAGES[stage].module)
    known = {"local": True} if "workers" in module.Config.model_fields else None
    table = TINY.get(stage, {}) | settings
    config = module.Config(**(table if known is None else table | {"workers": known}))
    with at_work(Run(stage, None, config)) as run:
        module.run(config)
    return run.tasks


def check(stage: str, tasks: list[Task]) -> None:
    """To the end, and in so many steps that there is an estimate before half of it is done."""
    counted = [task for task in tasks if task.total is not None]
    assert counted, stage
    for task in counted:
        assert task.done == task.total, (stage, task)
        assert task.seconds_left == 0 or not task.total, (stage, task)
    assert max(task.total or 0 for task in counted) > 2, (stage, counted)


def test_every_long_stage_knows_how_much_is_left(tmp_path: Path) -> None:
    """But for `extract`, which maps over workers just as `score` does."""
    root, packed, run, out = (str(tmp_path / name) for name in ("corpus", "packed", "run", "out"))
    url_list = tmp_path / "pairs.parquet"
    with serve() as base_url:
        write_list(url_list, base_url, num_pictures=60)
        check("download", tasks_of("download", url_list=str(url_list), root=root))
    check("embed", tasks_of("embed", root=root))
    for stage in ("index", "score"):
        check(stage, tasks_of(stage, root=root))
    check("dedup", tasks_of("dedup", root=root, methods=METHODS))
    check("select", tasks_of("select", root=root, where="true"))
    check("pack", tasks_of("pack", root=root, output=packed))
    check("train", tasks_of("train", root=packed, run=run))
    picture = str(tmp_path / "a.png")
    check("sample", tasks_of("sample", run=run, captions=("a cat",), output=picture))
    few = {"num_images": 8, "num_steps": 2, "num_bootstraps": 20}
    judged = tasks_of("evaluate", run=run, root=packed, **few)
    check("evaluate", judged)
    parts = ("corpus", "nearest of the corpus", "drawn, guidance 3", "scores", "scores")
    names = [task.name for task in judged if task.name.startswith("evaluate")]
    assert names == [f"evaluate: {part}" for part in parts]  # of the drawn, and of the corpus
    check("export", tasks_of("export", run=run, out=out))
    check("verify", tasks_of("verify", root=root))
    (row, *_) = read_rows(root, read_manifest(root).shards[0], ["uid"]).to_pylist()
    check("forget", tasks_of("forget", root=root, uid=(row["uid"],)))


def test_dedup_and_index_count_what_takes_long(small_corpus: str) -> None:
    tasks_of("embed", root=small_corpus)
    names = [task.name for task in tasks_of("index", root=small_corpus)]
    assert names == ["index: image exam", "index: text exam", "index: image", "index: text"]
    names = [task.name for task in tasks_of("dedup", root=small_corpus, methods=METHODS)]
    assert [name for name in names if name.startswith("dedup")] == [
        f"dedup: {part}" for part in ("read", "look-alikes", "same meaning", "write")
    ]
