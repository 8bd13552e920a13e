"""The site in a real browser: `make docs-test` runs these, `make test` does not.

They need the pages in _docs/, playwright, and a Chromium (tools/docs.py finds one, or installs one).
"""
import functools
import http.server
import os
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SITE = ROOT / "_docs"
WHY_NOT = "the tests of the web site run by `make docs-test`, which builds it and brings its tools"
sys.path.insert(0, str(ROOT / "tools"))


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents and not os.environ.get("TEST_SITE"):
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        "Nothing is printed."


@pytest.fixture(scope="session")
def address():
    "Where the site is served for these tests."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def chromium():
    import docs
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=docs.browser())
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    "A fresh tab that keeps, in `tab.asked` and `tab.errors`, what the page asks for and what goes wrong in it."
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    page.asked = []
    page.errors = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    context.close()
