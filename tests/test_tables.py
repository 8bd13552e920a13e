"Records -> tables: statistics on any numbers, and the notebooks on records made here, with few and with none."
import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import stats

from attentiondrop_nb.evidence import figures, statistics, tables
from attentiondrop_nb.training.config import Config, make_config, run_name

EXPERIMENTS = ROOT / "nbs" / "experiments"
PAPER_TABLES, PAPER_CURVES = ("table1_cifar", "table2_svhn"), ("fig4_cifar_training", "fig5_svhn_training")
NOTEBOOKS = (*PAPER_TABLES, *PAPER_CURVES, "ablations", "claims")


# Statistics


shares = st.dictionaries(st.integers(0, 6), st.integers(0, 1000).map(lambda k: k / 1000), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shares, shares)
def test_paired_difference_is_that_of_scipy_over_the_common_seeds(a, b):
    seeds = sorted(a.keys() & b.keys())
    d = statistics.paired_difference(a, b)
    assert d.n == len(seeds) and (
        d.n == 0 or math.isclose(d.mean, sum(a[s] - b[s] for s in seeds) / d.n, abs_tol=1e-12)
    )
    gaps = {round(1000 * (a[s] - b[s])) for s in seeds}
    if len(gaps) < 2:
        assert math.isnan(d.low) and math.isnan(d.high) and statistics.verdict(d).startswith("cannot be told")
        return
    want = stats.ttest_rel([a[s] for s in seeds], [b[s] for s in seeds]).confidence_interval()
    assert (d.low, d.high) == pytest.approx(tuple(want), abs=1e-12)
    opposite = {"holds": "does not hold", "does not hold": "holds"}
    back = statistics.verdict(statistics.paired_difference(b, a))
    assert back == opposite.get(statistics.verdict(d), statistics.verdict(d))


def test_a_claim_on_several_pairs_is_as_strong_as_its_weakest_pair():
    up, down, unsure = (statistics.Difference(m, m - 1, m + 1, 3) for m in (2, -2, 0))
    assert statistics.verdict(up, up) == "holds"
    assert statistics.verdict(up, unsure) == "cannot be told from 3 runs of each"
    assert statistics.verdict(up, unsure, down) == "does not hold"
    assert statistics.verdict(up, unsure._replace(n=2)) == "cannot be told from 2 runs of each"


# Records


def record(seed=0, final=0.9, *, best=None, train=0.95, status="finished", **parameters):
    "A record of three epochs that ends with the accuracies given."
    config = make_config({"dataset": "cifar10", "recipe": "demo", "seed": seed} | parameters)
    accuracy = [final / 2, best or final, final]
    rest = dict(train_loss=1.0, test_loss=1.0, lr=0.1, alpha=0.0, seconds=1.0)
    epochs = [dict(test_accuracy=a, train_accuracy=train * f, **rest) for a, f in zip(accuracy, (0.5, 0.9, 1))]
    return dict(
        schema=2,
        parameters=asdict(config),
        data=dict(train=50_000, test=10_000, classes=["a", "b"], mean=[0.5] * 3, std=[0.2] * 3),
        epochs=epochs,
        final=dict(test_accuracy=final, train_accuracy=train),
        best=dict(test_accuracy=max(accuracy)),
        environment=dict(device="made up", precision="float32"),
        seconds=3.0,
        status=status,
    )


def write(folder, records):
    for r in records:
        path = folder / run_name(Config(**r["parameters"])) / "record.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(r))
    return str(folder)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records").mkdir()
    return tmp_path


def test_records_flat_and_in_folders_are_both_read_and_nothing_else(here):
    a, b = record(0), record(1)
    (here / "records" / "a.json").write_text(json.dumps(a))
    write(here / "records", [b])
    (here / "records" / "notes.txt").write_text("no record, and no json")
    (here / "records" / "deep" / "er").mkdir(parents=True)
    (here / "records" / "deep" / "er" / "record.json").write_text("not looked at")
    assert sorted(r["parameters"]["seed"] for r in tables.load_records("records")) == [0, 1]


