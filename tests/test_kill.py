"A run that is killed at any moment goes on where it was, and ends in the very same bits as one that was not."
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nbformat
import psutil
import pytest
import torch
from checkout import ROOT
from fake_runs import quick_imports, wait_until
from safetensors.torch import load_file

from attentiondrop_nb.evidence.grids import plan
from attentiondrop_nb.evidence.worker import execute, state
from attentiondrop_nb.training import runs
from attentiondrop_nb.training.config import METHODS, make_config
from attentiondrop_nb.training.runs import load_run, read_record, remove_leavings, save_run, train, write_atomic

QUICK = dict(width=2, epochs=4, batch_size=64, train_images=256, device="cpu")  # to the bit on a CPU alone
NOTEBOOK = ROOT / "nbs" / "experiments" / "train.ipynb"

# A process that has imported all forks a child for each line of JSON it is given, and says how it ended.
FORKS = """
import json, os, signal, sys, time, torch, traceback
from attentiondrop_nb.training import config, datasets, loop, runs
torch.set_num_threads(1)
runs._SAVE_SECONDS = 0
data = datasets.digits()

def kill_at(point, count):
    name, when = point.split()
    owner = {"replace": os, "fsync": os, "train_step": loop, "run_epoch": runs}[name]
    f = getattr(owner, name)
    left = [count]
    def killing(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = f(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value
    setattr(owner, name, killing)

def whole_run(values, folder, end, point=None, count=0, late=False):
    made = []
    class Kept(loop.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)
    runs.Trainer = Kept
    if point and not late:
        kill_at(point, count)
    run = runs.train(config.make_config(values), data, folder, progress=False)
    runs._save_progress(end, made[0])
    if point and late:
        kill_at(point, count)
    runs.save_run(folder, *run)

def child(order):
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, {signal.SIGINT: signal.default_int_handler}.get(number, signal.SIG_DFL))
    try:
        exec(order["code"], globals())
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os._exit(child(order))
    if "signal" in order:
        end = time.monotonic() + order["seconds"]
        while time.monotonic() < end and not (order["word"] and order["word"] in open(order["log"]).read()):
            time.sleep(0.01)
        os.kill(pid, order["signal"])
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Forks:
    "Runs code in children of a process that has imported all."

    def __init__(self, log):
        self.log = log
        self.process = subprocess.Popen([sys.executable, "-c", FORKS], cwd=ROOT, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, code, **order):
        "Run `code`; send it `signal` after so many `seconds`, or when it has said a `word`. Returns its exit code."
        self.log.write_text("")
        self.process.stdin.write(json.dumps(dict(code=code, log=str(self.log), word="") | order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def train(self, values, folder, kill_after=None, **kill):
        "A whole run in `folder`, its last state in a file beside that; killed after so many seconds, or at `kill`."
        given = dict(values=values, folder=str(folder), end=f"{folder}.safetensors") | kill
        timed = {} if kill_after is None else dict(signal=signal.SIGKILL, seconds=kill_after)
        return self.run(f"whole_run(**{given!r})", **timed)


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = Forks(tmp_path_factory.mktemp("forks") / "log")
    yield made
    made.process.communicate()  # closes its pipes and waits


def without_times(record):
    "A record less what may differ between two executions of one run."
    epochs = [{k: v for k, v in e.items() if k != "seconds"} for e in record["epochs"]]
    return [epochs, *(record[k] for k in ("parameters", "data", "final", "best", "status"))]


def check_same(folder):
    "Are the killed and the straight run the same, in every bit of what a run is made of?"
    killed, straight = (load_file(folder / f"{name}.safetensors") for name in ("killed", "straight"))
    assert killed.keys() == straight.keys() and any(k.startswith("momentum") for k in killed)
    assert {"random.cpu", "random.order"} < killed.keys()
    assert not [k for k in killed if not killed[k].equal(straight[k])]
    weights = [load_run(folder / name).model.state_dict() for name in ("killed", "straight")]
    assert all(v.equal(weights[1][k]) for k, v in weights[0].items())
    records = [read_record(folder / name / "record.json") for name in ("killed", "straight")]
    assert without_times(records[0]) == without_times(records[1])
    assert sorted(p.name for p in (folder / "killed").iterdir()) == ["checkpoint.safetensors", "record.json"]


# In a step, between epochs, while progress is written; LAST: when all epochs are done, while weights and record are.
POINTS = [("train_step after", 6), ("run_epoch after", 2), ("fsync before", 1), ("replace before", 2),
          ("replace after", 1)]
OTHERS = [("fsync after", 3), ("run_epoch before", 3), ("train_step before", 1)]
LAST = [("fsync before", 1), ("replace before", 1), ("replace after", 1), ("replace before", 2), ("replace after", 2)]
slow = pytest.mark.slow


@pytest.mark.parametrize("method, kills", [("ad", 0), *(pytest.param(m, 20, marks=slow) for m in METHODS)])
def test_a_run_that_is_killed_ends_in_the_same_bits(tmp_path, forks, method, kills):
    values = QUICK | dict(method=method, cutout=True)
    start = time.monotonic()
    assert forks.train(values, tmp_path / "straight") == 0
    seconds = time.monotonic() - start
    killed = tmp_path / "killed"
    draw = random.Random(method)
    if kills:
        for _ in range(kills):
            forks.train(values, killed, kill_after=draw.uniform(0, seconds / 2))
        assert forks.train(values, killed) == 0
        check_same(tmp_path)
        shutil.rmtree(killed)
    points = OTHERS if kills else POINTS
    ends = [forks.train(values, killed, point=point, count=count) for point, count in points]
    ends += [forks.train(values, killed, point=point, count=count, late=True) for point, count in LAST]
    assert set(ends) == {-signal.SIGKILL}, ends
    assert forks.train(values, killed) == 0
    check_same(tmp_path)


# No room, no right, no folder; and ends that are asked for


def test_a_full_disk_leaves_the_last_progress_and_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0)
    config = make_config(QUICK | dict(method="none"))
    sync = os.fsync
    count = []

    def full(file):
        count.append(file)
        if len(count) == 5:  # a file and its folder for each of two epochs, then the third one's file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"resume.safetensors cannot be written \(No space left on device\)"):
        train(config, folder=tmp_path, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["resume.safetensors"]
    begun = []
    model, record = train(config, folder=tmp_path, progress=False, on_epoch=lambda r: begun.append(len(r["epochs"])))
    assert begun == [3, 4] and record["environment"]["resumed"]
    save_run(tmp_path, model, record)
    for last in (1, 3):  # the weights cannot be written, nor the record
        count[:] = [0] * (5 - last)
        with pytest.raises(OSError, match="cannot be written"):
            save_run(tmp_path, model, record | dict(seconds=1.0))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "record.json"]
        assert load_run(tmp_path).record == record


def test_who_may_read_the_record_may_read_the_weights(tmp_path):
    save_run(tmp_path, *train(make_config(QUICK | dict(epochs=1)), progress=False))
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_weights_and_record_of_two_runs_are_not_taken_for_one(tmp_path):
    config = make_config(QUICK | dict(epochs=1))
    for seed in (0, 1):
        save_run(tmp_path / str(seed), *train(replace(config, seed=seed), progress=False))
    (tmp_path / "0" / "record.json").replace(tmp_path / "1" / "record.json")
    with pytest.raises(ValueError, match=r"1/checkpoint.safetensors and record.json beside it are not of one run"):
        load_run(tmp_path / "1")


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
runs.train(config.make_config({values!r}), data, {folder!r}, progress=False)
"""


