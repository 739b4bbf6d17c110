"""Debian's Chromium, driven by Playwright, and its servers (the fixture ``machine`` of tests/conftest.py)."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request, Response

CHROMIUM = shutil.which("chromium")
# No sandbox: CI runs as root in a container. The others stop its own requests: it must connect to loopback only.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
SCREENSHOTS = Path(os.environ.get("DORA_SCREENSHOTS", "build/screenshots"))
PATIENCE_SECONDS = 90
PRESS_AGAIN_SECONDS = 15


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One tab per module, not per session: Playwright keeps an event loop running in this thread, which breaks other modules' tests."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; on Debian: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        yield page
        browser.close()


@pytest.fixture
def shot(page: Page) -> Callable[[str], None]:
    """``shot("name")`` saves a screenshot, for people."""

    def take(name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take


class Form:
    """A form that Prefect's UI has drawn from a JSON schema; fields by their titles."""

    def __init__(self, page: Page):
        self._page = page

    def field(self, title: str) -> Locator:
        label = self._page.locator(".schema-form-property__label", has_text=re.compile(rf"^{title}( \(Optional\))?$"))
        return self._page.locator(".schema-form-property").filter(has=label).last.locator("> .p-label__body")

    def type(self, title: str, text: str) -> None:
        self.field(title).locator("input, textarea").first.fill(text)

    def choose(self, title: str, option: str) -> None:
        self.field(title).locator("button").first.focus()
        self._page.keyboard.press("ArrowDown")
        self._page.locator(".p-select-option", has_text=re.compile(rf"^{option}$")).click()

    def submit(self, leads_to: str) -> None:
        """Press Submit and wait for the page that follows.

        As a person would, press it again if nothing happens, and if the server is too busy (a busy SQLite is answered with 503:
        the form says so and stays).

        Args:
            leads_to: regular expression that the address of the next page matches.

        Raises:
            AssertionError: it was refused, or no page followed; with the messages of server and page.
        """
        sent: list[Request] = []
        answers: list[Response] = []
        posts = ("/schemas/validate", "/create_flow_run")
        hear: dict[str, Callable[[Any], None]] = {
            "request": lambda request: sent.append(request) if request.url.endswith(posts) else None,
            "response": lambda answer: answers.append(answer) if answer.url.endswith(posts) else None,
        }
        for event, listener in hear.items():
            self._page.on(event, listener)
        button, pressed, deadline = self._page.get_by_role("button", name="Submit"), -math.inf, time.monotonic() + PATIENCE_SECONDS
        while not re.search(leads_to, self._page.url):
            busy = any(answer.status >= 500 for answer in answers)
            if time.monotonic() > deadline or any(400 <= answer.status < 500 for answer in answers):
                told = [f"{answer.status} {answer.url}: {answer.text()[:1000]}" for answer in answers]
                raise AssertionError("\n".join([f"still at {self._page.url}", *told, self._page.locator("main").inner_text()]))
            if busy or (not sent and time.monotonic() > pressed + PRESS_AGAIN_SECONDS):
                sent.clear(), answers.clear()
                button.scroll_into_view_if_needed()
                button.click()
                pressed = time.monotonic()
            self._page.wait_for_timeout(200)
        for event, listener in hear.items():
            self._page.remove_listener(event, listener)


@pytest.fixture
def form(page: Page) -> Form:
    return Form(page)
