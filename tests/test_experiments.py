"The notebooks of tables and figures: they refuse bad parameters before any work, and without records they say what makes them."
import json
import subprocess
import sys

import nbformat
import pytest
from checkout import ROOT, files
from papermill import inspect_notebook

EXPERIMENTS = files("nbs/experiments", ".ipynb")
NAMES = [p.stem for p in EXPERIMENTS]


def until_the_check(path):
    "The sources of the parameters cell and of what follows, up to the check."
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert "parameters" in cells[0].metadata.get("tags", []), "the parameters come first"
    end = next(i for i, c in enumerate(cells) if "check_parameters(" in c.source or "from_globals(" in c.source)
    assert end <= 2 and all(c.source.startswith(("import ", "from ")) for c in cells[1:end]), "only imports stand before the check"
    return cells[0].source, "\n".join(c.source for c in cells[1 : end + 1])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_bad_parameters_are_named_before_any_work(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # where the default folders are
    parameters, check = until_the_check(path)
    good = {}
    exec(parameters, good)
    exec(check, good)  # the defaults pass
    for name in inspect_notebook(str(path)):
        namespace = {}
        exec(parameters, namespace)
        namespace[name + "z"] = namespace[name]
        with pytest.raises((TypeError, ValueError), match=f"{name}z"):
            exec(check, namespace)
        namespace = {}
        exec(parameters, namespace)
        namespace[name] = ["no", "list", "is", "taken"]
        with pytest.raises((TypeError, ValueError), match=name):
            exec(check, namespace)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_parameters_are_typed_and_explained(path):
    for name, p in inspect_notebook(str(path)).items():
        assert p["inferred_type_name"] in ("str", "int", "float", "bool") and p["help"], name


RECORD_READERS = [p for p in EXPERIMENTS if {"records_dir", "runs_dir"} & set(inspect_notebook(str(p)))]


@pytest.mark.parametrize("path", RECORD_READERS, ids=[p.stem for p in RECORD_READERS])
def test_without_records_a_notebook_says_what_makes_them(path, tmp_path):
    (tmp_path / "none").mkdir()
    flags = [f for name in inspect_notebook(str(path)) if name in ("records_dir", "runs_dir") for f in ("-p", name, "none")]
    command = [sys.executable, "-m", "papermill", str(path), "out.ipynb", "-k", "python3", "--no-progress-bar", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.dumps([c.get("outputs", []) for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"]])
    assert "attentiondrop-sweep" in shown or "papermill" in shown
    assert "Traceback" not in shown


def test_every_table_and_figure_of_the_paper_has_its_notebook():
    for wanted in ("table1", "table2", *(f"fig{k}" for k in range(1, 8)), "ablations", "train"):
        assert sum(name.startswith(wanted) for name in NAMES) == 1, wanted