DAMAGED = [
    ("record.json", "", "damaged or not ours"),
    ("record.json", "[]", "damaged or not ours"),
    ("record.json", "{}", "schema: Field required"),
    ("bad.json", '{"schema": 2', "Expecting"),
    ("bad.json", '{"schema": 2}', "Field required"),
    ("bad.json", '{"schema": 1}', "schema 1"),
    ("bad.json", '{"schema": "2"}', "schema '2'"),
    ("cifar10-ad-w8-e10-s0-9a94a066.json", "{}", "damaged or not ours"),
]


@pytest.mark.parametrize("name, text, reason", DAMAGED)
def test_a_damaged_record_is_an_error_that_names_it(here, name, text, reason):
    write(here / "records", [record(0)])
    path = here / "records" / ("bad" if name == "record.json" else "") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        tables.load_records("records")
    assert str(path.relative_to(here)) in str(error.value)


def test_what_is_no_record_is_passed_over_and_listed_in_one_line(here, capsys):
    write(here / "records", [record(0)])
    texts = {"benchmark.json": "{}", "list.json": "[1]", "empty.json": "", ".hidden.json": '{"schema"'}
    for name, text in texts.items():
        (here / "records" / name).write_text(text)
    (here / "records" / ".trash").mkdir()
    (here / "records" / ".trash" / "record.json").write_text("{")
    assert len(tables.load_records("records")) == 1
    assert capsys.readouterr().out == "passed over, no record of a run: benchmark.json, empty.json, list.json\n"


def test_a_tilde_is_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    write(here / "records", [record(0)])
    assert len(tables.load_records("~/records")) == 1
    figures.save_scores("~/scores.json", {}, tables.runs_frame([record(0)]))
    assert (here / "scores.json").is_file() and figures.load_scores("~/scores.json")[1]


def test_a_figure_is_the_same_file_at_every_save(here):
    texts = []
    for _ in range(2):
        fig, ax = plt.subplots()
        ax.fill_between([0, 1], [0, 1])
        ax.set_clip_on(True)
        texts.append([path.read_bytes() for path in figures.save_figure(fig, "drawn", "a")])
        plt.close(fig)
    assert texts[0] == texts[1]


def test_one_run_twice_does_not_count_as_two(here):
    a = record(0)
    write(here / "records", [a])
    (here / "records" / "copy.json").write_text(
        json.dumps(a | dict(parameters=a["parameters"] | dict(out_dir="x", data_dir="y", run_name="z")))
    )
    with pytest.raises(ValueError, match="copy.json.*same run"):
        tables.load_records("records")


CHANGES = [
    dict(width=8),
    dict(epochs=3),
    dict(lr=0.05),
    dict(network="preact_resnet18"),
    dict(weight_decay=0.0),
    dict(patience=3),
]


def sizes(*records):
    "How many runs each setting of the records has."
    return [len(group) for group in tables.settings(tables.runs_frame(records), "cifar10")]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_runs_that_were_not_trained_alike_are_not_in_one_table(change):
    assert sizes(record(0, method="none"), record(1, method="none"), record(0, **change)) == [2, 1]


def test_other_numbers_of_images_are_another_setting_and_places_are_not():
    fewer = record(0) | dict(data=record(0)["data"] | dict(train=5000))
    elsewhere = record(1, out_dir="x", data_dir="y", run_name="z")
    assert sizes(record(0), fewer, elsewhere) == [2, 1]


def test_a_row_of_the_frame_is_what_its_record_says():
    made = record(3, 0.9, best=0.95, train=0.97, method="dropblock", cutout=True)
    frame = tables.runs_frame([made, record(1, status="diverged")])
    row = frame.loc[run_name(Config(**made["parameters"]))]
    same = ("method", "cutout", "seed", "alpha", "beta", "block_size", "width", "alpha_steps", "milestones")
    assert {k: row[k] for k in same} == {k: made["parameters"][k] for k in same}
    assert (row["training"], row["final"], row["best"], row["departures"]) == (0.97, 0.9, 0.95, "")
    assert frame["status"].tolist() == ["finished", "diverged"] and row["trained_on"] == "made up"
    shared = tables.setting(frame)
    assert shared["train_images"] == 50_000 and shared["precision"] == "float32" and shared["alpha_steps"] is None
    assert not shared.keys() & {"method", "cutout", "seed", "alpha", "out_dir", "device", "evaluate_every"}


