"Records -> tables: statistics on any numbers, and the table and figure notebooks on records made here, with few and with none."
import json
import math
from dataclasses import asdict

import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
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
    seeds, d = sorted(a.keys() & b.keys()), statistics.paired_difference(a, b)
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


NO_RECORDS = [
    ("", "bad.json"),
    ("[]", "bad.json"),
    ("{}", "bad.json"),
    ('{"schema": 1}', "schema 1"),
    ('{"schema": "new"}', "schema new"),
]


@pytest.mark.parametrize("text, reason", NO_RECORDS)
def test_what_is_no_record_is_an_error_that_names_it(here, text, reason):
    write(here / "records", [record(0)])
    (here / "records" / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=reason) as error:
        tables.load_records("records")
    assert "bad.json" in str(error.value)


def test_one_run_twice_does_not_count_as_two(here):
    a = record(0)
    write(here / "records", [a])
    (here / "records" / "copy.json").write_text(
        json.dumps(a | dict(parameters=a["parameters"] | dict(out_dir="x", data_dir="y", run_name="z")))
    )
    with pytest.raises(ValueError, match="copy.json.*same run"):
        tables.load_records("records")


@pytest.mark.parametrize("change", [dict(width=8), dict(epochs=3), dict(lr=0.05), dict(network="preact_resnet18"), dict(weight_decay=0.0), dict(patience=3)])
def test_runs_that_were_not_trained_alike_are_not_in_one_table(change):
    groups = tables.by_setting([record(0, method="none"), record(1, method="none"), record(0, **change)], "cifar10")
    assert [len(g) for g in groups.values()] == [2, 1]


def test_other_numbers_of_images_are_another_setting_and_places_are_not():
    fewer = record(0) | dict(data=record(0)["data"] | dict(train=5000))
    elsewhere = record(1, out_dir="x", data_dir="y", run_name="z")
    assert [len(g) for g in tables.by_setting([record(0), fewer, elsewhere], "cifar10").values()] == [2, 1]


def test_every_option_is_seen_as_a_departure_and_no_default_is():
    for method in ("none", "dropout", "spatial", "dropblock", "am", "sm", "ad", "released"):
        for cutout in (False, True):
            assert tables.departures(record(method=method, cutout=cutout)) == set()
    changes = dict(alpha=0.3, beta=50.0, granularity="map", rescale="literal", drop_after="layer3")
    assert all(tables.departures(record(**{k: v})) == {k} for k, v in changes.items())
    assert tables.departures(record(method="dropblock", block_size=3)) == {"block_size"}
    assert tables.departures(record(cutout=True, cutout_length=8)) == {"cutout_length"}


# The notebooks, cell by cell in this process


def run(name, monkeypatch, **parameters):
    "Execute a notebook of nbs/experiments with `parameters`; returns what it displayed (objects) and its variables."
    shown, space = [], {}
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
    shown, _ = run(name, monkeypatch)
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


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("bad", [
    dict(records_dir="nowhere"), dict(records_dir=3), dict(record_dir="records"), dict(out_dir=None, datasets=1, dataset=1),
    dict(dataset="cifar1O", datasets="cifar1O"), dict(dataset="", datasets=""), dict(colour="red"),
], ids=str)
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


