"""For every reader: keyboard, screen reader, phone, light and dark; and hostile captions."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pipeline.sample import Sample

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
PLAIN = "dedup=false&uniqueUrls=false&safe=false"
FEW = "&where=nudity_exposed+%3E+0.5"
"""24 pictures at most: axe-core's time grows with the square of them."""
Visitor = Callable[..., Any]


def check_accessible(page: Page, rules: list[str] | None = None) -> None:
    """axe-core's rules, all or these: WCAG 2.2 A and AA, and its best practices."""
    page.evaluate(AXE)
    options = {"runOnly": rules} if rules else {}
    found = page.evaluate("options => axe.run(options)", options)["violations"]
    assert not [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


@pytest.mark.parametrize(("scheme", "rules"), [("light", None), ("dark", ["color-contrast"])])
def test_axe_finds_no_fault_in_light_and_dark(
    visitor: Visitor, scheme: str, rules: list[str] | None
) -> None:
    visit = visitor(color_scheme=scheme)
    page = visit.open()
    check_accessible(page, rules)
    visit.open(f"?query=face+-+cat&query=hand&weights=1,-0.5&similarities=true&safe=false{FEW}")
    page.get_by_text("Columns", exact=True).click()
    page.locator(".folded").first.click()
    page.locator(".why summary").click()
    check_accessible(page, rules)
    page.locator(".picture").first.focus()
    page.keyboard.press("i")
    expect(page.locator(".large")).to_have_js_property("complete", True)
    check_accessible(page, rules)


def test_axe_finds_no_fault_on_a_phone_with_what_opens(visitor: Visitor) -> None:
    visit = visitor(**PHONE)
    visit.expected = "400"
    page = visit.open(f"?query=face&safe=false{FEW}")
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Search by picture").click()
    check_accessible(page)
    page.locator("#download > summary").click()
    page.get_by_role("button", name="As a selection…").click()
    check_accessible(page)
    page.goto("/?query=face&where=nonsense")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    check_accessible(page)


def test_everything_is_reached_by_keyboard(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    visit.scroll_to_end()
    captions = visit.captions
    column = page.evaluate(
        "() => { const tops = [...document.querySelectorAll('.hit')].map((one) => one.offsetTop);"
        " return tops.findIndex((top) => top !== tops[0]); }"
    )

    def expect_focus(caption: str) -> None:
        focused = "document.activeElement.querySelector('img')?.alt ?? document.activeElement.id"
        assert page.evaluate(focused) == caption

    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.get_by_label("Words to search for")).to_be_focused()
    assert page.evaluate("getSelection().toString()") == "face"
    for key, place in [
        ("ArrowDown", 0),
        ("ArrowRight", 1),
        ("ArrowDown", column + 1),
        ("ArrowLeft", column),
        ("ArrowUp", 0),
        ("End", len(captions) - 1),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        expect_focus(captions[place])
    # One stop for Tab: the picture, then its own buttons.
    page.keyboard.press("Tab")
    expect(visit.hits.first.get_by_label("More like this")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("i")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.get_by_role("button", name="Search by this picture")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect_focus(captions[1])
    page.keyboard.press("Enter")
    page.wait_for_url("**uid=**")
    visit.settle()
    expect(visit.hits.first.locator(".picture")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("-")
    page.wait_for_url("**weights=1%2C-1**")
    visit.settle()
    expect(page.locator(".chip")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.get_by_label("Words to search for")).to_be_focused()
    page.keyboard.press("Backspace")
    expect(page.locator(".chip")).to_have_count(1)


def test_changing_a_chip_by_keyboard_keeps_the_focus(visit: Any) -> None:
    page = visit.open("?query=face&query=cat&weights=1,0.5")
    weight = page.get_by_label("Weight of cat")
    page.get_by_label("Subtract cat instead").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**weights=1%2C-0.5**")
    expect(page.get_by_label("Add cat instead")).to_be_focused()
    weight.focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_url("**weights=1%2C-0.6**")
    expect(weight).to_be_focused()
    weight.fill("30")
    page.keyboard.press("Enter")
    page.wait_for_url("**weights=1%2C-10**")
    expect(weight).to_be_focused()
    expect(weight).to_have_value("10")
    # Where that leaves one plain word, chips are gone: the box has it.
    page = visit.open("?query=face&weights=-1")
    page.get_by_label("Add face instead").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.get_by_label("Words to search for")).to_be_focused()


@pytest.mark.parametrize("control", ["[data-switch=safe]", "[value=image]", "#diversify", "#size"])
def test_the_keys_work_from_switches_and_sliders_and_leave_the_browser_its_own(
    visit: Any, control: str
) -> None:
    page = visit.open()
    words = page.get_by_label("Words to search for")
    for key in ("/", "Escape"):
        page.locator(control).focus()
        page.keyboard.press(key)
        expect(words).to_be_focused()
    page.locator(control).focus()
    page.keyboard.press("Control+/")
    expect(page.locator(control)).to_be_focused()
    where = page.get_by_label("Only where")
    where.focus()
    page.keyboard.press("/")
    expect(where).to_have_value("/")


def test_going_back_by_keyboard_leads_to_the_picture_that_was_left(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}")
    visit.hits.nth(7).locator(".picture").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**uid=**")
    visit.settle()
    expect(visit.hits.first.locator(".picture")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.go_back()
    expect(page.get_by_label("Words to search for")).to_have_value("face")
    expect(visit.hits.nth(7).locator(".picture")).to_be_focused()
    page.go_forward()
    expect(page.locator(".chip")).to_have_count(1)
    expect(visit.hits.nth(1).locator(".picture")).to_be_focused()
    # From a copy that is folded under a picture, to that picture.
    page = visit.open("?query=grinning+face&safe=false")
    page.locator(".folded").first.click()
    page.locator(".folded-panel .picture").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**uid=**")
    visit.settle()
    page.go_back()
    expect(page.get_by_label("Words to search for")).to_have_value("grinning face")
    folding = page.locator("#grid > .hit", has=page.locator(".folded")).first
    expect(folding.locator(".picture")).to_be_focused()


def test_the_reasons_keep_the_focus_as_more_pictures_come(visitor: Visitor) -> None:
    visit = visitor(viewport={"width": 400, "height": 400})  # the next page is far away
    page = visit.open("?query=face&safe=false")
    expect(visit.hits).to_have_count(40)
    reasons = page.locator(".why summary")
    reasons.focus()
    page.keyboard.press("Enter")
    visit.scroll_to_end()
    expect(page.locator(".why")).to_contain_text("1 × same URL as another")
    expect(page.locator(".why")).to_have_attribute("open", "")
    expect(reasons).to_be_focused()


def test_screen_readers_are_told_what_is_where(visit: Any) -> None:
    page = visit.open("?query=face&safe=false")
    count = page.locator("#count")
    assert (count.get_attribute("role"), count.get_attribute("aria-live")) == ("status", "polite")
    visit.scroll_to_end()
    num = visit.hits.count()
    expect(page.get_by_role("list", name="Pictures")).to_be_visible()
    expect(page.get_by_role("button", name=visit.captions[0], exact=True)).to_be_visible()
    badge = page.locator(".folded").first
    what = "near copy" if badge.inner_text() == "+1" else "near copies"
    told = f"{badge.inner_text().removeprefix('+')} {what} folded under this picture"
    expect(badge).to_have_accessible_name(told)
    expect(count).to_have_text(f"{num} for “face”, nearest pictures first")
    for name in ("search", "main", "complementary", "banner"):
        expect(page.get_by_role(name)).to_have_count(1)


def test_a_phone_never_scrolls_sideways(visitor: Visitor) -> None:
    visit = visitor(**PHONE)
    page = visit.page

    def check() -> None:
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0

    visit.open()
    check()
    visit.open(f"?query=long&modality=text&fullCaptions=true&similarities=true&{PLAIN}")
    check()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Search by picture").click()
    panel = page.locator("#by-picture .panel").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= 390
    check()
    page.get_by_text("Columns", exact=True).click()
    check()
    visit.open(f"?query={'word' * 60}&query=cat&query=dog&weights=1,-1,0.5&{PLAIN}")
    check()
    # Where nothing hovers, details have a button of their own on every picture.
    visit.hits.nth(1).get_by_label("Details").tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    check()


def test_light_and_dark_follow_the_system_until_one_is_chosen(visitor: Visitor) -> None:
    visit = visitor(color_scheme="dark")
    page = visit.open()
    brightness = (
        "Number(getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/)[0])"
    )
    switch = page.get_by_role("button", name="Light or dark")
    assert page.evaluate(brightness) < 50
    switch.click()
    expect(switch).to_have_accessible_name("Light or dark: light")
    assert page.evaluate(brightness) > 200
    page.reload()
    assert page.evaluate(brightness) > 200
    switch.click()
    assert page.evaluate(brightness) < 50
    switch.click()
    expect(switch).to_have_accessible_name("Light or dark: as the system")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(brightness) > 200


# Hostile captions


def test_hostile_captions_are_text_in_the_grid_and_in_the_details(
    visit: Any, hostile_captions: list[str]
) -> None:
    page = visit.open(f"?query=face&fullCaptions=true&{PLAIN}")
    visit.scroll_to_end()
    shown = page.locator(".caption").all_text_contents()
    assert set(hostile_captions) <= set(shown) & set(visit.captions)
    for caption in hostile_captions:
        place = visit.captions.index(caption)
        text = visit.hits.nth(place).locator(".caption")
        assert text.evaluate("one => [one.children.length, getComputedStyle(one).unicodeBidi]") == [
            0,
            "isolate",
        ]
        visit.hits.nth(place).locator(".picture").focus()
        page.keyboard.press("i")
        assert page.locator("#details-caption").text_content() == caption
        expect(page.locator("#details-caption *")).to_have_count(0)
        page.keyboard.press("Escape")
        page.keyboard.press("+")
        visit.settle()
        page.go_back()
        visit.settle()
    assert (
        page.evaluate("document.querySelectorAll('#grid script, [onerror], img[src=x]').length")
        == 0
    )
    assert page.title() == "face · Carrara"


def test_hostile_words_in_a_link_are_text(visit: Any, hostile_captions: list[str]) -> None:
    page = visit.page
    for words in hostile_captions[:3]:
        page.goto("/")
        link = "words => '?' + new URLSearchParams([['query', words], ['query', 'cat']])"
        visit.open(page.evaluate(link, words))
        assert page.locator(".chip .words").first.text_content() == words
        expect(page.locator("#count *, .chip .words *")).to_have_count(0)
    assert "hacked" not in page.title().replace("'hacked'", "")


def test_an_address_that_is_no_web_address_is_no_link(visit: Any) -> None:
    page = visit.open(f"?query=face&{PLAIN}&where=url+LIKE+'javascript%25'")
    expect(visit.hits).to_have_count(1)
    visit.hits.first.locator(".picture").focus()
    page.keyboard.press("i")
    expect(page.locator("span.address")).to_contain_text("javascript:")
    expect(page.get_by_role("dialog").get_by_role("link")).to_have_count(0)


def test_markup_made_of_text_would_be_refused_by_the_browser_itself(
    visit: Any, samples: list[Sample]
) -> None:
    """The page's policy: even a slip of its own could neither make elements nor load pictures."""
    page = visit.open(f"?query=face&{PLAIN}")
    visit.expected = "blocked"
    visit.origins.add("example.org")  # asked for, as Playwright sees it, and blocked
    slip = "() => { try { document.body.innerHTML = '<b>' } catch (error) { return error.name } }"
    assert page.evaluate(slip) == "TypeError"
    blocked = """address => new Promise((done) => {
      document.addEventListener("securitypolicyviolation", (one) => done(one.violatedDirective));
      document.body.append(Object.assign(new Image(), { src: address }));
    })"""
    assert page.evaluate(blocked, samples[0].metadata["url"]) == "img-src"
