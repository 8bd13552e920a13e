"Every link of every page leads somewhere: to a page and an anchor of the site, or to a file of the repository."
from functools import cache
from urllib.parse import unquote

import docs
import pytest
from site_files import PAGES, SITE, Reader, target


@cache
def read(name):
    return Reader(name)


@pytest.mark.parametrize("name", PAGES)
def test_links(name):
    broken = []
    for link in read(name).links:
        if link.startswith(docs.REPOSITORY):
            file = unquote(link.removeprefix(docs.REPOSITORY + "/").partition("#")[0])
            if not (docs.ROOT / file).exists():
                broken.append(link)
        elif not link.startswith(("http://", "https://", "mailto:")):
            file, anchor = map(unquote, target(name, link))
            exists = (SITE / file).is_file() or (SITE / file / "index.html").is_file()
            if not exists or (anchor and anchor not in read(file).ids):
                broken.append(link)
    assert not broken


def test_no_page_names_a_notebook_or_loads_from_elsewhere():
    for name in PAGES:
        links = read(name).links
        outside = (docs.REPOSITORY, "https://colab.research.google.com/", "https://mybinder.org/")
        assert not [link for link in links if ".ipynb" in link and not link.startswith(outside)], name
        text = (SITE / name).read_text(encoding="utf-8")
        assert "cdn." not in text and "googleapis" not in text, name