def test_table1_on_records_made_by_hand(monkeypatch, here):
    records = [
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
    shown, space = run("table1_cifar", monkeypatch, records_dir=write(here / "runs", records), datasets="cifar10")
    first, second = space["tables"]
    frame = first.frame["cifar10"]
    assert dict(frame.loc["ResNet-18"]) == {
        "n": "3",
        "final": "91.00 ± 1.00",
        "best epoch": "95.00 ± 0.00",
        "over ResNet-18 [95 %]": "-",
        "paper": "95.28 ± 0.21",
    }
    assert frame["over ResNet-18 [95 %]"]["ResNet-18 + AD"] == "+0.40 [+0.15, +0.65]"
    assert frame["n"]["ResNet-18 + AD"] == "3"  # not the run with another α
    assert frame["n"]["ResNet-18 + AM"] == "3 (1 diverged)" and frame["final"]["ResNet-18 + AM"] == "63.33 ± 46.19"
    assert (
        frame["final"]["ResNet-18 + SM"] == "-"
        and "No records for ResNet-18 + SM." in first.notes
        and "AM, seed 2" in first.notes
    )
    assert second.frame["cifar10"]["final"]["ResNet-18"] == "50.00" and "width 4" in second.notes
    said = text(shown).split("table 2**")[0]
    assert (
        "AD is better than the plain network*: **holds**. AD − ResNet-18: +0.40 [+0.15, +0.65] from 3 pairs (paper +0.21)"
        in said
    )
    assert "AD is better than DropBlock*: **cannot be told from 3 runs of each**" in said
    assert "SM is better than AM*: **cannot be told without records**" in said
    assert "Left to the ablations: 1 run with" in first.notes and "Left" not in second.notes
    assert (
        "**cannot be told from 3 runs of each**. In the paper: +1.09 and +0.73, so 67%" in said
    )  # Cutout: three equal differences


def test_a_claim_that_is_refuted_is_said_to_be(monkeypatch, here):
    records = [*pairs("none", (0.95, 0.96, 0.97), dataset="svhn"), *pairs("am", (0.90, 0.912, 0.921), dataset="svhn")]
    shown, space = run("table2_svhn", monkeypatch, records_dir=write(here / "runs", records))
    assert "AM is better than the plain network*: **does not hold**" in text(shown)


@pytest.mark.parametrize("name", PAPER_CURVES)
def test_curves_are_saved_and_judged_by_training_accuracy(name, monkeypatch, here):
    ends = [("none", 0.99, 0), ("dropout", 0.90, 0), ("ad", 0.95, 0.001)]
    records = [record(seed, 0.5, method=m, train=t + step * seed) for m, t, step in ends for seed in range(3)]
    shown, space = run(name, monkeypatch, records_dir=write(here / "runs", records), dataset="cifar10", out_dir="drawn")
    stem = f"{name[:4]}_cifar10"
    assert sorted(p.name for p in (here / "drawn").iterdir()) == [f"{stem}.png", f"{stem}.svg"]
    assert "than Dropout*: **holds**. AD − Dropout: +5.10" in text(
        shown
    ) and "the plain network*: **does not hold**" in text(shown)
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
    assert "AD as printed is better than AD as released*: **does not hold**" in text(shown)


def test_a_difference_that_does_not_matter_is_inside_the_margin():
    inside, edge, beyond = (statistics.Difference(m, m - 1, m + 1, 3) for m in (0, 2, 5))
    assert statistics.within(2, inside) == "holds" and statistics.within(2, inside, edge).startswith("cannot be told")
    assert (
        statistics.within(2, inside, edge, beyond)
        == statistics.within(2, statistics.Difference(-5, -6, -4, 3))
        == "does not hold"
    )


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


def test_claims_on_records_made_by_hand(monkeypatch, here):
    records = [
        *pairs("none", (0.90, 0.91, 0.92)),
        *pairs("ad", (0.903, 0.914, 0.925)),
        *pairs("dropblock", (0.95, 0.961, 0.97)),
        *pairs("sm", (0.9, 0.93, 0.9)),
        *pairs("am", (0.90, 0.905, 0.90)),
        *pairs("none", (0.95, 0.951, 0.952), cutout=True),
        *pairs("ad", (0.93, 0.933, 0.93), cutout=True),
        *pairs("ad", (0.905, 0.913, 0.926), alpha=0.4),
        *pairs("ad", (0.5, 0.51, 0.55), beta=5.0),
        *pairs("ad", (0.1, 0.12, 0.1), rescale="literal", train=0.99),
    ]
    for name, scores in SCORES.items():
        figures.save_scores(here / "scores" / f"{name}_scores.json", scores, tables.runs_frame([record(0)]))
    shown, _ = run(
        "claims", monkeypatch, records_dir=write(here / "runs", records), scores_dir="scores", out_dir="drawn"
    )
    said = text(shown)
    row = lambda words: next(line for line in said.splitlines() if words in line and line.startswith("| "))
    assert "AD − ResNet-18: +0.40 [+0.15, +0.65] from 3 pairs (paper +0.21) | **holds** |" in row(
        "Adding AttentionDrop"
    )
    assert "| **does not hold** |" in row("outperform the state-of-art")
    assert (
        "SM − AM: +0.83 [-2.75, +4.42] from 3 pairs (paper +0.04) | **cannot be told from 3 runs of each** |"
        in row("overshadows")
    )
    assert "AD + Cutout − Cutout: -2.00" in row("is in **bold**") and "| **does not hold** |" in row("is in **bold**")
    assert "cannot be told without records" in row("converge to a higher accuracy")  # no run with Dropout
    assert (
        "α 0.4 − α 0.1" in row("manual adjustment")
        and "β 5 − β 20:" in row("manual adjustment")
        and "| **does not hold** |" in row("manual adjustment")
    )
    assert "literal − rescale map" in row("appropriate scaling") and "| **does not hold** |" in row(
        "appropriate scaling"
    )
    assert "AD − Dropout, layer2: +0.052 [+0.047, +0.057] from 3 pairs" in row(
        "more purposefully"
    ) and "| **holds** |" in row("more purposefully")
    assert "| **does not hold** |" in row("risks") and "| **does not hold** |" in row("average precision of the CAM")
    assert "not measured: fig7_cifar10_scores.json is not in" in said and "cannot be told without records" in row(
        "how many outputs"
    )
    assert {p.name for p in (here / "drawn").iterdir()} == {"claims_cifar10.png", "claims_cifar10.svg"}


def test_the_claims_name_a_bad_margin(monkeypatch, here):
    with pytest.raises(ValueError, match="parameter 'margin' is 0"):
        run("claims", monkeypatch, margin=0.0)