def test_a_file_that_may_not_grow_ends_the_run_with_a_sentence(tmp_path, forks):
    assert forks.run(LIMITED.format(values=QUICK, folder=str(tmp_path))) == 1 and not list(tmp_path.iterdir())
    said = forks.log.read_text()
    assert "resume.safetensors cannot be written (File too large); what was there is as it was." in said


@pytest.mark.parametrize("place", ["a file", "a file/below", "/proc/nowhere", "/dev/null/x", "record"])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "record" / "record.json").mkdir(parents=True)
    monkeypatch.setattr(runs, "load", lambda *args: pytest.fail("work was done"))
    with pytest.raises(OSError, match="a run cannot write into the folder") as error:
        train(make_config(QUICK), folder=tmp_path / place)
    assert place in str(error.value) and "choose another out_dir" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "record"]


def test_to_find_out_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    runs._check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


ENDED = """
tell = lambda record: print("epoch", len(record["epochs"]), flush=True)
runs.train(config.make_config({values!r}), data, {folder!r}, progress=False, on_epoch=tell)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_says_how_it_goes_on(tmp_path, forks, number):
    code = ENDED.format(values=QUICK | dict(epochs=500), folder=str(tmp_path))
    assert forks.run(code, signal=number, seconds=60, word="epoch 3") in (-signal.SIGTERM, 1)
    said = forks.log.read_text()
    assert "interrupted after epoch" in said and said.count("\n") < 500
    assert f"its progress is in {tmp_path}; the same call goes on from there" in said
    assert [p.name for p in tmp_path.iterdir()] == ["resume.safetensors"]
    runs._read_progress(tmp_path / "resume.safetensors")  # whole


@pytest.fixture
def ctrl_c():
    "Ctrl-C is heard, also where a shell has started the tests in the background: its jobs ignore it."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_until_a_file_is_whole(tmp_path, ctrl_c):
    def write(path):
        os.kill(os.getpid(), signal.SIGINT)
        path.write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a.txt", write)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "whole"


def test_leavings_of_the_dead_are_removed_and_nothing_else(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as other:
        alive = [f".resume.safetensors.{other.pid}.tmp", "notes.tmp", ".own.tmp", "record.json", "resume.safetensors"]
        for name in [*alive, ".resume.safetensors.999999999.tmp", f".record.json.{os.getpid()}.tmp"]:
            (tmp_path / name).write_text("")
        remove_leavings(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(alive)
        other.kill()
    remove_leavings(tmp_path, done=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".own.tmp", "notes.tmp", "record.json"]


# Another kind of device, other data, memory


def test_a_run_goes_on_on_another_kind_of_device_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0)
    config = make_config(QUICK | dict(method="none"))
    with pytest.raises(ArithmeticError):
        train(config, folder=tmp_path, progress=False, on_epoch=stop_at(3))
    path = tmp_path / "resume.safetensors"
    header, tensors = runs._read_progress(path)
    tensors["random.order"] = torch.zeros(16, dtype=torch.uint8)  # a CUDA generator's
    path.write_bytes(runs._pack(tensors, progress=json.dumps(header)))
    run = train(config, folder=tmp_path, progress=False)
    assert run.record["epochs"][:2] == header["epochs"] and run.record["environment"]["resumed"]
    assert "from epoch 3 on order and coins are drawn anew" in run.record["environment"]["note"]
    again = json.loads(json.dumps(run.record["environment"]))
    assert again["note"] == run.record["environment"]["note"]


def stop_at(epochs):
    "An `on_epoch` that ends a run with an error."
    def stop(record):
        if len(record["epochs"]) == epochs:
            raise ArithmeticError
    return stop


def test_a_run_of_more_epochs_than_asked_for_is_not_taken_up(tmp_path):
    config = make_config(QUICK | dict(method="none"))
    trainer = runs.Trainer(config, runs.load("digits"))
    trainer.epochs = [runs.run_epoch(trainer)] * 5
    runs._save_progress(tmp_path / "resume.safetensors", trainer)
    run = train(config, folder=tmp_path, progress=False)
    assert len(run.record["epochs"]) == 4 and "5 epochs, of 4" in run.record["environment"]["note"]


GROWTH = """
import os
from attentiondrop_nb.training import config, runs
pages = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
seen = []
runs.train(config.make_config({values!r}), progress=False, on_epoch=lambda record: seen.append(pages()))
print(seen[-1] - seen[9])
"""


@slow
@pytest.mark.parametrize("method", ["ad", "dropblock"])
def test_memory_does_not_grow_over_a_hundred_epochs(method):
    code = GROWTH.format(values=QUICK | dict(epochs=100, method=method, cutout=True))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000_000  # bytes


@slow
def test_a_run_of_a_sweep_that_is_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{quick_imports(tmp_path)}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, 4)
    often = "from attentiondrop_nb.training import runs\nruns._SAVE_SECONDS = 0"
    notebook.cells.insert(2, nbformat.v4.new_code_cell(often))
    nbformat.write(notebook, tmp_path / "often.ipynb")
    (run,) = plan({"runs": [QUICK | dict(method="ad", epochs=40, cutout=True)]}, tmp_path / "out")
    draw = random.Random(0)
    for _ in range(5):
        assert killed_sweep(run, tmp_path / "often.ipynb", draw.uniform(0, 0.3)) == state(run) == "failed"
    assert execute(run, tmp_path / "often.ipynb").state == "done"
    model, record = load_run(run.folder)
    straight = train(make_config(run.parameters), progress=False)
    assert all(v.equal(straight.model.state_dict()[k]) for k, v in model.state_dict().items())
    assert without_times(record) == without_times(straight.record) and record["environment"]["resumed"]
    assert not list(run.folder.glob(".*.tmp")) and not (run.folder / "resume.safetensors").exists()


def killed_sweep(run, notebook, seconds):
    "How `execute` ends if the run's processes are killed so many seconds after it has saved its progress again."
    path = run.folder / "resume.safetensors"
    before = path.stat().st_mtime_ns if path.exists() else 0
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(execute, run, notebook)
        wait_until(lambda: made.done() or (path.exists() and path.stat().st_mtime_ns > before))
        time.sleep(seconds)
        for process in psutil.Process().children(recursive=True):
            process.kill()
        return made.result().state
