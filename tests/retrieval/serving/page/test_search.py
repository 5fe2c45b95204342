"""Asking and looking: words, infinite scroll, links, folding, algebra, details, downloads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Route, expect

from pipeline import select
from pipeline.corpus import read_selection
from pipeline.sample import Sample
from retrieval.asking.algebra import parse_algebra

Visitor = Callable[..., Any]
PLAIN = "dedup=false&uniqueUrls=false&safe=false"
"""A link's switches with which nothing is hidden."""


def test_words_find_pictures_that_load_with_their_captions(visit: Any, service: str) -> None:
    page = visit.open()
    expect(page.get_by_role("heading", name="Search 96 pictures")).to_be_visible()
    visit.ask("a smile")
    expect(page.locator("#count")).to_contain_text("“a smile”, nearest pictures first")
    asked = {"terms": [{"text": "a smile"}], "safe": True, "dedup": True, "unique_urls": True}
    answer = httpx.post(f"{service}/v1/search", json=asked).json()
    assert visit.captions[:40] == [hit["caption"] for hit in answer["hits"]]
    image = visit.hits.first.locator("img")
    expect(image).to_have_class(re.compile("loaded"))
    assert image.evaluate("image => image.naturalWidth") == 64
    assert page.title() == "a smile · Carrara"


def test_scrolling_goes_on_to_the_last_picture_and_shows_each_once(
    visit: Any, samples: list[Sample]
) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    assert visit.hits.count() < len(samples)
    visit.scroll_to_end()
    expect(visit.hits).to_have_count(len(samples))
    assert sorted(visit.captions) == sorted(sample.caption for sample in samples)
    expect(page.locator("#count")).to_contain_text("96 for “face”")


def test_a_page_that_does_not_come_is_told_and_asked_for_again(visit: Any) -> None:
    visit.expected = "503"
    page = visit.page

    def refuse(route: Route) -> None:
        if "cursor" in (route.request.post_data_json or {}):
            route.fulfill(status=503, json={"error": "There is too much to do."})
        else:
            route.continue_()

    page.route("**/v1/search", refuse)
    visit.open(f"?query=face&{PLAIN}")
    page.locator("#foot").scroll_into_view_if_needed()
    expect(page.locator("#toast")).to_have_text("There is too much to do.")
    again = page.get_by_role("button", name="There is too much to do. Try again")
    page.unroute("**/v1/search")
    again.focus()
    page.keyboard.press("Enter")
    expect(visit.hits.nth(40)).to_be_attached()
    visit.scroll_to_end()
    expect(visit.hits).to_have_count(96)


def test_a_link_holds_the_query_and_every_switch(visitor: Visitor) -> None:
    first = visitor()
    page = first.open("?query=face")
    page.get_by_label("Captions", exact=True).check(force=True)
    for label in ("Display full captions", "Display similarities", "Safe mode"):
        page.get_by_label(label).set_checked(label != "Safe mode")
    page.get_by_label("Hide duplicate URLs").uncheck()
    page.get_by_label("Hide (near) duplicate images").uncheck()
    page.get_by_label("Display captions").uncheck()
    page.get_by_label("Index", exact=True).select_option("again")
    page.get_by_label("Only where").fill("width > 1")
    page.get_by_label("Only where").press("Enter")
    first.settle()
    first.ask("face - cat")
    page.wait_for_url(re.compile("query=cat"))

    second = visitor()
    again = second.open(page.url.removeprefix(page.evaluate("location.origin")).lstrip("/"))
    assert second.captions[:40] == first.captions[:40]
    for name in ("Display full captions", "Display similarities", "Safe mode", "Display captions"):
        assert again.get_by_label(name).is_checked() == page.get_by_label(name).is_checked(), name
    assert again.get_by_label("Index", exact=True).input_value() == "again"
    assert again.get_by_label("Only where").input_value() == "width > 1"
    assert again.get_by_label("Captions", exact=True).is_checked()
    expect(again.locator(".chip")).to_have_count(2)


