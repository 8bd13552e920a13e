"What a reader does with the site: search, the menu, light and dark, folded cells, the explorer."
import pytest
from docs import NBS


def search(tab, question):
    "The results for a question typed into the search box."
    tab.keyboard.press("/")
    tab.keyboard.type(question)
    tab.wait_for_selector(".search-result")
    return tab.locator(".search-result")


@pytest.mark.parametrize("question, page", [("Eq. 9", "02_soft.html"), ("percentile", "")])
def test_search_finds(question, page, tab, address):
    tab.goto(address + "1_method/03_attentiondrop.html")
    results = search(tab, question)
    first = results.first
    assert question.lower() in first.inner_text().lower() and page in first.get_attribute("href")
    first.click()
    tab.wait_for_load_state()
    assert question.lower() in tab.text_content("main").lower() and not tab.errors  # in a folded cell, too


def test_search_says_when_it_finds_nothing(tab, address):
    tab.goto(address)
    tab.keyboard.press("/")
    tab.keyboard.type("xyzzyx")
    tab.wait_for_selector(".search-none")


def test_dark_is_remembered(tab, address):
    tab.goto(address)
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click(".quarto-color-scheme-toggle")
    tab.wait_for_selector("html.quarto-dark", state="attached")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.goto(address + "notation.html")
    assert light != dark == tab.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_menu_opens_on_a_phone(tab, address):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(address)
    lesson = tab.locator("#quarto-sidebar a", has_text="00 · Dropout")
    assert lesson.bounding_box()["x"] < 0
    tab.click(".quarto-btn-toggle")
    tab.wait_for_function("document.querySelector('#quarto-sidebar').getBoundingClientRect().left >= 0")
    lesson.click()
    tab.wait_for_url("**/1_method/00_dropout.html")


def test_a_part_folds_by_keyboard(tab, address):
    tab.goto(address)
    part = tab.locator("#quarto-sidebar a[role=button]", has_text="2 · The layers").first
    part.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_function("each => each.getAttribute('aria-expanded') === 'false'", arg=part.element_handle())


def test_folded_cells_open(tab, address):
    tab.goto(address + "1_method/01_adaptive.html")
    folded = tab.locator("details.code-fold").first
    assert not folded.locator("pre").first.is_visible()
    folded.locator("summary").click()
    assert folded.locator("pre").first.is_visible()


def test_names_lead_to_the_reference(tab, address):
    tab.goto(address + "1_method/00_dropout.html")
    tab.click("main a:has(code:text-is('sample_gamma')) >> nth=0")
    tab.wait_for_url("**/reference/method/dropout.html#sample_gamma")


PICTURE = """() => [...document.querySelectorAll('.attentiondrop-explorer canvas, .attentiondrop-explorer svg')]
  .map((each) => each.toDataURL ? each.toDataURL() : each.outerHTML).join('|')"""


@pytest.mark.skipif(not (NBS / "explorer.js").exists(), reason="there is no explorer in nbs/")
def test_the_explorer_moves(tab, address):
    tab.goto(address + "explorer.html")
    slider = tab.locator(".attentiondrop-explorer input[type=range]:is([name=alpha], #alpha)").first
    slider.wait_for()
    tab.wait_for_function("document.querySelector('.attentiondrop-explorer canvas, .attentiondrop-explorer svg')")
    tab.wait_for_timeout(500)
    picture = tab.evaluate(PICTURE)
    numbers = tab.inner_text(".attentiondrop-explorer >> nth=0")
    slider.focus()
    tab.keyboard.press("End")
    tab.wait_for_timeout(500)
    assert tab.evaluate(PICTURE) != picture and tab.inner_text(".attentiondrop-explorer >> nth=0") != numbers
    assert not tab.errors
