"attentiondrop-sweep as a command: what it refuses, what it skips, and what is left when it, or a run, is killed."
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import nbformat
import numpy as np
import pytest
from checkout import ROOT
from fake_runs import fake_grid, fake_notebook, quick_imports, starts, wait_until

from attentiondrop_nb.evidence.grids import expand, plan, read_grid
from attentiondrop_nb.evidence.sweeps import main
from attentiondrop_nb.evidence.worker import call_papermill, is_locked, state
from attentiondrop_nb.training.config import METHODS, make_config
from attentiondrop_nb.training.runs import read_record, save_run, train

pytestmark = pytest.mark.whole
GRIDS = ROOT / "nbs" / "experiments" / "grids"
COMMAND = [sys.executable, "-c", "import sys; from attentiondrop_nb.evidence.sweeps import main; sys.exit(main())"]


@pytest.fixture(autouse=True)
def own_handler():
    "main() sets a handler for SIGTERM; the test process keeps its own."
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Arguments that run the fake grid in `tmp_path`."
    monkeypatch.setenv("PYTHONPATH", quick_imports(tmp_path))
    return [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--notebook", str(fake_notebook(tmp_path))]


def alive(pid):
    "Is there such a process, other than as a zombie?"
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "text, says",
    [
        ("runs: [{epoch: 3}]", "unknown parameter 'epoch' = 3; did you mean 'epochs'?"),
        ("runs: [{method: [ad, dropblok]}]", "parameter 'method' is 'dropblok'"),
        ("runs: [{method: none, alpha: 0.1}]", "method 'none' does not use it"),
        ("runs: [{seed: []}]", "parameter 'seed' is an empty list"),
        ("runs: [{epochs: 1.5}]", "parameter 'epochs' is 1.5, a float; a valid integer or None is needed"),
        ("runs: [{out_dir: x}]", "parameter 'out_dir' is 'x', but it is the sweep's to give"),
        ("run: [{seed: 0}]", "did you mean 'runs'?"),
        ("runs: {seed: 0}", "key 'runs' is {'seed': 0}, a dict; a valid list is needed"),
        ("runs: []", "key 'runs' is []; a list of blocks of parameters is needed"),
        ("runs: [5]", "key 'runs' is 5, a int; a valid dictionary is needed"),
        ("runs: [{seed: 0}]\nexclude: [{seed: 1}]", "{'seed': 1} in 'exclude' matches no run"),
        ("runs: [{seed: 0, seed: 1}]", "'seed' stands there twice"),
        ("runs: [", "is not a YAML file that can be read"),
        ("runs: [{data_dir: [a, b]}]", "'data_dir' is ['a', 'b'], but it is a place"),
        ("- 1", "a grid is a mapping with the keys runs, name, defaults"),
    ],
)
def test_a_bad_grid_ends_with_2_before_anything_is_written(tmp_path, capsys, text, says):
    (tmp_path / "grid.yaml").write_text(text)
    assert main([str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_bad_calls_end_with_2(tmp_path, capsys, monkeypatch):
    grid = str(GRIDS / "smoke.yaml")
    for arguments, says in (
        (["nowhere.yaml"], "nowhere.yaml"),
        ([grid, "--notebook", "nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
        ([grid, "--out", __file__], "is a file; a folder is needed"),
        ([grid, "--out", f"{__file__}/out"], "is a file; a folder is needed"),
        ([grid, "--redraw", "--notebook", str(fake_notebook(tmp_path))], "'dataset', which no notebook"),
    ):
        assert main(arguments) == 2 and says in capsys.readouterr().err
    for arguments, says in (
        ([grid, "--jobs", "0"], "--jobs is 0"),
        ([grid, "--gpus-per-run", "1"], "is for --ray"),
        ([], "grid"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert says in capsys.readouterr().err
    monkeypatch.setattr("attentiondrop_nb.evidence.grids.find_spec", lambda name: None)
    assert main([grid]) == 2 and "pip install 'attentiondrop_nb[experiments]'" in capsys.readouterr().err
    monkeypatch.setattr("attentiondrop_nb.evidence.grids.find_spec", lambda name: None if name == "ray" else "there")
    assert main([grid, "--ray", "auto"]) == 2 and "pip install 'attentiondrop_nb[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_names_parameters_and_states(tmp_path, fake, capsys):
    runs = fake_grid(tmp_path, "write", "write")
    runs[1].folder.mkdir(parents=True)
    (runs[1].folder / "run.log").write_text("epoch 1")
    assert main([*fake, "--dry-run", "--data-dir", "elsewhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"todo         {runs[0].name}  width=4 data_dir=elsewhere",
        f"interrupted  {runs[1].name}  width=4 data_dir=elsewhere seed=1",
    ]
    assert not runs[0].folder.exists() and not starts(tmp_path)


def test_a_failure_stops_no_other_is_named_and_is_retried(tmp_path, fake, capsys):
    runs = fake_grid(tmp_path, "write", "fail", "crash", "vanish", "wait0", "write")
    assert main([*fake, "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert [state(run) for run in runs] == ["done", "failed", "failed", "failed", "failed", "done"]
    assert "fake: 6 runs: 2 done, 4 failed" in said
    assert f"failed  {runs[1].name}: ArithmeticError: this run was told to fail\n" in said
    assert f"failed  {runs[2].name}: nbclient.exceptions.DeadKernelError: Kernel died (out of memory?)" in said
    assert f"failed  {runs[4].name}: the notebook ran to its end but wrote no record.json" in said
    for run in runs[1:5]:
        assert str(run.folder / "run.log") in said
    fake_grid(tmp_path, *["write"] * 6)  # what was wrong is put right
    assert main(fake) == 0 and "6 runs: 6 done" in capsys.readouterr().out
    assert Counter(name for name, _ in starts(tmp_path)) == {run.name: 2 if run in runs[1:5] else 1 for run in runs}
    assert main(fake) == 0 and len(starts(tmp_path)) == 10  # nothing is made again


def test_a_record_of_other_parameters_or_half_of_one_is_not_done(tmp_path, fake, capsys):
    runs = fake_grid(tmp_path, "write", "write")
    for run, text in zip(
        runs,
        (json.dumps(json.loads((tmp_path / f"{runs[1].name}.json").read_text())["record"]), '{"schema": 2, "par'),
    ):
        run.folder.mkdir(parents=True)
        (run.folder / "record.json").write_text(text)
    assert [state(run) for run in runs] == ["todo", "todo"] and main(fake) == 0
    assert "(made again: " in capsys.readouterr().out and not list(runs[0].folder.glob(".*.tmp"))
    assert [read_record(run.folder / "record.json")["parameters"]["seed"] for run in runs] == [0, 1]


def test_ctrl_c_ends_runs_and_the_next_call_goes_on(tmp_path, fake):
    runs = fake_grid(tmp_path, "write", "wait600", "wait600", "wait600")
    heed = dict(
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )  # a job in the background may ignore Ctrl-C
    sweep = subprocess.Popen(
        [*COMMAND, *fake, "--jobs", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **heed
    )
    wait_until(lambda: len(starts(tmp_path)) == 3 and state(runs[0]) == "done")
    sweep.send_signal(signal.SIGINT)
    said = sweep.communicate(timeout=60)[0]
    assert (
        sweep.returncode == 130
        and "interrupted: 1 of 4 runs are done; the same command goes on" in said
        and "Traceback" not in said
    )
    wait_until(lambda: not any(alive(pid) for _, pid in starts(tmp_path)), 20)
    assert [state(run) for run in runs] == ["done", "interrupted", "interrupted", "todo"]
    fake_grid(tmp_path, *["write"] * 4)
    assert main([*fake, "--jobs", "2"]) == 0
    assert Counter(name for name, _ in starts(tmp_path))[runs[0].name] == 1


def test_a_killed_sweep_leaves_its_run_locked_and_no_other_takes_it(tmp_path, fake, capsys):
    runs = fake_grid(tmp_path, "wait6 write", "write")
    sweep = subprocess.Popen([*COMMAND, *fake], stdout=subprocess.DEVNULL)
    wait_until(lambda: starts(tmp_path))
    sweep.kill()
    sweep.wait()
    assert [state(run) for run in runs] == ["running", "todo"]
    assert main(fake) == 1  # not all is done
    said = capsys.readouterr().out
    assert "2 runs: 1 done, 1 elsewhere" in said and f"elsewhere  {runs[0].name}: another process runs it" in said
    wait_until(lambda: not is_locked(runs[0].folder), 60)
    assert state(runs[0]) == "done" and main(fake) == 0 and len(starts(tmp_path)) == 2


def test_two_sweeps_share_the_work(tmp_path, fake):
    runs = fake_grid(tmp_path, *["wait1 write"] * 3)
    both = [subprocess.Popen([*COMMAND, *fake], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(sweep.communicate(timeout=120)[0] for sweep in both)
    codes = {sweep.returncode for sweep in both}
    assert codes <= {0, 1} and all(state(run) == "done" for run in runs), said
    assert Counter(name for name, _ in starts(tmp_path)) == {run.name: 1 for run in runs}


def test_a_bar_on_a_terminal(tmp_path, fake):
    fake_grid(tmp_path, "write", "fail")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # 24 lines of 100 columns
    sweep = subprocess.Popen([*COMMAND, *fake], stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += (part := os.read(ours, 4096))
        except OSError:  # the other end is closed
            break
        if not part:
            break
    said = said.decode()
    assert (
        sweep.wait() == 1
        and re.search(r"fake: 100%\S*\| 2/2 \[.*, 0 running, 1 failed\]", said)
        and "told to fail" in said
    )


REAL = """
defaults: {method: ad, width: 2, batch_size: 512, lr: 1e-2}
runs: [{epochs: 1}]
"""


def test_real_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", quick_imports(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "agg")  # would leave the notebook without its picture
    (tmp_path / "grid.yaml").write_text(REAL)
    arguments = [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    (run,) = plan(read_grid(tmp_path / "grid.yaml"), tmp_path / "out")
    assert {"record.json", "checkpoint.safetensors", "curve.png", "run.ipynb", "run.log"} <= {
        p.name for p in run.folder.iterdir()
    }
    record = read_record(run.folder / "record.json")
    assert (
        record["parameters"]["lr"] == 0.01
        and record["parameters"]["run_name"] == run.name
        and len(record["epochs"]) == 1
    )
    assert f"1/1 done  {run.name}  test {record['final']['test_accuracy']:.1%}" in capsys.readouterr().out
    outputs = [o for c in nbformat.read(run.folder / "run.ipynb", 4).cells for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)


def test_types_survive_the_way_to_the_notebook(tmp_path):
    cells = [
        nbformat.v4.new_code_cell("value = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(repr(value))"),
    ]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "show.ipynb")
    value = [0.00001, 1, 1.0, True, None, "1e-3", "none", "no", "0.4 0.6", "a: 'b' #\n"]
    assert call_papermill(tmp_path / "show.ipynb", tmp_path / "shown.ipynb", {"value": value}, tmp_path / "log") == 0
    assert nbformat.read(tmp_path / "shown.ipynb", 4).cells[-1].outputs[0].text == f"{value!r}\n"


def test_redraw_gives_each_notebook_what_it_takes_and_names_the_failed(tmp_path, fake, capsys):
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    for name, declares, body in (
        (
            "table0",
            'records_dir: str = "records"',
            "from pathlib import Path\nprint(len(list(Path(records_dir).glob('*/record.json'))))",
        ),
        ("fig0", 'out_dir: str = "figures"', "raise ValueError('no such picture')"),
    ):
        cells = [
            nbformat.v4.new_code_cell(declares, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(body),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / f"{name}.ipynb")
    (tmp_path / "fake.ipynb").rename(tmp_path / "train.ipynb")  # the notebook of one run is none of a figure
    fake_grid(tmp_path, "write", "write")
    assert main([*fake[:-1], str(tmp_path / "train.ipynb"), "--redraw", "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "notebooks: 1 done, 1 failed" in said and "failed  fig0: ValueError: no such picture" in said
    assert said.endswith(f"2 notebooks, 2 runs in {tmp_path / 'out'}\n")
    drawn = nbformat.read(tmp_path / "out" / "figures" / "table0.ipynb", 4)
    assert drawn.cells[-1].outputs[0].text == "2\n"


def test_the_smoke_grid_has_every_method_and_the_paper_grid_everything():
    runs = {path.stem: expand(read_grid(path)) for path in GRIDS.glob("*.yaml")}
    assert set(runs) >= {"smoke", "table1", "table2", "ablations", "paper", "cifar10_cpu"}
    assert {run["method"] for run in runs["smoke"]} == set(METHODS)
    configs = {name: {make_config(run) for run in some} for name, some in runs.items()}
    assert configs["paper"] == configs["table1"] | configs["table2"] | configs["ablations"]
    assert {c.width for c in configs["paper"]} == {64} and {c.seed for c in configs["paper"]} == {0, 1, 2, 3, 4}
    for grid in ("table1", "table2", "ablations", "cifar10_gpu", "shapes"):  # paired: every method has the same seeds
        assert len({frozenset(s) for s in by_method(configs[grid]).values()}) == 1
    for seeds in by_method(configs["cifar10_cpu"]).values():  # some have more, all have the first three
        assert seeds == set(range(len(seeds))) and len(seeds) >= 3


def by_method(configs):
    "{(data set, method, cutout): seeds}."
    seeds = {}
    for c in configs:
        seeds.setdefault((c.dataset, c.method, c.cutout), set()).add(c.seed)
    return seeds


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("attentiondrop-sweep")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--dry-run" in done.stdout and "exit code: 0 all done" in done.stdout


def test_stop_after_begins_nothing_that_would_not_end_in_time(tmp_path, fake, capsys):
    runs = fake_grid(tmp_path, "wait1 write", "write", "write")
    assert main([*fake, "--stop-after", "1.5"]) == 1  # a run takes over a second: the first begins, and no other
    out = capsys.readouterr().out
    assert [name for name, _ in starts(tmp_path)] == [runs[0].name]
    assert "1 done, 2 todo" in out and out.count("not begun") == 4  # once as it is told, once in the report
    assert "log:" not in out
    assert main(fake) == 0 and len(starts(tmp_path)) == 3


@pytest.mark.parametrize("words", [["0"], ["nan"], ["9", "--ray", "local"]], ids=" ".join)
def test_stop_after_needs_seconds_and_this_machine(fake, capsys, words):
    with pytest.raises(SystemExit) as ended:
        main([*fake, "--stop-after", *words])
    assert ended.value.code == 2 and "--stop-after is" in capsys.readouterr().err


def test_a_device_of_another_machine_can_be_planned_and_not_run_here(tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("runs: [{device: 'cuda:99'}]")
    arguments = [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run"]) == 0 and "device=cuda:99" in capsys.readouterr().out
    assert main(arguments) == 2 and "parameter 'device' is 'cuda:99'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_listing_may_be_cut_off(tmp_path):
    (tmp_path / "grid.yaml").write_text(f"runs: [{{seed: {list(range(5000))}}}]")
    listing = subprocess.Popen([*COMMAND, str(tmp_path / "grid.yaml"), "--dry-run"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    listing.stdout.close()
    with listing.stderr as complaints:
        assert complaints.read() == b""
    assert listing.wait() == 0


def test_braces_in_a_path_a_foreign_kernel_and_an_error_of_any_class(tmp_path, monkeypatch, capsys):
    here = tmp_path / "a{0}b{x}"
    kernels = tmp_path / "share" / "kernels" / "python3"
    for folder in (here, kernels):
        folder.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps(dict(argv=["false"], display_name="mine", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    monkeypatch.setenv("PYTHONPATH", quick_imports(tmp_path))
    fake_grid(here, "write", "oops")
    arguments = [str(here / "grid.yaml"), "--out", str(here / "out"), "--notebook", str(fake_notebook(here))]
    assert main([*arguments, "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "1 done, 1 failed" in said and ": Oops: of no name that ends in Error\n" in said


def test_a_done_run_on_other_data_is_named_and_not_made_over(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    images = {f"x_{split}": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8) for split in ("train", "test")}
    labels = np.arange(8) % 2
    np.savez(tmp_path / "mine.npz", **images, y_train=labels, y_test=labels)
    grid = {"runs": [{"dataset": "mine", "data_dir": str(tmp_path), "width": 2, "epochs": 1, "batch_size": 4}]}
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    (run,) = plan(grid, tmp_path / "out")
    save_run(run.folder, *train(make_config(run.parameters), progress=False))
    (run.folder / "resume.safetensors").write_text("of a process that was killed while it ended")
    arguments = [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0 and "1 runs: 1 done" in capsys.readouterr().out
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert sorted(kept) == ["checkpoint.safetensors", "record.json"]
    np.savez(tmp_path / "mine.npz", **images, y_train=labels[::-1], y_test=labels)  # the labels are corrected
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert f"failed  {run.name}: it was made on other data (digest then" in said
    assert kept == {path.name: path.read_bytes() for path in run.folder.iterdir()}


def test_without_its_weights_a_run_is_not_done(tmp_path):
    (run,) = fake_grid(tmp_path, "write")
    run.folder.mkdir(parents=True)
    record = json.loads((tmp_path / f"{run.name}.json").read_text())["record"]
    (run.folder / "record.json").write_text(json.dumps(record))
    assert state(run) == "todo"
    (run.folder / "checkpoint.safetensors").write_text("weights")
    assert state(run) == "done"
    for change in (dict(status="running"), dict(epochs=[])):
        (run.folder / "record.json").write_text(json.dumps(record | change))
        assert state(run) == "todo"
