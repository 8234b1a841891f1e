"""The page in a real browser: Chromium, driven by Playwright."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import DEADLINE
from inboxes import Inbox, item

from letterapp import Letter, LetterError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not HAS_PLAYWRIGHT, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202egnp.exe"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def windows(browser: Any, inbox: Inbox) -> Iterator[Any]:
    """Opens windows of the inbox's page. The test fails if one reports an error."""
    problems: list[str] = []
    contexts: list[Any] = []

    def note(said: Any) -> None:
        # What an email's frame is not allowed to do is reported, and is no problem of the page.
        if said.type in ("error", "warning") and "/api/mails/" not in said.text + said.location["url"]:
            problems.append(f"{said.location['url']}: {said.text}")

    def new(
        path: str = "/",
        width: int = 1600,
        height: int = 900,
        at: Inbox | None = None,
        lost: bool = False,
        **options: Any,
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(DEADLINE * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        if not lost:  # a lost connection is reported
            page.on("console", note)
        page.goto((at or inbox).url + path)
        page.locator("#live.on").wait_for()
        return page

    yield new
    for context in contexts:
        context.close()
    assert problems == []


def expect(what: Any) -> Any:
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=DEADLINE * 1000)
    return playwright_expect(what)


def rows(page: Any) -> Any:
    return page.locator("#rows .row")


def test_events_appear_live_newest_first(windows: Any, inbox: Inbox, letter: Letter) -> None:
    page = windows()
    expect(page.get_by_text("Waiting for the first event")).to_be_visible()
    letter.track("user_42", "Order Completed", {"amount": 99.5})
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text("Order Completed")
    expect(rows(page).first).to_contain_text("amount: 99.5")
    letter.identify("user_42", email="ada@example.com")
    expect(rows(page)).to_have_count(2)
    expect(rows(page).first).to_contain_text("ada@example.com")
    expect(page.locator("#facet-type li", has_text="track")).to_contain_text("1")
    expect(page.locator("#bars rect").first).to_be_attached()
    label = rows(page).first.get_attribute("aria-label")
    assert label.startswith("identify ada@example.com, user user_42, ")


def test_a_row_opens_to_its_item_and_its_request(windows: Any, inbox: Inbox, letter: Letter) -> None:
    page = windows()
    letter.track("user_42", "Order Completed", {"amount": 12345678901234567890})
    rows(page).first.click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text('"amount": 12345678901234567890')
    expect(detail).to_contain_text("attempt 1")
    expect(detail).to_contain_text("letterapp-python/")
    expect(detail).not_to_contain_text("lt_test_local")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    page.go_back()
    expect(detail).to_be_visible()


def test_what_came_again_is_marked_where_it_stands(windows: Any, inbox: Inbox) -> None:
    page = windows()
    event = item(event="Twice")
    inbox.track(event)
    rows(page).first.click()
    expect(page.locator("#detail")).to_contain_text("once")
    inbox.track(event)
    expect(rows(page).first).to_contain_text("\u00d72")
    expect(page.locator("#detail")).to_contain_text("2 times, counted once")
    page.locator("#again").check()
    expect(page.locator("#found")).to_have_text("1 of 1")


def test_filters_are_applied_by_the_server_and_stand_in_the_address(windows: Any, inbox: Inbox) -> None:
    inbox.track(
        *(item(event=f"Page {number % 3}", user=f"u{number % 2}", properties={"n": number}) for number in range(60)),
        item("identify", user="other", email="ada@example.com"),
    )
    page = windows()
    expect(page.locator("#found")).to_have_text("61")
    page.locator("#facet-event button", has_text="Page 2").click()
    expect(page.locator("#found")).to_have_text("20 of 61")
    page.locator("#user").fill("u1")
    expect(page.locator("#found")).to_have_text("10 of 61")
    page.locator("#q").fill('"n": 5')
    expect(page.locator("#found")).to_have_text("3 of 61")  # 5, 53 and 59
    inbox.track(item(event="Page 2", user="u1", properties={"n": 51}), item(event="Page 1"))
    expect(page.locator("#found")).to_have_text("4 of 63")
    page.reload()
    expect(page.locator("#found")).to_have_text("4 of 63")
    expect(page.locator("#q")).to_have_value('"n": 5')
    page.locator("#reset").click()
    expect(page.locator("#found")).to_have_text("63")
    page.locator("#q").fill("no such text")
    expect(page.get_by_text("No match")).to_be_visible()


def test_hostile_values_stay_text(windows: Any, inbox: Inbox) -> None:
    inbox.track(
        item(event=HOSTILE, user=HOSTILE, properties={HOSTILE: HOSTILE}),
        item("identify", user=HOSTILE, email=HOSTILE, traits={"name": HOSTILE}),
        item("group", user=HOSTILE, accountId=HOSTILE, name=HOSTILE),
    )
    mail = {"to": HOSTILE, "subject": HOSTILE, "text": HOSTILE, "html": HOSTILE, "headers": {HOSTILE: HOSTILE}}
    assert inbox.post("/v1/send", mail, **{"User-Agent": "<b>x</b>"})[0] == 200
    page = windows()
    for index in range(4):
        rows(page).nth(index).click()
        expect(page.locator("#detail .head")).to_contain_text("\\u202egnp.exe")
        expect(page.locator("#detail .head")).to_contain_text("<script>")
    for button in ("Text", "Headers", "JSON", "HTML"):
        page.keyboard.press("Escape")
        rows(page).first.click()
        page.locator(".mail-tabs button", has_text=button).click()
    expect(page.locator("iframe")).to_be_visible()
    for view in ("People", "Mail", "Requests"):
        page.locator("nav button", has_text=view).click()
        expect(page.locator("nav [aria-current=page]")).to_contain_text(view)
    page.locator("nav button", has_text="People").click()
    expect(page.locator("#person")).to_contain_text("<script>")
    assert page.title() == "letter inbox"
    assert page.locator("main img, main script").count() == 0


def test_scripts_of_an_email_do_not_run(windows: Any, inbox: Inbox, letter: Letter, errors: list[LetterError]) -> None:
    html = "<h1>Hello</h1><p id=p>as sent</p><script>document.getElementById('p').textContent = 'owned'</script>"
    letter.send(to="ada@example.com", subject="Hello", html=html, text="plain text", headers={"X-Campaign": "winter"})
    page = windows("/#mail")
    rows(page).first.click()
    frame = page.frame_locator("iframe")
    expect(frame.locator("h1")).to_have_text("Hello")
    expect(frame.locator("#p")).to_have_text("as sent")
    assert page.locator("iframe").get_attribute("sandbox") == ""
    page.locator(".mail-tabs button", has_text="Text").click()
    expect(page.locator(".mail-text")).to_have_text("plain text")
    page.locator(".mail-tabs button", has_text="Headers").click()
    expect(page.locator("#detail")).to_contain_text("winter")


def test_switches_make_the_inbox_fail_and_the_client_try_again(
    windows: Any, inbox: Inbox, letter: Letter, errors: list[LetterError]
) -> None:
    page = windows("/#requests")
    page.get_by_role("button", name="Misbehave").click()
    page.get_by_label("503: number of requests").fill("1")
    page.get_by_role("button", name="Turn on 503").click()
    expect(page.get_by_role("button", name="Misbehave · 1 left")).to_be_visible()
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and errors == []
    requests = page.locator("#request-list details")
    expect(requests).to_have_count(2)
    expect(requests.nth(0)).to_contain_text("attempt 2")
    expect(requests.nth(1)).to_contain_text("503")
    expect(page.get_by_role("button", name="Turn on 503")).to_be_visible()
    expect(page.locator("#trouble-open")).to_have_text("Misbehave")


def test_two_windows_agree(windows: Any, inbox: Inbox) -> None:
    first, second = windows(), windows()
    inbox.track(item(event="A"), item(event="B"))
    for page in (first, second):
        expect(page.locator("#found")).to_have_text("2")
    first.get_by_role("button", name="Misbehave").click()
    first.get_by_role("button", name="Turn on Swallow").click()
    expect(second.get_by_role("button", name="Misbehave · 3 left")).to_be_visible()
    first.on("dialog", lambda dialog: dialog.accept())
    first.get_by_role("button", name="Clear").click()
    for page in (first, second):
        expect(page.get_by_text("Waiting for the first event")).to_be_visible()
        expect(page.locator("#count-events")).to_have_text("0")


def test_it_can_be_used_by_the_keyboard(windows: Any, inbox: Inbox) -> None:
    for start in (0, 100):
        inbox.track(*(item(event=f"Number {number}") for number in range(start, start + 100)))
    page = windows()
    expect(rows(page).first).to_contain_text("Number 199")
    page.keyboard.press("/")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("number 1")
    expect(page.locator("#found")).to_have_text("111 of 200")
    page.keyboard.press("Escape")
    expect(page.locator("#rows")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".row.active")).to_contain_text("Number 198")
    active = page.locator("#rows").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-posinset") == "2"
    page.keyboard.press("End")
    expect(page.locator(".row.active")).to_have_attribute("aria-posinset", "111")
    expect(page.locator(".row.active")).to_contain_text("Number 1")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#rows")).to_be_focused()


