"The notebooks of tables and figures: they refuse bad parameters before any work; without records they say what to do."
import json
import math
import re
import subprocess
import sys

import nbformat
import pytest
from checkout import ROOT, files
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from papermill import inspect_notebook

EXPERIMENTS = files("nbs/experiments", ".ipynb")
NAMES = [p.stem for p in EXPERIMENTS]


def until_the_check(path):
    "The sources of the parameters cell and of what follows, up to the check."
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert "parameters" in cells[0].metadata.get("tags", []), "the parameters come first"
    end = next(i for i, c in enumerate(cells) if "check_parameters(" in c.source or "from_globals(" in c.source)
    assert end <= 2 and all(c.source.startswith(("import ", "from ")) for c in cells[1:end]), (
        "only imports stand before the check"
    )
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


NO_VALUES = [math.nan, math.inf, -math.inf, -1, 10**30, 10**400, {}, b"x", "a\0b"]
ANY_SIZE = ("lr", "weight_decay", "lr_decay")  # a run that diverges is a run


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_a_value_that_is_none_of_a_parameter_is_named_before_any_work(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    parameters, check = until_the_check(path)
    wanted = [(name, value) for name in inspect_notebook(str(path)) for value in NO_VALUES]
    for name, value in wanted:
        if name in ANY_SIZE and value == 10**30:
            continue
        namespace = {}
        exec(parameters, namespace)
        namespace[name] = value
        with pytest.raises((TypeError, ValueError)) as error:
            exec(check, namespace)
        assert re.search(rf"(parameter '{name}'|^{name}) is ", str(error.value)), (name, value, str(error.value))


TOO_FAR = dict(alpha=1.01, seed=2**63, image=2000, n_images=2001, margin=100.5, dataset="cifar1O", datasets="cifar1O",
               stage="layer5", picture="dog", train_repeats=0, out_dir="/dev/null/x", runs_dir=__file__,
               scores_dir=__file__, records_dir=__file__, epochs=0, beta=100.1, momentum=1, width=2**16,
               batch_size=1, milestones="1.1", patience=-1, evaluate_every=0, alpha_steps=0, block_size=0,
               train_images=1, cutout_length=0, device="cuda:99", precision="float16", method="adx", run_name="../x",
               rescale="maps", granularity="pixel", drop_after="layer5", network="vgg", recipe="mine", train_width=0,
               repeats=0, dtypes="int8", shapes="1x2x3", train_batches="1", record="x.txt")
ANY_IS_RIGHT = {("train", "dataset"), ("train", "out_dir"), ("fig7_activations", "dataset"),
                ("fig7_activations", "n_images")}  # found out when data is read, when the folder is made; all there are


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_a_value_just_out_of_range_is_named_before_any_work(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    parameters, check = until_the_check(path)
    for name in set(inspect_notebook(str(path))) & TOO_FAR.keys():
        if (path.stem, name) in ANY_IS_RIGHT:
            continue
        namespace = {}
        exec(parameters, namespace)
        namespace[name] = TOO_FAR[name]
        with pytest.raises((OSError, ValueError), match=name):
            exec(check, namespace)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=NAMES)
def test_parameters_are_typed_and_explained(path):
    for name, p in inspect_notebook(str(path)).items():
        assert p["inferred_type_name"] in ("str", "int", "float", "bool") and p["help"], name


RECORD_READERS = [p for p in EXPERIMENTS if {"records_dir", "runs_dir"} & set(inspect_notebook(str(p)))]


@pytest.mark.whole
@pytest.mark.parametrize("path", RECORD_READERS, ids=[p.stem for p in RECORD_READERS])
def test_without_records_a_notebook_says_what_makes_them(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    notebook = read_nb(path)
    places = [name for name in inspect_notebook(str(path)) if name in ("records_dir", "runs_dir")]
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    given = "\n".join([notebook.cells[first].source, *(f"{name} = 'none'" for name in places)])
    CaptureShell(tmp_path).run_all(notebook, exc_stop=True, inject_code=given, inject_idx=first)
    shown = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    assert "attentiondrop-sweep" in shown or "papermill" in shown
    assert "Traceback" not in shown


def test_every_table_and_figure_of_the_paper_has_its_notebook():
    for wanted in ("table1", "table2", *(f"fig{k}" for k in range(1, 8)), "ablations", "claims", "train"):
        assert sum(name.startswith(wanted) for name in NAMES) == 1, wanted


BENCHMARK = ROOT / "nbs" / "experiments" / "benchmark.ipynb"
QUICK = dict(
    device="cpu",
    shapes="2x4x16x16 2x3x4x4",
    dtypes="float32 bfloat16",
    repeats=2,
    train_width=2,
    train_images=16,
    train_batches=8,
    train_repeats=1,
    out_dir="drawn",
    record="kept.json",
)


@pytest.mark.whole
def test_the_benchmark_records_what_it_measures(tmp_path):
    flags = [f for name, value in QUICK.items() for f in ("-p", name, str(value))]
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(BENCHMARK),
        "out.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
        *flags,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [o for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    assert not any(o.get("name") == "stderr" for o in outputs)
    assert {p.name for p in (tmp_path / "drawn").iterdir()} == {
        f"benchmark_{n}.{kind}" for n in ("time", "ratios") for kind in ("png", "svg")
    }

    kept = json.loads((tmp_path / "kept.json").read_text())
    layers = {(r["dtype"], r["shape"], r["layer"]): r for r in kept["layers"]}
    names = {layer for _, _, layer in layers}
    assert {
        "nn.Dropout",
        "AttentionDrop",
        "AttentionDrop, eager",
        "naive AttentionDrop",
        "DropBlock2d, torchvision",
    } < names
    halves = {"AttentionDrop, bfloat16", "AttentionDrop, float16"}  # rows of float32 alone
    assert layers.keys() == {
        (d, s, n)
        for d, here in (("float32", names), ("bfloat16", names - halves))
        for s in ("2x4x16x16", "2x3x4x4")
        for n in here
    }
    for (dtype, shape, name), r in layers.items():
        total, dropout = r["seconds"]["both"], layers[dtype, shape, "nn.Dropout"]["seconds"]["both"]
        assert r["rounds"] == 2 and 0 < total["q1"] <= total["median"] <= total["q3"]
        assert r["over_dropout"]["value"] == pytest.approx(total["median"] / dropout["median"])
        size = 4 if dtype == "float32" and name not in halves else 2
        assert r["bytes"] == 4 * {"2x4x16x16": 512, "2x3x4x4": 24}[shape] * size
    copy, dropout = (layers["float32", "2x4x16x16", n] for n in ("device copy", "nn.Dropout"))
    assert copy["seconds"]["backward"] is None and copy["saved"] == 0
    assert dropout["saved"] in (dropout["bytes"], dropout["bytes"] // 4), "a mask: a float or a byte for each element"
    assert {r["loop"] for r in kept["training"]["loops"]} == {"ours, no layer", "ours, AttentionDrop", "plain"}
    assert {b["verdict"] for b in kept["bars"]} == {"not measured"}, "these sizes are not those of the bars"


def test_a_bar_is_met_missed_or_not_measured():
    (source,) = (c.source for c in nbformat.read(BENCHMARK, 4).cells if "def judge(" in c.source)
    defined = {}
    exec(source, defined)
    judge = defined["judge"]
    row = judge("a / b", "cpu", {"value": 0.3}, "≤", 0.4, 0.25, "cpu")
    assert (row["verdict"], row["stretch_verdict"]) == ("met", "missed")
    row = judge("a / b", "cuda", {"value": 0.3}, "≥", 0.35, None, "cuda")
    assert (row["verdict"], row["stretch_verdict"]) == ("missed", None)
    for measured, here in (({"value": 0.3}, "cpu"), (None, "cuda")):
        row = judge("a / b", "cuda", measured, "≤", 0.4, 0.25, here)
        assert (row["measured"], row["verdict"], row["stretch_verdict"]) == (None, "not measured", "not measured")


BAD = [
    ("shapes", "64x32x32"),
    ("shapes", "2x4x0x8"),
    ("shapes", ""),
    ("dtypes", "float8"),
    ("dtypes", ""),
    ("device", "tpu"),
    ("repeats", 0),
    ("train_width", "0"),
    ("train_width", "8 wide"),
    ("train_images", 1),
    ("train_batches", "1"),
    ("train_batches", "513"),
    ("train_batches", "many"),
    ("train_repeats", 0),
    ("record", "kept.txt"),
]


@pytest.mark.parametrize("name, value", BAD)
def test_the_benchmark_names_a_bad_value(name, value):
    parameters, check = until_the_check(BENCHMARK)
    namespace = {}
    exec(parameters, namespace)
    namespace |= {"device": "cpu", name: value}
    with pytest.raises(ValueError, match=f"parameter '{name}' is {value!r}"):
        exec(check, namespace)
