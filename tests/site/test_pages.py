"Each page in a real Chromium: nothing from other hosts, nothing broken, formulas, pictures, phones, screen readers."
import re

import pytest
from site_files import PAGES, Reader, order, target

FORMULAS = """() => {
  const marked = [...document.querySelectorAll('main .math, #TOC .math')];
  const text = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.parentElement.closest('code, pre, script, style, .katex')) text.push(node.data);
  }
  return {
    unrendered: marked.filter((each) => !each.querySelector('.katex')).map((each) => each.textContent),
    wrong: [...document.querySelectorAll('.katex-error')].map((each) => each.textContent),
    raw: text.filter((each) => /\\$[^\\s$][^$]*\\$|\\\\[([]|\\\\(frac|beta|odot)/.test(each)),
  };
}"""
PICTURES = """async () => {
  const pictures = [...document.querySelectorAll('img')];
  await Promise.all(pictures.map((each) => each.decode().catch(() => null)));
  return pictures.filter((each) => !each.naturalWidth).map((each) => each.src.slice(0, 80));
}"""
TOO_WIDE = """() => [...document.querySelectorAll('main *, header *, footer *')]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1
    && !each.closest('pre, .sd-table, .cell-output, .math, #quarto-sidebar, .katex, .dropdown-menu'))
  .slice(0, 3).map((each) => each.outerHTML.slice(0, 120))"""
ONE_OF_A_KIND = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll('pre span')) {
    if (seen.has(token.className)) token.replaceWith(...token.childNodes);
    else seen.add(token.className);
  }
}"""
FINISHED = "() => document.fonts.status === 'loaded' && !document.querySelector('main .math:not(:has(.katex))')"


def axe_complaints(tab, whole=False, **options):
    "What axe-core calls serious or critical; the sidebar, the same on all pages, on a `whole` page alone."
    from axe_playwright_python.sync_playwright import Axe

    left_out = [[".katex-html"]] if whole else [[".katex-html"], ["#quarto-sidebar"]]  # KaTeX hides the former
    options = {"resultTypes": ["violations"], **options}
    found = Axe().run(tab, context={"exclude": left_out}, options=options).response["violations"]
    return [
        (each["id"], node["html"][:150], node.get("failureSummary", "")[:200])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"][:3]
    ]


def settle(tab, url):
    "Open a page and wait until it stands still."
    tab.goto(url, wait_until="load")
    tab.wait_for_function(FINISHED, timeout=20000)
    tab.wait_for_timeout(150)  # what the page does a moment after it is loaded


@pytest.mark.parametrize("name", PAGES)
def test_page(name, tab, address):
    wrong = {}
    settle(tab, address + name)
    wrong["pictures that did not load"] = tab.evaluate(PICTURES)
    wrong["formulas"] = [(key, value) for key, value in tab.evaluate(FORMULAS).items() if value]
    tab.evaluate(ONE_OF_A_KIND)  # one token of each colour is enough for axe, which looks at each for long
    whole = name in ("index.html", "reference/method/dropout.html")
    wrong["axe, light"] = axe_complaints(tab, whole)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_selector("html.quarto-dark", state="attached")
    tab.wait_for_timeout(300)  # colours fade
    wrong["axe, dark"] = axe_complaints(tab, whole, runOnly=["color-contrast", "link-in-text-block"])
    tab.set_viewport_size({"width": 390, "height": 844})
    width = tab.evaluate("document.documentElement.scrollWidth")
    wrong["wider than a phone"] = [] if width <= 390 else [width, *tab.evaluate(TOO_WIDE)]
    wrong["other hosts"] = [url for url in tab.asked if not url.startswith((address, "data:"))]
    wrong["errors"] = tab.errors
    assert not {what: found for what, found in wrong.items() if found}


def test_previous_and_next():
    names = order()
    for place, name in enumerate(names):
        expected = [names[place - 1]] if place else []
        expected += names[place + 1 : place + 2]
        assert [target(name, link)[0] for link in Reader(name).turns] == expected, name


def test_the_sidebar_has_every_page_and_the_parts_in_order():
    assert sorted(order()) == sorted(PAGES)
    lessons = [name for name in order() if re.match(r"[1-5]_", name)]
    assert lessons == sorted(lessons) and len(lessons) >= 31