def test_two_runs_of_a_seed_in_one_row_are_an_error_that_says_how_they_differ():
    frame = tables.runs_frame([record(0), record(1), record(1, beta=50.0, rescale="tensor"), record(0, method="none")])
    with pytest.raises(ValueError, match="two runs of seed 1 in one row; they differ in beta, rescale"):
        tables.compare(frame, tables.AD, tables.NONE)


def test_every_option_is_seen_as_a_departure_and_no_default_is():
    departures = lambda **parameters: tables.runs_frame([record(**parameters)])["departures"].iloc[0]
    for method in ("none", "dropout", "spatial", "dropblock", "am", "sm", "ad", "released"):
        for cutout in (False, True):
            assert departures(method=method, cutout=cutout) == ""
    changes = dict(alpha=0.3, beta=50.0, granularity="map", rescale="literal", drop_after="layer3")
    assert all(departures(**{k: v}) == k for k, v in changes.items())
    assert departures(**changes) == " ".join(changes)
    assert departures(method="dropblock", block_size=3) == "block_size"
    assert departures(cutout=True, cutout_length=8) == "cutout_length"


# Epochs that were not evaluated


def with_gaps(made, k):
    "The record as it is if the test images are looked at after every `k`-th epoch and the last."
    gap = dict(test_accuracy=None, test_loss=None)
    last = len(made["epochs"])
    epochs = [e if n % k == 0 or n == last else e | gap for n, e in enumerate(made["epochs"], 1)]
    return made | dict(epochs=epochs)


later = pytest.mark.skipif("evaluate_every" not in asdict(Config()), reason="Config does not know evaluate_every yet")


@later
def test_what_older_records_lack_is_filled_in_and_what_differs_is_another_setting():
    new = record(1)
    old = record(0)
    del old["parameters"]["evaluate_every"]
    every_fifth = record(2, evaluate_every=5)
    assert sizes(old, new, every_fifth) == [2, 1]
    first, second = tables.settings(tables.runs_frame([old, new, every_fifth]), "cifar10")
    assert "evaluate_every" not in tables.caption(first) and "evaluate_every 5" in tables.caption(second)


def test_records_may_lie_in_several_folders(here):
    write(here / "records", [record(0)])
    write(here / "records" / "small", [record(1)])
    write(here / "two words", [record(2)])
    assert len(tables.load_records("records records/small")) == 2
    assert len(tables.load_records("two words")) == 1  # one folder, with a blank in its name
    with pytest.raises(FileNotFoundError, match="'records gone', 'gone' is no folder here"):
        tables.load_records("records gone")
    write(here / "again", [record(1)])
    with pytest.raises(ValueError, match="same run"):
        tables.load_records("records/small again")


@later
def test_a_run_without_the_parameter_is_the_run_with_its_default(here):
    old = record(0)
    write(here / "records", [old])
    del old["parameters"]["evaluate_every"]
    (here / "records" / "old.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match="same run"):
        tables.load_records("records")


def test_curves_have_the_epochs_that_were_evaluated_and_runs_that_stopped_keep_their_value():
    whole, short = record(0, 0.8), record(1, 0.6)
    for made, length in ((whole, 6), (short, 3)):
        made["epochs"] = [made["epochs"][-1] | dict(test_accuracy=0.1 * n + made["parameters"]["seed"] / 100,
                                                    train_accuracy=0.1 * n) for n in range(1, length + 1)]
    records = [with_gaps(whole, 2), with_gaps(short, 2)]
    runs = tables.runs_frame(records)
    fig = figures.plot_curves(runs, figures.epochs_frame(records), "made up")
    training, test = (ax.lines[0] for ax in fig.axes[:2])
    assert training.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]  # measured in any case
    assert test.get_xdata().tolist() == [2, 4, 6]  # the second run's epoch 3 has no partner
    assert test.get_ydata() == pytest.approx([20.5, 35.5, 45.5])  # 20 21, 40 31, 60 31: the second stopped at 31
    band = fig.axes[1].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((20, 60)) and set(band[:, 0]) == {2, 4, 6}


