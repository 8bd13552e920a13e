"attentiondrop-sweep on a real Ray cluster of two machines (on this one), one of which dies while it is training."
import signal
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from fake_runs import fake_grid, fake_notebook, quick_imports, starts, wait_until

from attentiondrop_nb.evidence.grids import plan, read_grid
from attentiondrop_nb.evidence.sweeps import main
from attentiondrop_nb.evidence.worker import is_locked, state
from attentiondrop_nb.training.runs import read_record

pytestmark = pytest.mark.whole
COMMAND = [sys.executable, "-c", "import sys; from attentiondrop_nb.evidence.sweeps import main; sys.exit(main())"]
MEMORY = 80_000_000  # bytes of object store a node, about the least that Ray takes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    "A head that runs nothing, and two nodes of one CPU each."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", quick_imports(tmp_path_factory.mktemp("quick")))
        for name, value in dict(
            RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_DISABLE_IMPORT_WARNING="1"
        ).items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        made = Cluster(
            initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False, object_store_memory=MEMORY)
        )
        try:
            made.nodes = [made.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
            made.wait_for_nodes()
            yield made
        finally:
            made.shutdown()


def start(cluster, *arguments):
    "The command, as a process."
    command = [*COMMAND, *map(str, arguments), "--ray", cluster.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def power_off(node):
    "Kill a node and all that runs on it, as a power cut does."
    for process in [raylet(node), *raylet(node).children(recursive=True)]:
        process.kill()


def running_on(node, folder):
    "Names of the runs that a node is making."
    there = {p.pid for p in raylet(node).children(recursive=True)}
    return {name for name, pid in starts(folder) if pid in there}


def test_all_runs_finish_though_a_node_dies(cluster, tmp_path):
    runs = fake_grid(tmp_path, *["wait2 write"] * 5, "fail")
    arguments = tmp_path / "grid.yaml", "--out", tmp_path / "out", "--notebook", fake_notebook(tmp_path)
    sweep = start(cluster, *arguments)
    victim = cluster.nodes[1]
    wait_until(lambda: running_on(victim, tmp_path) or sweep.poll() is not None)
    (killed,) = running_on(victim, tmp_path)
    assert state(next(run for run in runs if run.name == killed)) == "running"
    power_off(victim)
    said = sweep.communicate(timeout=240)[0]
    assert [state(run) for run in runs] == ["done"] * 5 + ["failed"], said
    times = Counter(name for name, _ in starts(tmp_path))
    assert times == {
        run.name: 2 if run.name == killed else 1 for run in runs
    }  # begun anew elsewhere; the failed one is not repeated
    assert (
        sweep.returncode == 1
        and "6 runs: 5 done, 1 failed" in said
        and "ArithmeticError: this run was told to fail" in said
    )


def test_real_training_on_the_node_that_is_left(cluster, tmp_path):
    (tmp_path / "grid.yaml").write_text("runs: [{method: ad, width: 2, epochs: 1, batch_size: 512}]")
    sweep = start(cluster, tmp_path / "grid.yaml", "--out", tmp_path / "out")
    said = sweep.communicate(timeout=240)[0]
    assert sweep.returncode == 0, said
    (run,) = plan(read_grid(tmp_path / "grid.yaml"), tmp_path / "out")
    record = read_record(run.folder / "record.json")
    assert (
        record["status"] == "finished"
        and record["environment"]["device"].startswith("cpu")
        and "1 runs: 1 done" in said
    )


def test_an_ended_sweep_ends_its_tasks(cluster, tmp_path):
    (run,) = fake_grid(tmp_path, "wait600")
    sweep = start(cluster, tmp_path / "grid.yaml", "--out", tmp_path / "out", "--notebook", fake_notebook(tmp_path))
    wait_until(lambda: starts(tmp_path) or sweep.poll() is not None)
    sweep.send_signal(signal.SIGTERM)
    said = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 130 and "interrupted: 0 of 1 runs are done; the same command goes on" in said, said
    wait_until(lambda: not psutil.pid_exists(starts(tmp_path)[0][1]) and not is_locked(run.folder), 20)
    assert state(run) == "interrupted"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_is_an_error(tmp_path, capsys, address):
    fake_grid(tmp_path, "write")
    before = signal.getsignal(signal.SIGTERM)
    arguments = [
        tmp_path / "grid.yaml",
        "--out",
        tmp_path / "out",
        "--notebook",
        fake_notebook(tmp_path),
        "--ray",
        address,
    ]
    assert main([str(a) for a in arguments]) == 2
    signal.signal(signal.SIGTERM, before)
    assert f"no Ray cluster at {address}: " in capsys.readouterr().err and not starts(tmp_path)
