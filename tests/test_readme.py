"README.md is what nbs/index.ipynb says, and its links lead somewhere."
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tools"))

from readme import PICTURES, ROOT, render


def test_readme_is_in_sync():
    text, pictures = render()
    assert (ROOT / "README.md").read_text() == text, "run `make readme` and commit"
    kept = {p.relative_to(ROOT): p.read_bytes() for p in (ROOT / PICTURES).glob("index-*.png")}
    assert kept == pictures, "run `make readme` and commit"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links and not [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]


def test_the_two_commands_come_first():
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [line.split("#")[0].strip() for line in blocks[0].splitlines()] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in ("demo", "test", "lab", "help"))


def test_it_is_short():
    "A page that one reads to its end; what is longer has a notebook of its own."
    words = (ROOT / "README.md").read_text().split()
    assert len(words) <= 900
