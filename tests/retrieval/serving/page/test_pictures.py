"""Asking by a picture of one's own: uploaded, pasted, dropped, by address, and added to words."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from pipeline.sample import Sample

Visitor = Callable[..., Any]
PLAIN = "?dedup=false&uniqueUrls=false&safe=false"

DROP = """([target, kind, data]) => {
  const transfer = new DataTransfer();
  if (kind === "file") {
    const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
    transfer.items.add(new File([bytes], "mine.jpg", { type: "image/jpeg" }));
  } else {
    transfer.setData("text/uri-list", data);
  }
  const fire = (element, Kind, type, field) => element.dispatchEvent(
    new Kind(type, { [field]: transfer, bubbles: true, cancelable: true }));
  if (target === "paste") return fire(document.body, ClipboardEvent, "paste", "clipboardData");
  fire(document.body, DragEvent, "dragenter", "dataTransfer");
  fire(document.body, DragEvent, "dragover", "dataTransfer");
  fire(document.querySelector(target), DragEvent, "drop", "dataTransfer");
}"""


def encoded(sample: Sample) -> str:
    return base64.b64encode(sample.image).decode()


def expect_found(visit: Any, sample: Sample) -> None:
    visit.page.wait_for_url(re.compile("picture=uploaded|imageUrl="))
    visit.settle()
    expect(visit.hits.first.locator("img")).to_have_attribute("alt", sample.caption)


def test_an_uploaded_picture_finds_itself_and_survives_reload_and_back(
    visit: Any, samples: list[Sample]
) -> None:
    page = visit.open(PLAIN)
    upload(page, "mine.jpg", "image/jpeg", samples[30].image)
    expect_found(visit, samples[30])
    expect(page.locator("#notes")).to_contain_text("Your picture is a copy of one in the corpus")
    expect(page.locator(".chip img")).to_have_js_property("naturalWidth", 64)
    page.reload()
    expect_found(visit, samples[30])
    visit.hits.nth(5).locator(".picture").click()
    page.wait_for_url(re.compile("uid="))
    page.go_back()
    expect_found(visit, samples[30])


def test_skipping_to_the_results_keeps_an_uploaded_picture(
    visit: Any, samples: list[Sample]
) -> None:
    page = visit.open(PLAIN)
    upload(page, "mine.jpg", "image/jpeg", samples[30].image)
    expect_found(visit, samples[30])
    page.get_by_role("link", name="Skip to the results").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    page.reload()
    expect_found(visit, samples[30])
    expect(page.locator(".chip")).to_have_count(1)


def upload(page: Page, name: str, kind: str, data: bytes) -> None:
    page.get_by_label("Search by picture").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a picture…").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})


def test_a_link_without_its_uploaded_picture_says_so(visit: Any) -> None:
    page = visit.open("?picture=uploaded&query=face&weights=1,0.5")
    expect(page.locator("#notes")).to_contain_text("give the picture again")
    assert visit.hits.count() > 0


def test_a_pasted_picture_is_searched_by(visit: Any, samples: list[Sample]) -> None:
    page = visit.open(PLAIN)
    page.evaluate(DROP, ["paste", "file", encoded(samples[31])])
    expect_found(visit, samples[31])


def test_a_dropped_picture_replaces_the_query_or_joins_it(
    visit: Any, samples: list[Sample]
) -> None:
    page = visit.open(PLAIN)
    page.evaluate(DROP, ["[data-drop=replace]", "file", encoded(samples[32])])
    expect_found(visit, samples[32])
    expect(page.locator("#drop")).to_be_hidden()
    visit.open(f"{PLAIN}&query=hand")
    page.evaluate(DROP, ["[data-drop=add]", "file", encoded(samples[32])])
    page.wait_for_url(re.compile("picture=uploaded"))
    expect(page.locator(".chip")).to_have_count(2)


def test_a_picture_of_the_web_is_fetched_by_the_service_alone(
    visit: Any, samples: list[Sample], pictures_url: str
) -> None:
    # The visit would fail if the browser itself asked for it.
    page = visit.open(PLAIN)
    address = f"{pictures_url}/1f920.png"
    (cowboy,) = [sample for sample in samples if sample.caption == "face with cowboy hat"]
    page.get_by_label("Search by picture").click()
    page.get_by_label("or its address").fill(address)
    page.get_by_label("or its address").press("Enter")
    expect_found(visit, cowboy)
    expect(page.locator(".chip")).to_contain_text("/…/1f920.png")
    visit.open(PLAIN)
    page.evaluate(DROP, ["[data-drop=replace]", "address", address])
    expect_found(visit, cowboy)
    visit.open(PLAIN)
    visit.ask(address)
    expect_found(visit, cowboy)


def test_an_address_that_the_service_refuses_is_told(visit: Any) -> None:
    visit.expected = "400"
    page = visit.page
    page.goto("/?imageUrl=http://169.254.169.254/latest/a.jpg")
    expect(page.locator("#problem")).to_contain_text("can't be fetched")


@pytest.mark.parametrize(("kind", "side"), [("PNG", 900), ("GIF", 64)])
def test_large_pictures_and_odd_formats_are_sent_small_and_without_their_history(
    visit: Any, samples: list[Sample], kind: str, side: int
) -> None:
    picture = Image.open(io.BytesIO(samples[33].image)).resize((side, side))
    out = io.BytesIO()
    picture.save(out, kind, compress_level=0)  # what PNG calls not packing at all
    page = visit.open(PLAIN)
    with page.expect_request("**/v1/search") as asked:
        upload(page, f"mine.{kind.lower()}", f"image/{kind.lower()}", out.getvalue())
    sent = base64.b64decode(asked.value.post_data_json["terms"][0]["image"])
    with Image.open(io.BytesIO(sent)) as received:
        assert received.format == "JPEG"
        assert max(received.size) <= 768
    assert len(sent) < 400_000
    visit.settle()
    assert samples[33].caption in visit.captions[:5]


def test_what_is_no_picture_is_told(visit: Any) -> None:
    page = visit.open()
    upload(page, "notes.bmp", "image/bmp", b"these are words")
    expect(page.locator("#toast")).to_contain_text("notes.bmp is not a picture")
    page.get_by_label("Search by picture").click()
    page.get_by_label("or its address").fill("mine.jpg")
    page.get_by_role("button", name="Search", exact=True).first.click()
    expect(page.locator("#toast")).to_contain_text("begins with http")
