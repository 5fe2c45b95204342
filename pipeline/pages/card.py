"""The data card: what a corpus is, in the form that dataset hubs read.

Reads   ROOT/README.md, if it is there
Writes  nothing: `report` publishes the text

The metadata block on top is the Hugging Face hub's; what follows is computed from the manifests,
columns and records, and says nothing that they don't.
"""

from typing import Any

from infra import storage
from infra.errors import ConflictError
from pipeline.pages.census import Census
from pipeline.pages.page import environment

MARK = "<!-- written by `carrara report`; edit a copy, the next report replaces this file -->"

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""The hub's size_categories lie between these."""

MIN_LANGUAGE_SHARE = 0.01
"""Of the samples, from which on a language is named in the metadata."""


def check_own(url: str) -> None:
    """Raises ConflictError where another's text would be replaced."""
    if storage.exists(url) and MARK not in storage.read_text(url):
        raise ConflictError(
            f"{url}: was not written by `carrara report`; say where the card goes with --card"
        )


def card_text(page: dict[str, Any]) -> str:
    """The card of what `report` found; `page` is what it draws its page from."""
    from huggingface_hub import DatasetCardData

    census: Census = page["census"]
    num_samples: int = page["num_samples"]
    languages = [
        count.name
        for count in census.languages
        if count.num >= MIN_LANGUAGE_SHARE * num_samples and count.name != "unknown"
    ]
    metadata = DatasetCardData(
        language=languages or None,
        license=page["licence"],
        pretty_name=page["title"],
        size_categories=[size_category(num_samples)],
        task_categories=["text-to-image", "image-to-text"],
        tags=["webdataset", "image-text"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "shards/*.tar"}],
            }
        ],
    )
    # Markdown, not HTML: texts of others go through the filter `plain`.
    markdown = environment(autoescape=False)
    markdown.filters["plain"] = _plain
    template = markdown.get_template("card.md")
    return template.render(page | {"metadata": metadata.to_yaml(), "mark": MARK})


def size_category(num: int) -> str:
    """The hub's word for a number of samples."""
    bounds = [1000 * 10**power for power in range(len(SIZES))]
    above = [name for name, bound in zip(SIZES, bounds, strict=True) if num >= bound]
    if not above:
        return f"n<{SIZES[0]}"
    place = len(above)
    return f"n>{SIZES[-1]}" if place == len(SIZES) else f"{SIZES[place - 1]}<n<{SIZES[place]}"


def _plain(text: str) -> str:
    """Another's words within a table of Markdown: no markup, no end of the cell."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, f"\\{character}" if character not in "<>" else " ")
    return " ".join(text.split())
