"""Pages in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
FAKE_CAMERA = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
HERE = ("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:", "http://[::1]:", "ws://[::1]:")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@contextmanager
def open_page(url: str, width: int = 1100, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A page that fails the test when its console reports an error or it asks another host for anything."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_CAMERA])
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            permissions=["camera"],
        )
        page = context.new_page()
        page.set_default_timeout(120_000)  # a loaded machine is slow, not wrong
        errors: list[str] = []
        page.route(lambda address: not address.startswith(HERE), lambda route: errors.append(route.request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
        assert not errors, errors


def wait_until(page: Any, condition: str, seconds: float = 20) -> None:
    """Poll a condition (Playwright's own way needs eval, which a page's security policy may forbid)."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        page.wait_for_timeout(50)
