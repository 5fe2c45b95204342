"""Each switch changes what is asked or shown; what goes wrong is told as text."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from pipeline.sample import Sample

Visitor = Callable[..., Any]
PLAIN = "dedup=false&uniqueUrls=false&safe=false"


def test_captions_full_captions_and_similarities_are_shown_or_not(visit: Any) -> None:
    page = visit.open(f"?query=long+long&modality=text&{PLAIN}")
    long = page.locator("#grid .hit", has_text="long long").first
    caption, similarity = long.locator(".caption"), long.locator(".similarity")
    expect(caption).to_be_visible()
    expect(similarity).to_be_hidden()
    short = caption.bounding_box()["height"]
    page.get_by_label("Display full captions").check()
    assert caption.bounding_box()["height"] > 10 * short
    page.get_by_label("Display full captions").uncheck()
    page.get_by_label("Display captions").uncheck()
    expect(caption).to_be_hidden()
    page.get_by_label("Display similarities").check()
    expect(similarity).to_be_visible()
    assert re.fullmatch(r"-?[01]\.\d{3}", similarity.inner_text())
    assert "similarities=true" in page.url
    assert "captions=false" in page.url


def test_near_duplicates_are_folded_unless_switched_off(visit: Any, samples: list[Sample]) -> None:
    page = visit.open("?query=face&uniqueUrls=false&safe=false")
    expect(page.locator(".folded").first).to_be_visible()
    page.get_by_label("Hide (near) duplicate images").uncheck()
    page.wait_for_url(re.compile("dedup=false"))
    visit.settle()
    expect(page.locator(".folded")).to_have_count(0)
    visit.scroll_to_end()
    expect(visit.hits).to_have_count(len(samples))


def test_duplicate_urls_are_hidden_and_the_reason_is_told(visit: Any) -> None:
    page = visit.open("?query=face&dedup=false&safe=false")
    visit.scroll_to_end()
    expect(visit.hits).to_have_count(95)
    page.locator(".why summary").click()
    expect(page.locator(".why")).to_contain_text("1 × same URL as another")


def test_safe_mode_hides_what_is_not_known_to_be_safe(visit: Any) -> None:
    page = visit.open("?query=face&dedup=false&uniqueUrls=false")
    assert page.get_by_label("Safe mode").is_checked()
    visit.scroll_to_end()
    expect(visit.hits).to_have_count(72)
    expect(page.locator("#notes")).to_contain_text("72 of 96 samples are known to be safe")


def test_captions_can_be_searched_instead_of_images(visit: Any) -> None:
    page = visit.open(f"?query=grinning+face&{PLAIN}")
    by_image = visit.captions[:40]
    page.locator(".segments label", has_text="Captions").click()
    page.wait_for_url(re.compile("modality=text"))
    visit.settle()
    assert visit.captions[0] == "grinning face"
    assert visit.captions[:40] != by_image
    expect(page.locator("#count")).to_contain_text("nearest captions first")


def test_other_languages_are_understood_by_the_multilingual_tower(visit: Any, service: str) -> None:
    words = "weinendes Gesicht"
    page = visit.open(f"?query={words}&{PLAIN}")
    plain = visit.captions[:40]
    page.get_by_label("Search with multilingual CLIP").check()
    page.wait_for_url(re.compile("useMclip=true"))
    visit.settle()
    asked = {"terms": [{"text": words}], "multilingual": True}
    answer = httpx.post(f"{service}/v1/search", json=asked).json()
    assert visit.captions[:40] == [hit["caption"] for hit in answer["hits"]] != plain


def test_variety_changes_the_order(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    before = visit.captions[:40]
    page.get_by_label("Variety").fill("0.9")
    page.wait_for_url(re.compile("diversify=0.9"))
    visit.settle()
    assert visit.captions[:40] != before


def test_where_filters_by_the_columns_offered(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    page.get_by_text("Columns", exact=True).click()
    page.locator("#columns").get_by_role("button", name="nudity_exposed").click()
    where = page.get_by_label("Only where")
    expect(where).to_be_focused()
    expect(where).to_have_value("nudity_exposed ")
    page.keyboard.type("> 0.5")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("where="))
    visit.settle()
    expect(visit.hits).to_have_count(24)
    where.fill("width < 1")
    where.press("Enter")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    expect(page.locator("#intro")).to_contain_text("“width < 1”")


def test_another_index_and_another_service_can_be_asked(
    visit: Any, page_root: str, samples: list[Sample], start_service: Any
) -> None:
    page = visit.open(f"?uid={samples[5].uid}&{PLAIN}")  # which needs no encoder
    before = visit.captions[:40]
    page.get_by_label("Index", exact=True).select_option("again")
    page.wait_for_url(re.compile("index=again"))
    visit.settle()
    assert visit.captions[:40] == before
    with start_service(f"elsewhere={page_root}") as client:
        address = str(client.base_url)
        visit.origins.add(address.removeprefix("http://"))
        page.get_by_text("Service", exact=True).click()
        page.get_by_label("Address of the service").fill(address)
        page.get_by_label("Address of the service").press("Enter")
        page.wait_for_url(re.compile("back="))
        expect(page.get_by_label("Index", exact=True)).to_have_value("elsewhere")
        expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
        assert visit.captions[:40] == before
        # Its pictures came with the answer: images of other origins are not let in.
        image = visit.hits.first.locator("img")
        expect(image).to_have_js_property("naturalWidth", 64)
        assert (image.get_attribute("src") or "").startswith("data:image/jpeg;base64,")
        visit.hits.first.locator(".picture").focus()
        page.keyboard.press("i")
        expect(page.locator(".large")).to_have_js_property("naturalWidth", 64)


def test_a_key_is_asked_for_and_kept_out_of_the_link(
    visitor: Visitor, page_root: str, samples: list[Sample], start_service: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("reader s3cret-and-long-enough\n")
    with start_service(page_root, keys=str(keys)) as client:
        visit = visitor(base=str(client.base_url))
        visit.expected = "401"
        page = visit.page
        page.goto(f"/?uid={samples[5].uid}&safe=false")
        expect(page.get_by_role("alert").first).to_contain_text("API key")
        expect(page.get_by_label("Key, if it asks for one")).to_be_focused()
        page.keyboard.type("s3cret-and-long-enough")
        page.keyboard.press("Enter")
        visit.settle()
        expect(visit.hits.first.locator("img")).to_have_js_property("naturalWidth", 64)
        assert "s3cret" not in page.url
        page.reload()
        visit.settle()
        assert visit.hits.count() > 0


HELD = """() => {
  window.held = new Set();
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => {
    const url = createObjectURL.call(URL, blob);
    held.add(url);
    return url;
  };
  URL.revokeObjectURL = (url) => {
    held.delete(url);
    revokeObjectURL.call(URL, url);
  };
}"""
"""Notes whose bytes the page keeps until it is closed."""


def test_pictures_that_need_a_key_are_kept_no_longer_than_they_are_shown(
    visitor: Visitor, page_root: str, samples: list[Sample], start_service: Any, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("reader s3cret-and-long-enough\n")
    with start_service(page_root, keys=str(keys)) as client:
        visit = visitor(base=str(client.base_url))
        visit.expected = "401"
        page = visit.page
        page.add_init_script(f"({HELD})()")
        page.goto(f"/?uid={samples[5].uid}&safe=false")
        expect(page.get_by_label("Key, if it asks for one")).to_be_focused()
        page.keyboard.type("s3cret-and-long-enough")
        page.keyboard.press("Enter")
        visit.settle()
        expect(page.locator(".chip img")).to_have_js_property("naturalWidth", 64)
        visit.hits.first.locator(".picture").focus()
        page.keyboard.press("i")
        expect(page.locator(".large")).to_have_js_property("naturalWidth", 64)
        assert page.evaluate("held.size") == 0


def test_going_back_to_an_answer_that_hides_nothing_shows_it(visit: Any) -> None:
    """From one whose reasons are open."""
    page = visit.open(f"?query=face&{PLAIN}")
    before = visit.captions[:40]
    page.get_by_label("Hide (near) duplicate images").check()
    page.wait_for_url(lambda link: "dedup=false" not in link)
    visit.settle()
    page.locator(".why summary").click()
    page.go_back()
    expect(page.locator(".why")).to_have_count(0)
    assert visit.captions[:40] == before
    expect(page.locator("#more").or_(page.locator("#end")).first).to_be_attached()


@pytest.mark.parametrize(
    ("link", "told", "status"),
    [
        ("?query=a&where=nonsense+%3E+1", "there is no column 'nonsense'", "400"),
        (
            "?query=a&index=missing",
            "No index is called missing; this service has emoji, again.",
            "",
        ),
        ("?uid=00000000000000000000000000000000", "0000000000", "40"),
        ("?query=a&back=ftp://e.org", "ftp://e.org: no address of a service", ""),
        ("?query=a&back=http://127.0.0.1:4/", "http://127.0.0.1:4/ does not answer.", "ERR_"),
    ],
)
def test_what_went_wrong_is_told(visit: Any, link: str, told: str, status: str) -> None:
    visit.expected = status or None
    visit.origins.add("127.0.0.1:4")
    visit.page.goto(f"/{link}")
    expect(visit.page.locator("#problem")).to_contain_text(told)
    expect(visit.page.get_by_role("button", name="Try again")).to_be_visible()
    expect(visit.page.locator(".ghost")).to_have_count(0)
