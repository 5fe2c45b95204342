"""mkdocs hooks: the reference of the commands, made from the code; links that leave the docs.

    reference/commands.md   every command with its settings, as `carrara STAGE --help` tells them

A link to a file of the repository outside docs/ becomes its path, if it is there.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import carrara
from infra.config import POSITIONAL, Settings

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]*)(?:#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "reference/commands.md", content="\n".join(_reference())))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    docs = ROOT / "docs"

    def leave(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = (docs / page.file.src_uri).parent.joinpath(target).resolve()
        if path.is_relative_to(docs):
            return link.group(0)
        if not path.exists():
            raise PluginError(f"{page.file.src_uri}: {target} is not in the repository")
        place = str(path.relative_to(ROOT))
        return f"`{place}`" if text.strip("`") in place else f"{text} (`{place}`)"

    return LINK.sub(leave, markdown)


# The reference


def _reference() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield (
        "Made from the code. A setting comes from its default, then from the table with the "
        "command's name in the TOML file that `--config` names, then from the command line. "
        "Settings in *italics* say where or how fast, not what: they leave the output's bytes as "
        "they are. Every command also takes `--config`, `--json`, `--log` and `--metrics`."
    )
    for chapter, stages in carrara.CHAPTERS.items():
        yield f"\n## {chapter}"
        for name, stage in stages.items():
            yield from _command(name, stage)


def _command(name: str, stage: carrara.Stage) -> Iterator[str]:
    module = importlib.import_module(stage.module)
    places = [
        field_name.upper() + ("..." if "tuple" in str(field.annotation) else "")
        for field_name, field in module.Config.model_fields.items()
        if POSITIONAL in field.metadata
    ]
    yield f"\n### carrara {name}\n"
    yield f"`carrara {' '.join([name, *places])}`\n"
    yield stage.help
    described = inspect.getdoc(module) or ""
    yield f"\n```text\n{described}\n```\n"
    yield "| setting | default | |\n| --- | --- | --- |"
    yield from _settings(module.Config, "")


def _settings(config: type[Settings], prefix: str) -> Iterator[str]:
    for name, field in config.model_fields.items():
        if (nested := _nested(field.annotation)) is not None:
            yield from _settings(nested, f"{prefix}{name}.")
            continue
        flag = _flag(name, field, prefix)
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        if any("EXECUTION_ONLY" in str(mark) for mark in field.metadata):
            text = f"*{text}*"
        yield f"| `{flag}` | {_default(field)} | {text} |"


def _nested(annotation: Any) -> type[Settings] | None:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return None


def _flag(name: str, field: FieldInfo, prefix: str) -> str:
    for mark in field.metadata:
        if isinstance(mark, Parameter) and mark.name:
            return str(next(iter(mark.name)))
    if POSITIONAL in field.metadata:
        return name.upper()
    return f"--{prefix}{name}".replace("_", "-")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or value == ():
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"`{shown}`" if shown else ""