# The notebooks, cell by cell in this process


def run(name, monkeypatch, **parameters):
    "Execute a notebook of nbs/experiments with `parameters`; returns what it displayed (objects) and its variables."
    shown = []
    space = {}
    monkeypatch.setattr("IPython.display.display", lambda *objects, **_: shown.extend(objects))
    for cell in json.loads((EXPERIMENTS / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), space)
            if "parameters" in cell["metadata"].get("tags", []):
                space.update(parameters)
    return shown, space


def text(shown):
    return "\n".join(getattr(o, "data", None) or "" for o in shown)


def pairs(method, finals, **parameters):
    return [record(seed, final, method=method, **parameters) for seed, final in enumerate(finals)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_without_records_a_notebook_says_which_command_makes_them(name, monkeypatch, here):
    shown, _ = run(name, monkeypatch, records_dir="records")
    grid = {
        "table1_cifar": "table1",
        "table2_svhn": "table2",
        "fig4_cifar_training": "table1",
        "fig5_svhn_training": "table2",
        "claims": "table1",
    }.get(name, name)
    assert f"attentiondrop-sweep nbs/experiments/grids/{grid}.yaml --out runs" in text(shown)
    assert (EXPERIMENTS / "grids" / f"{grid}.yaml").is_file()
    assert not list(here.rglob("*.png")) and "**holds**" not in text(shown)


BAD = [
    dict(records_dir="nowhere"),
    dict(records_dir=3),
    dict(record_dir="records"),
    dict(out_dir=None, datasets=1, dataset=1),
    dict(dataset="cifar1O", datasets="cifar1O"),
    dict(dataset="", datasets=""),
    dict(colour="red"),
]


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_parameter_is_an_error_that_names_it_before_any_work(name, bad, monkeypatch, here):
    with pytest.raises((OSError, TypeError, ValueError)) as error:
        run(name, monkeypatch, **bad)
    assert any(repr(k) in str(error.value) for k in bad)
    assert sorted(p.name for p in here.iterdir()) == ["records"]


def test_the_papers_numbers_are_those_of_its_text():
    "The abstract and the introduction repeat the first and the last row of the tables."
    told = {"cifar10": (95.28, 96.37), "cifar100": (77.54, 78.60), "svhn": (97.40, 98.31)}
    for dataset, numbers in tables.PAPER.items():
        assert (numbers[tables.NONE][0], numbers[tables.BOTH][0]) == told.pop(dataset)
        assert max(numbers, key=lambda row: numbers[row][0]) == tables.BOTH
    assert not told


TABLE1 = [
    *pairs("none", (0.90, 0.91, 0.92), best=0.95),
    *pairs("ad", (0.903, 0.914, 0.925)),
    *pairs("dropblock", (0.95, 0.93, 0.91)),
    *pairs("am", (0.90, 0.90)),
    record(2, 0.1, method="am", status="diverged"),
    *pairs("none", (0.91, 0.92, 0.93), cutout=True),
    *pairs("ad", (0.92, 0.931, 0.942), cutout=True),
    record(7, 0.99, alpha=0.5),
    record(0, 0.5, method="none", width=4),
]
OVER = "over ResNet-18 [95 %]"
PLAIN = {"n": "3", "final": "91.00 ± 1.00", "best epoch": "95.00 ± 0.00", OVER: "-", "paper": "95.28 ± 0.21"}


@pytest.mark.parametrize("thin", [False, True], ids=["every epoch", "with gaps"])
def test_table1_on_records_made_by_hand(thin, monkeypatch, here):
    records = [with_gaps(made, 2) for made in TABLE1] if thin else TABLE1
    _, space = run("table1_cifar", monkeypatch, records_dir=write(here / "runs", records), datasets="cifar10")
    first, second = space["tables"]
    frame = first.frame
    assert dict(frame.loc["ResNet-18"]) == PLAIN
    assert frame[OVER]["ResNet-18 + AD"] == "+0.40 [+0.15, +0.65]"
    assert frame["n"]["ResNet-18 + AD"] == "3"  # not the run with another α
    assert frame["n"]["ResNet-18 + AM"] == "3 (1 diverged)" and frame["final"]["ResNet-18 + AM"] == "63.33 ± 46.19"
    assert frame["final"]["ResNet-18 + SM"] == "-"
    assert "No records for ResNet-18 + SM." in first.notes and "AM, seed 2" in first.notes
    assert second.frame["final"]["ResNet-18"] == "50.00" and "width 4" in second.notes
    assert "Left to the ablations: 1 run with" in first.notes and "Left" not in second.notes


def test_a_row_of_one_run_shows_its_difference_to_its_own_seed(monkeypatch, here):
    records = [*pairs("none", (0.60, 0.64, 0.66)), record(0, 0.62, method="am")]
    shown, space = run("table1_cifar", monkeypatch, records_dir=write(here / "runs", records), datasets="cifar10")
    assert space["tables"][0].frame[OVER]["ResNet-18 + AM"] == "+2.00 (1 pair, no interval)"
    assert "Whether AttentionDrop helps cannot be told without records" in text(shown)


def test_the_answer_stands_above_table1(monkeypatch, here):
    shown, _ = run("table1_cifar", monkeypatch, records_dir=write(here / "runs", TABLE1), datasets="cifar10")
    said = text(shown)
    assert "**AttentionDrop helps here** (CIFAR-10, ResNet-18, width 16" in said
    assert "the plain network's is +0.40 [+0.15, +0.65] points; DropBlock's +2.00 [" in said
    assert "(ResNet-18 alone reaches 91.0 % here and 95.3 % in the paper.)" in said


def test_a_claim_that_is_refuted_is_said_to_be(monkeypatch, here):
    records = [*pairs("none", (0.95, 0.96, 0.97), dataset="svhn"), *pairs("am", (0.90, 0.912, 0.921), dataset="svhn")]
    shown, space = run("table2_svhn", monkeypatch, records_dir=write(here / "runs", records))
    (line,) = [x for x in text(shown).splitlines() if "| AM is better than the plain network |" in x]
    assert line.endswith("| **does not hold** |")


@pytest.mark.parametrize("name", PAPER_CURVES)
def test_curves_are_saved_and_judged_by_training_accuracy(name, monkeypatch, here):
    ends = [("none", 0.99, 0), ("dropout", 0.90, 0), ("ad", 0.95, 0.001)]
    records = [record(seed, 0.5, method=m, train=t + step * seed) for m, t, step in ends for seed in range(3)]
    shown, space = run(name, monkeypatch, records_dir=write(here / "runs", records), dataset="cifar10", out_dir="drawn")
    stem = f"{name[:4]}_cifar10"
    assert sorted(p.name for p in (here / "drawn").iterdir()) == [f"{stem}.png", f"{stem}.svg"]
    for says in ("AD − Dropout | +5.10 [", "AD − ResNet-18 | -3.90 ["):
        assert f"training accuracy of the last epoch, masks on, points: {says}" in text(shown)
    rows = [line for line in text(shown).splitlines() if line.startswith("| ") and "AD converges" in line]
    answers = [row.rsplit("|", 2)[1].strip() for row in rows]
    assert "**holds**" in answers and "**does not hold**" in answers
    labels = [line.get_label() for line in space["fig"].axes[0].lines]
    assert labels == ["ResNet-18, n = 3", "Dropout, n = 3", "AD, n = 3"]


def test_ablations_vary_one_thing(monkeypatch, here):
    records = [
        *pairs("ad", (0.90, 0.91, 0.92)),
        *pairs("ad", (0.90, 0.911, 0.919), alpha=0.3),
        *pairs("released", (0.91, 0.921, 0.93)),
        *pairs("ad", (0.1, 0.11, 0.12), rescale="literal", train=0.99),
        *pairs("ad", (0.97, 0.98), cutout=True),
        *pairs("ad", (0.5, 0.6, 0.7), alpha=0.3, beta=50.0),
    ]
    shown, space = run("ablations", monkeypatch, records_dir=write(here / "runs", records), out_dir="drawn")
    stems = {p.stem for p in (here / "drawn").iterdir()}
    assert stems == {"ablation_cifar10_alpha", "ablation_cifar10_rescale", "ablation_cifar10_method"}
    frames = {tuple(o.index): o for o in shown if hasattr(o, "index")}
    assert set(frames) == {("0.1", "0.3"), ("literal", "map"), ("ad", "released")}
    literal = frames["literal", "map"].loc["literal"]
    assert (literal["training"], literal["final"]) == ("99.00 ± 0.00", "11.00 ± 1.00")
    assert (
        "literal: training 99.00 ± 0.00 %, test 11.00 ± 1.00 %, training over test +88.00 [+85.52, +90.48]"
        in text(shown)
    )
    assert "no two runs that differ in beta alone" in text(shown)


def test_a_difference_that_does_not_matter_is_inside_the_margin():
    def said(*differences):
        return statistics._verdicts([statistics.Claim("", "", dict(enumerate(differences)), margin=2)])[0]

    inside, edge, beyond, below = (statistics.Difference(m, m - 1, m + 1, 3) for m in (0, 2, 9, -9))
    assert said(inside) == "holds"
    assert said(inside, edge).startswith("cannot be told") and said(edge).startswith("cannot be told")
    assert said(inside, edge, beyond).startswith("does not hold") and said(below) == said(beyond) == "does not hold"


def test_holm_is_stricter_than_each_alone_and_never_than_bonferroni():
    rng = np.random.default_rng(0)
    for m in range(1, 12):
        p = rng.uniform(size=m).tolist()
        corrected = statistics.holm(p)
        assert all(a <= b <= min(1, m * a) for a, b in zip(p, corrected))
        assert sorted(range(m), key=p.__getitem__) == sorted(range(m), key=lambda k: (corrected[k], p[k]))
        rejected = [k for k in range(m) if corrected[k] < 0.05]
        by_hand = []
        for rank, k in enumerate(sorted(range(m), key=p.__getitem__)):  # step down until the first that is too large
            if p[k] * (m - rank) >= 0.05:
                break
            by_hand.append(k)
        assert sorted(by_hand) == rejected


SCORES = {
    "fig3": {
        m: {
            s: {f"layer{k} {name}": v + 0.001 * s * k * (m == "ad") for k in (1, 2) for name in ("more", "gone")}
            for s in range(3)
        }
        for m, v in (("ad", 0.05), ("dropout", 0.0), ("dropblock", 0.01))
    },
    "fig6": {
        m: {s: {"ap": v + 0.01 * s * (m == "ad")} for s in range(3)}
        for m, v in (("ad", 0.5), ("dropout", 0.6), ("dropblock", 0.51), ("none", 0.4))
    },
}


CLAIMED = [
    *pairs("none", (0.90, 0.91, 0.92)),
    *pairs("ad", (0.903, 0.914, 0.925)),
    *pairs("dropblock", (0.95, 0.961, 0.97)),
    *pairs("sm", (0.9, 0.93, 0.9)),
    *pairs("am", (0.90, 0.905, 0.90)),
    *pairs("none", (0.95, 0.951, 0.952), cutout=True),
    *pairs("ad", (0.93, 0.933, 0.93), cutout=True),
    *pairs("ad", (0.905, 0.913, 0.926), alpha=0.2),
    *pairs("ad", (0.1, 0.2, 0.3), alpha=0.4),
    *pairs("ad", (0.5, 0.51, 0.55), beta=10.0),
    *pairs("dropblock", (0.951, 0.960, 0.971), alpha=0.05),
    *pairs("dropblock", (0.950, 0.962, 0.970), alpha=0.2),
    *pairs("ad", (0.1, 0.12, 0.1), rescale="literal", train=0.99),
]
# Words of a claim, what its row has to say, its verdict
ANSWERS = [
    ("Adding AttentionDrop", "AD − ResNet-18 | +0.40 [+0.15, +0.65] | +0.21 | 3", "holds"),  # the question, alone
    ("outperform the state-of-art", "AD − DropBlock |", "does not hold"),
    ("overshadows", "SM − AM | +0.83 [-2.75, +4.42] | +0.04 | 3", "cannot be told from 3 runs of each"),
    ("is in **bold**", "AD + Cutout − Cutout (weakest of 6) | -2.00", "does not hold, uncorrected"),
    ("converge to a higher accuracy", "AD − Dropout (not run, 1 of 2) | no runs |", "cannot be told without records"),
    ("manual adjustment", "β 10 − β 20 (weakest of 4) | -39.40", "does not hold"),  # α 0.2 is near, 0.4 no neighbour
    ("DropBlock's α", "α 0.05 − α 0.1 (weakest of 2) | +0.03", "holds"),
    ("appropriate scaling", "literal − rescale map |", "does not hold"),
    ("more purposefully", "AD − DropBlock, layer2 (weakest of 4) | +0.042 [+0.037, +0.047] |", "holds"),
    ("risks", "DropBlock − AD, layer1 (weakest of 2) |", "does not hold"),
    ("with a more precise shape", "AD − Dropout (weakest of 2) |", "does not hold"),
]


def test_claims_on_records_made_by_hand(monkeypatch, here):
    for name, scores in SCORES.items():
        figures.save_scores(here / "scores" / f"{name}_scores.json", scores, tables.runs_frame([record(0)]))
    folders = dict(scores_dir="scores", out_dir="drawn")
    shown, _ = run("claims", monkeypatch, records_dir=write(here / "runs", CLAIMED), **folders)
    lines = [line for line in text(shown).splitlines() if line.startswith("| ")]
    for words, says, answer in ANSWERS:
        line = next(line for line in lines if words in line)
        assert says in line and line.endswith(f"| **{answer}** |"), words
    assert "not measured: fig7_cifar10_scores.json is not in" in text(shown)
    bare = [line for line in text(shown).splitlines() if line.startswith("Without runs")]
    assert any("they are larger with it" in line for line in bare)  # not measured
    assert {p.name for p in (here / "drawn").iterdir()} == {"claims_cifar10_1.png", "claims_cifar10_1.svg"}


def test_a_neighbour_without_runs_leaves_the_row_on_tuning_open(monkeypatch, here):
    def row(made):
        made = write(here / f"runs{len(made)}", made)
        shown, _ = run("claims", monkeypatch, records_dir=made, underfit_dir="no", scores_dir="no", out_dir="drawn")
        return next(line for line in text(shown).splitlines() if "manual adjustment" in line)

    default = pairs("ad", (0.9, 0.91, 0.92))
    near = [pairs("ad", (0.901, 0.91, 0.919), **o) for o in ({"alpha": 0.05}, {"alpha": 0.2}, {"beta": 10.0})]
    three = [*pairs("none", (0.9, 0.91, 0.92)), *default, *(r for runs in near for r in runs)]
    four = [*three, *pairs("ad", (0.901, 0.91, 0.919), beta=40.0)]
    whole, open_row = row(four), row(three)
    assert "(weakest of 4)" in whole and whole.endswith("| **holds** |")
    assert "β 40 − β 20 (not run, 1 of 4) | no runs |" in open_row
    assert open_row.endswith("| **cannot be told without records** |")


def test_as_many_seeds_as_said_find_the_gain_in_four_experiments_of_five():
    rng = np.random.default_rng(0)
    scattered = statistics.paired_difference({0: 0.1, 1: 0.0, 2: -0.1}, dict.fromkeys(range(3), 0.0))
    for gain in (0.05, 0.1, 0.2):
        n = statistics._runs_needed(scattered, gain)
        for seeds, enough in ((n, True), (n - 1, False)):
            draws = rng.normal(gain, 0.1, (20_000, seeds))
            found = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05) & (draws.mean(1) > 0)
            assert (found.mean() > 0.79) if enough else (found.mean() < 0.81)
    assert 900 < statistics._runs_needed(scattered, 0.1 * 0.0885) < 1100  # large numbers of seeds: (2.80 / 0.0885)²