def test_every_control_has_a_name(windows: Any, inbox: Inbox) -> None:
    inbox.track(item(), item("identify"))
    page = windows()
    rows(page).first.click()
    page.locator("#detail .json").wait_for()
    page.get_by_role("button", name="Misbehave").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, [role=listbox], [role=img], iframe, aside')]
            .filter(each => each.checkVisibility())
            .filter(each => !(each.textContent.trim() || each.getAttribute('aria-label') || (each.labels || []).length))
            .map(each => each.outerHTML)"""
    )
    assert nameless == []


def test_the_page_goes_on_when_the_inbox_was_started_again(windows: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "kept.sqlite")
    with Inbox(tmp_path, "--keep", path) as first:
        first.track(item(event="Kept"))
        page = windows(at=first, lost=True)
        expect(rows(page)).to_have_count(1)
        port = first.port
        first.signal(signal.SIGKILL)
        first.finish()
        expect(page.locator("#live")).to_have_text("the inbox does not answer")
    with Inbox(tmp_path, "--keep", path, port=port) as second:
        expect(page.locator("#live")).to_have_text("live")
        second.track(item(event="Later"))
        expect(rows(page)).to_have_count(2)
        expect(rows(page).first).to_contain_text("Later")
        page.close()


@pytest.mark.slow
def test_a_hundred_thousand_events_are_scrolled_without_holding_them(windows: Any, full: Inbox) -> None:
    page = windows(at=full)
    expect(rows(page).first).to_contain_text("E99999")
    page.locator("#rows").focus()
    page.keyboard.press("End")
    expect(page.locator(".row.active")).to_contain_text("E0")
    page.evaluate("document.getElementById('rows').scrollTop = 42 * 50000")
    expect(rows(page).filter(has_text="E49999")).to_have_count(1)
    full.track(item(event="Later"))
    expect(page.locator("#newer")).to_be_visible()
    assert rows(page).count() < 100
    page.locator("#newer").click()
    expect(rows(page).first).to_contain_text("Later")
    page.locator("#q").fill("m4242")
    expect(page.locator("#found")).to_have_text(re.compile("^11 of "))


@pytest.mark.parametrize(
    "width, height, scheme",
    [
        (400, 800, "light"),
        (1600, 950, "dark"),
        pytest.param(400, 800, "dark", marks=pytest.mark.slow),
        pytest.param(1000, 750, "light", marks=pytest.mark.slow),
        pytest.param(1600, 950, "light", marks=pytest.mark.slow),
    ],
)
def test_the_page_fits(width: int, height: int, scheme: str, windows: Any, inbox: Inbox, tmp_path: Path) -> None:
    """Nothing is wider than the window. With SCREENSHOTS=DIR, what it looks like is left there."""
    people = [("user_42", "Ada Lovelace", "pro"), ("user_7", "Grace Hopper", "team")]
    for user, name, plan in people:
        inbox.track(
            item("identify", user=user, email=f"{user}@example.com", traits={"name": name, "plan": plan}),
            item("group", user=user, accountId="acme", name="Acme Inc.", traits={"seats": 12}),
            *(item(event="A name that is long " * 6, user=user, properties={"path": "/a" * 200}) for _ in range(20)),
            item(event="Order Completed", user=user, properties={"amount": 99.5, "currency": "EUR"}),
        )
    inbox.post("/v1/send", {"to": "ada@example.com", "subject": "Hello", "html": "<h1>Hello</h1>"})
    page = windows(width=width, height=height, color_scheme=scheme)
    folder = Path(os.environ.get("SCREENSHOTS", str(tmp_path)))

    def look(name: str) -> None:
        wide = page.evaluate(
            "document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
        )
        assert not wide, name
        page.screenshot(path=str(folder / f"{name}-{width}-{scheme}.png"))

    expect(rows(page).first).to_contain_text("Hello")
    look("events")
    rows(page).nth(1).click()
    page.locator("#detail .json").wait_for()
    assert page.locator("#detail").bounding_box()["width"] >= 350
    assert page.locator(".list").bounding_box()["height"] >= 300
    look("detail")
    page.keyboard.press("Escape")
    if width == 400:
        page.get_by_role("button", name="Filters").click()
        page.locator("#facets").wait_for()
        look("filters")
        page.get_by_role("button", name="Filters").click()
    page.locator("nav button", has_text="Mail").click()
    rows(page).first.click()
    page.frame_locator("iframe").locator("h1").wait_for()
    look("mail")
    page.keyboard.press("Escape")
    page.locator("nav button", has_text="People").click()
    page.locator(".timeline li").first.wait_for()
    look("people")
    page.locator("nav button", has_text="Requests").click()
    page.locator("#request-list details").first.wait_for()
    page.get_by_role("button", name=re.compile("Misbehave")).click()
    look("requests")
    loaded = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert all(name.startswith((inbox.url, "data:")) for name in loaded)
