"""The code that draws, as files that import each other and nothing else of this package.

A folder for diffusers brings its own code along, so that it loads where Carrara is not installed:
the modules that `training.exporting.modeling` imports, directly or not, as they are, under flat
names. Only what is imported at the head of a module counts; what a function imports where it is
called (checkpoints, encoders) is of no use to who draws.
"""

import ast
import importlib.util
import re
from pathlib import Path

MODELING = "training.exporting.modeling"
CONFIG, SETTINGS = "training.config", "training.exporting.settings"
OWN = ("training", "infra", "retrieval", "pipeline")


def drawing_code() -> dict[str, str]:
    """Text by file name, modeling.py among them."""
    modules = _reached(MODELING)
    names = {*modules, CONFIG}
    files = {_file_name(module): _flat(source_of(module), names) for module in modules}
    # The configuration's classes, which check what a user wrote, are plain groups of settings here.
    classes = {name for module in modules.values() for name in _imported(module, CONFIG)}
    config = [f"from .{_flat_name(SETTINGS)} import Settings", ""]
    config += [f"{name} = Settings" for name in sorted(classes)]
    files[_file_name(CONFIG)] = "\n".join(config) + "\n"
    files[_file_name(MODELING)] += _naming_all(names - {MODELING})
    return files


def _naming_all(modules: set[str]) -> str:
    """diffusers copies those files alone that a model's own file imports.

    `noqa` is for who lints the folder: nothing of them is used.
    """
    lines = [f"from .{_flat_name(module)} import __name__ as _  # noqa" for module in modules]
    return "\n\n# So that diffusers brings all files along.\n" + "\n".join(sorted(lines)) + "\n"


def source_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def _reached(root: str) -> dict[str, ast.Module]:
    found: dict[str, ast.Module] = {}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module not in found and module != CONFIG:
            found[module] = ast.parse(source_of(module))
            nodes = [node for node in found[module].body if isinstance(node, ast.ImportFrom)]
            waiting += [node.module for node in nodes if node.module and _is_ours(node.module)]
    return dict(sorted(found.items()))


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OWN


def _imported(tree: ast.Module, module: str) -> list[str]:
    return [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    ]


def _file_name(module: str) -> str:
    return f"{_flat_name(module)}.py"


def _flat_name(module: str) -> str:
    """diffusers copies the files that lie beside a model's own, and no folders."""
    return "modeling" if module == MODELING else module.replace(".", "_")


def _flat(source: str, modules: set[str]) -> str:
    """With imports of these modules made relative; others are where nothing calls them."""

    def relative(match: re.Match[str]) -> str:
        return f"{match[1]}.{_flat_name(match[2])}" if match[2] in modules else match[0]

    return re.sub(r"^(\s*from )([\w.]+)(?= import)", relative, source, flags=re.MULTILINE)
