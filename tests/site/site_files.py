"The pages of the built site, read as files."
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath

SITE = Path(__file__).resolve().parent.parent.parent / "_docs"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))


class Reader(HTMLParser):
    "Collects a page's ids, its links, what it loads, the links of its sidebar, and those to turn the page."

    def __init__(self, name):
        super().__init__()
        self.ids = set()
        self.links = []
        self.sidebar = []
        self.turns = []
        self.feed((SITE / name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        link = attributes.get("href") or attributes.get("src")
        if link and not link.startswith("data:"):
            self.links.append(link)
        if tag == "a" and link and "sidebar-link" in attributes.get("class", ""):
            self.sidebar.append(link)
        if tag == "a" and attributes.get("class") == "pagination-link":
            self.turns.append(link)


def target(name, link):
    "The file of the site that a link of the page `name` leads to, and the anchor."
    path, _, anchor = link.partition("#")
    return normpath(join(dirname(name), path)) if path else name, anchor


def order():
    "The pages in the order of the sidebar."
    return list(dict.fromkeys(target("index.html", link)[0] for link in Reader("index.html").sidebar))
