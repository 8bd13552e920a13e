"What the web site of the book is made of. The site itself is tested by `make docs-test` (tests/site)."
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from checkout import ROOT, files

sys.path.append(str(Path(__file__).parent.parent / "tools"))

import docs

NOTEBOOKS = files("nbs", ".ipynb")


def test_every_figure_says_what_it_shows_to_somebody_who_cannot_see_it():
    missing = {str(path.relative_to(ROOT)): docs.figures_without_alt(path) for path in NOTEBOOKS}
    missing = {path: lines for path, lines in missing.items() if lines}
    assert not missing, f"add a first line `#| fig-alt: ...`: {json.dumps(missing, indent=1)}"


def test_a_figure_without_alt_text_is_found(tmp_path):
    picture = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
    sources = ["#| fig-alt: A cat.\nshow()", "#| fig-alt:\nshow(1)", "plain()"]
    outputs = [[picture], [picture], []]
    cells = [{"cell_type": "code", "source": s, "outputs": o} for s, o in zip(sources, outputs, strict=True)]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert docs.figures_without_alt(tmp_path / "a.ipynb") == ["show(1)"]


def test_a_cell_keeps_the_directives_that_a_page_knows():
    source = '#| export\n#| code-fold: true\n#| code-summary: "Checks: all"\n#| fig-alt: Two maps: a cat\'s\nf()'
    shown = docs.for_the_page(source)
    assert shown == '#| code-fold: true\n#| code-summary: "Checks: all"\n#| fig-alt: "Two maps: a cat\'s"\nf()'
    assert docs.prepare_cell({"cell_type": "code", "source": "#| default_exp a", "outputs": []}, ROOT) is None


def test_titles_carry_numbers():
    assert docs.page_title("Dropout", Path("00_dropout.ipynb")) == "00 · Dropout"
    assert docs.page_title("Appendix: the explorer", Path("explorer.ipynb")) == "The explorer"


def test_links_lead_to_pages_or_to_the_repository():
    lesson = docs.NBS / "1_method" / "00_dropout.ipynb"
    text = "[a](01_adaptive.ipynb#A-B) [b](../../LICENSE) [c](http://a.b) [d](#E) [f](../experiments/train.ipynb)"
    assert docs.links_of_the_site(text, lesson) == (
        f"[a](01_adaptive.ipynb#a-b) [b]({docs.REPOSITORY}/LICENSE) [c](http://a.b) [d](#e) "
        "[f](../experiments/train.ipynb)"
    )


def test_an_anchor_of_jupyter_is_one_of_the_site():
    assert docs.site_anchor("Rescaling:-Eq.-9-as-printed,-and-otherwise") == "rescaling-eq.-9-as-printed-and-otherwise"


def test_numbers_that_belong_together_stay_on_a_line():
    assert docs.numbers_together("| 1.2 ± 0.3 | -1 [-0.1, +2] | [1, 2, 3], [a, b] |") == (
        "| 1.2\u00a0±\u00a00.3 | -1 [-0.1,\u00a0+2] | [1, 2, 3], [a, b] |"
    )


def test_a_long_signature_has_a_line_for_each_argument():
    assert docs.wrapped_signature("f", "(x, y=(1, 2)) -> int") == "f(x, y=(1, 2)) -> int"
    long = "(x: dict[str, int], y: tuple = (1, 2), *, a_long_name: str = 'a value that is long too') -> Tensor"
    assert docs.wrapped_signature("f", long).splitlines() == [
        "f(",
        "    x: dict[str, int],",
        "    y: tuple = (1, 2),",
        "    *,",
        "    a_long_name: str = 'a value that is long too',",
        ") -> Tensor",
    ]


def test_a_docstring_that_explains_arguments_becomes_a_list():
    text = "Eq. 3.\n\nx: maps; planes\nwith NaN pass. Note: none.\nx, mask: both"
    assert docs.docstring_markdown(text, ["x", "mask"]) == (
        "Eq. 3.\n\n- `x`: maps; planes\nwith NaN pass. Note: none.\n- `x, mask`: both"
    )


def test_every_module_has_a_page_in_the_order_of_the_lessons():
    modules = [module for module, _ in docs.lesson_modules()]
    assert modules[0] == "method.dropout" and modules[-1] == "pictures" and len(modules) >= 31
    assert docs.reference_path("method.dropout") == "reference/method/dropout.qmd"
    assert docs.reference_path("checks") == "reference/appendices/checks.qmd"


def packed(**named):
    "A tarball as npm makes them."
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text in named.items():
            member = tarfile.TarInfo(f"package/{name.replace('_', '.')}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return data.getvalue()


def test_a_tarball_is_unpacked_where_its_checksum_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(docs, "TARBALLS", [("@a/font", "1.0", "sha512-wrong", r"a\.css")])
    monkeypatch.setattr(docs, "tarball", lambda name, version: packed(a_css=b"a", b_css=b"b"))
    with pytest.raises(SystemExit, match="checksum"):
        docs.fetch_assets()
    docs.unpack(docs.tarball("@a/font", "1.0"), r"a\.css", docs.cached("@a/font", "1.0"))
    assert [path.name for path in (tmp_path / "cache").rglob("*.css")] == ["a.css"]
    docs.fetch_assets()  # what is there is not fetched
