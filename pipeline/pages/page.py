"""An offline page from a template in `templates/`: no script, no request, everything within it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.pages import charts

if TYPE_CHECKING:
    import jinja2

REPORT, DRY_RUN = "report.html", "dry-run.html"
"""Where within ROOT `report` and `select --dry-run` put their pages."""

PAGES = (REPORT, DRY_RUN)
"""They show pictures and captions: what these were taken from, they go with."""


def render(template: str, page: Mapping[str, Any]) -> str:
    """HTML; a name that the template uses and `page` lacks is an error."""
    return environment(autoescape=True).get_template(template).render(page)


def environment(*, autoescape: bool) -> "jinja2.Environment":
    """Of the templates, with the filters that they share."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": charts.number, "size": readable_size}
    return made


def readable_size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
