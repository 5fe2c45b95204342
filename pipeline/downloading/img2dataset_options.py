"""img2dataset's command line, so that its users' scripts change one word.

    carrara-img2dataset --url_list=list.parquet --input_format parquet --url_col URL \\
        --caption_col TEXT --output_format webdataset --output_folder out --image_size 256

Options are read as img2dataset reads them (with fire) and become the settings of `download`; any
setting of `download` may be given too, by its name with underscores. What means nothing here is
said once; what can't be honoured is refused.
"""

import difflib
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from infra.cluster import Workers
from infra.errors import ConfigError
from pipeline.download import Config

RENAMED = {
    "output_folder": "root",
    "url_col": "url_column",
    "caption_col": "caption_column",
}

OF_WORKERS = {"processes_count": "num_workers", "max_shard_retry": "max_retries"}

WITHOUT_MEANING = {
    "enable_wandb": "`carrara report` shows what wandb would",
    "wandb_project": "`carrara report` shows what wandb would",
    "distributor": "Ray distributes, on one machine or many",
    "subjob_size": "shards in flight are bounded anyway",
}

REFUSED = {
    "bbox_col": "faces are not blurred; leave it out",
    "disable_all_reencoding": "every picture is decoded to be checked; use --resize_mode no "
    "--skip_reencode True, which keeps the bytes of those that need nothing",
    "ignore_ssl": "certificates are verified; leave it out",
}
"""Unless they are false or none, which is how things are."""

NO_LIMIT = {"max_image_area", "max_aspect_ratio"}
"""Infinite in img2dataset unless given."""


def config_of(argv: Sequence[str]) -> Config:
    """Raises ConfigError for what can't be honoured; says on stderr what is ignored."""
    options = _parse(argv)
    for name in ("url_list", "output_folder"):
        if not options.get(name):
            raise ConfigError(f"--{name}: missing; expected the {name.replace('_', ' ')}")
    notes = [
        f"--{name} is ignored: {reason}"
        for name, reason in WITHOUT_MEANING.items()
        if options.pop(name, None)
    ]
    _check(options)
    try:
        config = Config(**_settings(options))
    except ValidationError as error:
        raise ConfigError(_line(error, options)) from None
    notes.append(f"shards go to {config.root}/shards")
    print(f"carrara-img2dataset: {'; '.join(notes)}", file=sys.stderr)
    return config


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    import fire

    parsed: dict[str, Any] = {}

    def download(url_list: str = "", **options: Any) -> None:
        parsed.update({"url_list": url_list, **options})

    download.__doc__ = __doc__
    # fire takes what follows a lone -- for itself, and prints what a function returns.
    fire.Fire(download, command=shlex.join(argv), name="carrara-img2dataset")
    return parsed


def _check(options: dict[str, Any]) -> None:
    output_format = options.pop("output_format", "files (img2dataset's default)")
    if output_format != "webdataset":
        raise ConfigError(
            f"--output_format {output_format}: expected webdataset, the only one written here; "
            "add --output_format webdataset"
        )
    for name, reason in REFUSED.items():
        if options.pop(name, None):
            raise ConfigError(f"--{name}: can't be honoured: {reason}")
    known = {*RENAMED, *OF_WORKERS, *Config.model_fields}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise ConfigError(f"--{name}: neither img2dataset nor `carrara download` has it{hint}")


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"caption_column": ""}
    workers = {}
    for name, value in options.items():
        is_unlimited = name in NO_LIMIT and value in ("inf", math.inf)
        if value is None or is_unlimited:
            continue
        if name in OF_WORKERS:
            workers[OF_WORKERS[name]] = value
        elif name == "input_format":
            settings[name] = str(value).removesuffix(".gz")
        elif name in {"url_list", "output_folder", "url_col", "caption_col"}:
            settings[RENAMED.get(name, name)] = str(value)
        else:
            settings[name] = value
    if workers:
        settings["workers"] = Workers(**workers)
    return settings


def _line(error: ValidationError, options: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    back = {field: name for name, field in (RENAMED | OF_WORKERS).items()}
    names = [back.get(str(part), str(part)) for part in first["loc"]]
    value = f" {options[names[0]]!r}" if names and names[0] in options else ""
    return f"--{'.'.join(names)}{value}: {first['msg'].removeprefix('Value error, ')}"