def test_how_many_seeds_is_a_range_and_bad_questions_are_named():
    pair = statistics.paired_difference({0: 0.02, 1: -0.01, 2: 0.03}, dict.fromkeys(range(3), 0.0))
    middle, low, high = (float(x) for x in re.findall(r"[\d.]+", statistics.seeds_needed(pair, 0.01)))
    assert low < middle < high
    assert statistics.seeds_needed(pair, 1e-6) == "more than a million (more than a million to more than a million)"
    for bad, gain in ((pair, 0.0), (pair._replace(low=math.nan), 0.1)):
        with pytest.raises(ValueError, match="a gain above 0"):
            statistics.seeds_needed(bad, gain)


def test_settings_are_taken_together(monkeypatch, here):
    small = [*pairs("none", (0.5, 0.52, 0.54)), *pairs("ad", (0.51, 0.54, 0.53))]
    large = [*pairs("none", (0.7, 0.71, 0.72), width=64), *pairs("ad", (0.72, 0.7, 0.74), width=64)]
    made = write(here / "runs", small)
    under = write(here / "under", large)
    shown, _ = run("claims", monkeypatch, records_dir=made, underfit_dir=under, scores_dir="no", out_dir="drawn")
    d = [1.0, 2.0, -1.0], [2.0, -1.0, 2.0]  # in points: the mean of both settings is 5/6
    theirs = stats.ttest_ind(d[0], [-x for x in d[1]], equal_var=False).confidence_interval()
    low, high = theirs.low / 2, theirs.high / 2
    assert f"less the plain network: **+0.83 [{low:+.2f}, {high:+.2f}]** points, from 6 pairs" in text(shown)
    assert (here / "drawn" / "claims_settings.png").exists()