def test_links_of_the_laion_page_open_here(visit: Any) -> None:
    page = visit.open("?index=emoji&useMclip=false&query=cat")
    assert page.get_by_label("Words to search for").input_value() == "cat"
    assert visit.hits.count() >= 40


def test_back_returns_to_the_pictures_and_the_place_left(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    before = visit.captions[:40]
    page.wait_for_function("() => document.documentElement.scrollHeight > innerHeight + 700")
    page.evaluate("scrollTo({top: 700, behavior: 'instant'})")
    page.wait_for_function("() => scrollY === 700")
    visit.hits.nth(20).locator(".picture").dispatch_event("click")  # where it is: no scrolling
    page.wait_for_url(re.compile("uid="))
    visit.settle()
    expect(page.locator(".chip")).to_have_count(1)
    assert page.evaluate("scrollY") == 0
    found = visit.captions[:40]
    page.go_back()
    expect(page.get_by_label("Words to search for")).to_have_value("face")
    assert visit.captions[:40] == before
    assert page.evaluate("scrollY") == 700
    page.go_forward()
    expect(page.locator(".chip")).to_have_count(1)
    assert visit.captions[:40] == found


def test_a_click_searches_by_the_picture_which_is_its_own_nearest(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    chosen = visit.hits.nth(4)
    caption, row = visit.captions[4], chosen.get_attribute("data-row")
    chosen.locator(".picture").click()
    page.wait_for_url(re.compile("uid="))
    visit.settle()
    assert visit.captions[0] == caption
    assert visit.hits.first.get_attribute("data-row") == row
    expect(page.locator(".chip img")).to_have_js_property("naturalWidth", 64)


def test_near_copies_are_folded_under_one_and_open_below_its_row(visit: Any) -> None:
    page = visit.open("?query=grinning+face&safe=false")
    badge = page.locator(".folded").first
    num = int(badge.inner_text().removeprefix("+"))
    assert badge.get_attribute("aria-expanded") == "false"
    badge.click()
    panel = page.locator(".folded-panel")
    expect(panel.locator(".hit")).to_have_count(num)
    expect(panel).to_contain_text("nearly so")
    assert badge.get_attribute("aria-expanded") == "true"
    # Below the row, so that rows break as before.
    box, row = panel.bounding_box(), visit.hits.first.bounding_box()
    assert box["y"] >= row["y"] + row["height"]
    assert badge.get_attribute("aria-controls") == panel.get_attribute("id")
    page.get_by_role("button", name="Fold again").click()
    expect(panel).to_have_count(0)
    expect(badge).to_be_focused()
    page.locator(".why summary").click()
    expect(page.locator(".why")).to_contain_text("folded")


def test_algebra_becomes_chips_that_change_and_go(visit: Any) -> None:
    page = visit.open()
    visit.ask('face + 0.5*cat - "black - white"')
    chips = page.locator(".chip")
    expect(chips).to_have_count(3)
    expect(chips.nth(2)).to_contain_text("black - white")
    expect(chips.nth(2)).to_have_class("chip minus")
    assert page.get_by_label("Weight of cat").input_value() == "0.5"
    both = visit.captions
    page.get_by_label("Weight of cat").fill("3")
    page.get_by_label("Weight of cat").press("Enter")
    page.wait_for_url(re.compile("weights=1%2C3%2C-1"))
    visit.settle()
    assert visit.captions != both
    page.get_by_role("button", name="Subtract cat instead").click()
    page.wait_for_url(re.compile("weights=1%2C-3%2C-1"))
    page.get_by_role("button", name="Take out cat").click()
    page.get_by_role("button", name="Take out black - white").click()
    # One plain word is text in the box again.
    expect(chips).to_have_count(0)
    expect(page.get_by_label("Words to search for")).to_have_value("face")
    visit.hits.nth(3).hover()
    visit.hits.nth(3).get_by_role("button", name="Less like this").click()
    expect(page.locator(".chip.minus img")).to_have_count(1)
    page.fill("#words", "- cat")
    page.press("#words", "Enter")
    expect(chips).to_have_count(3)
    page.get_by_role("button", name="Clear the query").click()
    expect(page.locator("#intro")).to_be_visible()


def test_the_page_reads_algebra_as_the_service_does(visit: Any) -> None:
    lines = [
        "101 dalmatians",
        "t-shirt - C+",
        "- cartoon + 2*cat + 0.5*dog",
        '"a \\"b\\" - c" + d',
        "https://e.org/a.jpg - uid:00",
        "5* hotel",
        "1e-1*cat + 2E0*dog",
        "cat \N{MINUS SIGN} dog",
    ]
    expected = [
        [
            [kind, value, term.weight]
            for term in parse_algebra(line)
            for kind, value in term.model_dump(exclude={"weight"}, exclude_none=True).items()
        ]
        for line in lines
    ]
    page = visit.page
    page.goto("/")
    read = """async (lines) => {
      const { parseAlgebra, typed } = await import("/web/question.js");
      const words = lines.every((line) => parseAlgebra(typed(line))[0].value === line);
      const terms = lines.map((line) => parseAlgebra(line).map(
        ({ kind, value, weight }) => [kind, value, weight]));
      return [terms, words];
    }"""
    assert page.evaluate(read, lines) == [expected, True]


def test_details_tell_all_that_is_known_and_why(visit: Any, samples: list[Sample]) -> None:
    page = visit.open(f"?query=cat&{PLAIN}&where=width+%3E+1")
    visit.hits.first.hover()
    visit.hits.first.get_by_role("button", name="Details").click()
    dialog = page.get_by_role("dialog")
    caption = visit.captions[0]
    expect(dialog.get_by_role("heading", name=caption)).to_be_visible()
    expect(dialog).to_contain_text("Number 1 of the answer: the cosine between “cat”")
    expect(dialog).to_contain_text("It passes “width > 1”.")
    (sample,) = [sample for sample in samples if sample.caption == caption]
    expect(dialog).to_contain_text(sample.uid)
    expect(dialog).to_contain_text(sample.metadata["sha256"])
    link = dialog.get_by_role("link")
    assert link.get_attribute("href") == sample.metadata["url"]
    assert "noreferrer" in (link.get_attribute("rel") or "")
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading", name=visit.captions[1], exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(visit.hits.nth(1).locator(".picture")).to_be_focused()


def test_what_is_shown_downloads_as_json(visit: Any) -> None:
    page = visit.open("?query=face")
    page.locator("#download > summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="As JSON").click()
    kept = json.loads(download.value.path().read_text())
    assert kept["question"]["terms"] == [{"kind": "text", "value": "face", "weight": 1}]
    assert [hit["caption"] for hit in kept["hits"]] == visit.captions
    assert {"uid", "similarity", "url", "metadata"} <= kept["hits"][0].keys()


def test_what_is_shown_is_saved_as_a_selection(visit: Any, page_root: str) -> None:
    page = visit.open("?query=face")
    page.locator("#download > summary").click()
    page.get_by_role("button", name="As a selection…").click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_label("Name").input_value() == "face"
    dialog.get_by_label("Name").fill("faces-of-the-page")
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#toast")).to_contain_text("saved as the selection faces-of-the-page")
    kept = read_selection(page_root, "faces-of-the-page").to_pylist()
    assert sum(row["keep"] for row in kept) == visit.hits.count()


def test_where_the_service_saves_nothing_select_takes_the_file_downloaded(
    visitor: Visitor, page_root: str, samples: list[Sample], start_service: Any, tmp_path: Path
) -> None:
    with start_service(page_root) as client:
        visit = visitor(base=str(client.base_url))
        page = visit.open(f"?uid={samples[5].uid}")  # which needs no encoder
        page.locator("#download > summary").click()
        page.get_by_role("button", name="As a selection…").click()
        page.get_by_role("dialog").get_by_label("Name").fill("face")
        with page.expect_download() as download:
            page.get_by_role("dialog").get_by_role("button", name="Download").click()
        assert download.value.suggested_filename == "face.toml"
        policy = tmp_path / "face.toml"
        download.value.save_as(policy)
        num = visit.hits.count()
    summary = select.run(select.Config(root=page_root, name="face", policy=str(policy)))
    assert summary.num_out == num
