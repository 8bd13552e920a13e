"Every lesson runs from top to bottom, and what is kept in git is in order."
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from checkout import ROOT, files
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

TRITON = ("27_gpu.ipynb", "28_kernels.ipynb", "30_attempts.ipynb")
ALL = files("nbs", ".ipynb")
LESSONS = sorted(Path(p) for p in nbglob(ROOT / "nbs") if "experiments" not in Path(p).parts)


def name(path):
    return str(path.relative_to(ROOT / "nbs"))


@pytest.mark.whole
@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_lesson_runs(path, monkeypatch):
    if path.name in TRITON and not find_spec("triton"):
        pytest.skip("Triton is not installed: there are wheels for Linux alone")
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("IN_TEST", "1")
    flags = get_config().tst_flags.split()
    ok, seconds = run_nb(path, skip_flags=flags)
    assert ok, f"{name(path)} failed; the traceback is above"


@pytest.mark.parametrize("path", ALL, ids=name)
def test_kept_outputs_are_complete_and_clean(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in cells for o in c["outputs"]]
    drawn = [c for c in cells if re.search(r"^(show_maps\(|fig, )", "".join(c["source"]), re.M)]
    assert outputs or not cells, "no outputs: a reader who does not run it sees nothing"
    assert all(any("image/png" in o.get("data", {}) for o in c["outputs"]) for c in drawn), "a plot is missing"
    assert not any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs)
    assert not re.search(r"/(root|home|work|tmp)/", json.dumps(outputs)), "a machine's path is in an output"


EQUATIONS = {
    "1_method/00_dropout": [r"\qquad (1)", r"\qquad (2)", r"\qquad (3)"],
    "1_method/01_adaptive": [r"\qquad (4)", r"\qquad (5)"],
    "1_method/02_soft": [r"\qquad (6)", r"\qquad (7)", r"\qquad (8)", r"\qquad (9)"],
    "1_method/03_attentiondrop": ["Algorithm 1 by hand", "Algorithm 1 in code"],
}


@pytest.mark.parametrize("lesson", EQUATIONS)
def test_every_equation_is_followed_by_code_an_assert_and_a_plot(lesson):
    cells = json.loads((ROOT / "nbs" / f"{lesson}.ipynb").read_text())["cells"]
    text = ["".join(c["source"]) for c in cells]
    starts = [next(i for i, t in enumerate(text) if mark in t) for mark in EQUATIONS[lesson]]
    assert starts == sorted(starts)
    headings = [i for i, t in enumerate(text) if t.startswith("## ")] + [len(cells)]
    for start in starts:
        end = next(h for h in headings if h > start)
        section = [(c, t) for c, t in zip(cells[start:end], text[start:end]) if c["cell_type"] == "code"]
        assert any(re.search(r"^(assert|torch.testing.assert_close)", t, re.M) for _, t in section)
        assert any("image/png" in o.get("data", {}) for c, _ in section for o in c["outputs"])