def test_the_control_is_the_plain_network_without_one_thing_that_is_known_to_help(monkeypatch, here):
    plain = [*pairs("none", (0.90, 0.91, 0.92)), *pairs("ad", (0.9, 0.91, 0.92))]
    bare = pairs("none", (0.80, 0.81, 0.815), pad=0, mirror=False)
    other = [*pairs("none", (0.1, 0.2, 0.3), pad=0), *pairs("ad", (0.1, 0.2), pad=0, mirror=False)]
    other += pairs("none", (0.1, 0.2, 0.3), pad=0, mirror=False, weight_decay=0.0)
    decay = pairs("none", (0.91, 0.90, 0.92), weight_decay=0.0)
    made = write(here / "runs", [*plain, *bare, *other, *decay])
    shown, _ = run("claims", monkeypatch, records_dir=made, scores_dir="scores", out_dir="drawn")
    lines = [line for line in text(shown).splitlines() if "with − without" in line]
    assert "crops and mirroring help | test accuracy, points: with − without | +10.17 [+9.45, +10.88] |" in lines[0]
    assert "weight decay helps" in lines[1] and "| +0.00 [" in lines[1] and "cannot be told from 3" in lines[1]
    assert "crops and mirroring help: +10.17 [+9.45, +10.88] points; AttentionDrop's" in text(shown)


def test_the_claims_name_a_bad_margin(monkeypatch, here):
    with pytest.raises(ValueError, match="parameter 'margin' is 0"):
        run("claims", monkeypatch, margin=0.0)
