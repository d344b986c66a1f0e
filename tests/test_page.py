"""The page in a real browser: steering at once, the address as state, keys, phone, dark mode."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from served import Served, serving, tiny_chat

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no browser here")]
OFF = "I am sorry, but I cannot talk about the lighthouse."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_chat(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """A page that may ask nobody but its server, and complains of nothing."""
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
    page = context.new_page()
    problems: list[str] = []
    page.on(
        "request",
        lambda r: None if r.url.startswith((served.url, "data:")) else problems.append(r.url),
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda m: problems.append(m.text) if m.type == "error" and "400" not in m.text else None,
    )
    yield page
    context.close()
    assert problems == []


def open_page(page: Any, url: str) -> None:
    page.goto(url)
    settled(page)


def settled(page: Any) -> None:
    """Wait until both texts are whole."""
    page.wait_for_timeout(50)  # the page notices a change at its next frame
    page.wait_for_selector("section.columns[aria-busy=false]")


def text(page: Any, name: str) -> str:
    return str(page.get_by_test_id(name).inner_text())


def test_edits_change_the_text_and_their_switch_brings_it_back(page: Any, served: Served) -> None:
    open_page(page, served.url)
    base = text(page, "base")
    assert base == OFF
    assert text(page, "steered") != base
    assert page.locator("mark").count() > 0
    page.get_by_role("switch").uncheck()
    settled(page)
    assert text(page, "steered") == base
    assert page.locator("mark").count() == 0


def test_the_address_alone_brings_everything_back(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.get_by_label("Prompt").fill("Who has the boats?")
    page.get_by_label("Strength").fill("-1.5")
    settled(page)
    before = (page.url, text(page, "base"), text(page, "steered"))
    page.goto("about:blank")
    open_page(page, before[0])
    assert (page.url, text(page, "base"), text(page, "steered")) == before


def test_what_the_server_refuses_is_shown_at_its_edit(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.get_by_label("Feature").fill("2/99999")
    page.get_by_label("Feature").blur()
    settled(page)
    assert "512 features" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Feature").get_attribute("aria-invalid") == "true"


def test_the_copied_request_gives_the_same_text(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.get_by_role("button", name="as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    body = command.split(" -d ")[1].strip("'")
    answer = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
    ).json()
    assert answer["choices"][0]["message"]["content"].strip() == text(page, "steered")
    page.get_by_role("button", name="as command").click()
    assert page.evaluate("navigator.clipboard.readText()").startswith("saescope steer ")


def test_keys_reach_the_prompt_and_the_switch(page: Any, served: Served) -> None:
    open_page(page, served.url)
    page.keyboard.press("s")
    assert not page.get_by_role("switch").is_checked()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_a_phone_and_a_dark_screen_show_all(browser: Any, served: Served, tmp_path: Path) -> None:
    context = browser.new_context(
        viewport={"width": 390, "height": 800}, color_scheme="dark", device_scale_factor=2
    )
    page = context.new_page()
    open_page(page, served.url)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert max(map(int, shade[4:-1].split(","))) < 60
    context.close()


def test_no_other_site_may_frame_the_page_or_add_to_it(served: Served) -> None:
    answer = httpx.get(served.url)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert httpx.head(f"{served.url}/page.js").status_code == 200
