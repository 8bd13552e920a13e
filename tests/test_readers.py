"Damaged files: each reader gives what was written, or one ValueError that names the file; nothing else, and at once."
import json
import math
import random
import re

import pytest
import yaml

from attentiondrop_nb.evidence.figures import compare_scores, load_scores, save_scores
from attentiondrop_nb.evidence.grids import expand, read_grid
from attentiondrop_nb.evidence.tables import load_records, runs_frame
from attentiondrop_nb.training import runs
from attentiondrop_nb.training.config import make_config
from attentiondrop_nb.training.loop import Trainer
from attentiondrop_nb.training.runs import load_run, read_record, save_run, train
from attentiondrop_nb.training.shapes import bars

CONFIG = make_config(dict(dataset="bars", width=2, epochs=2, batch_size=50, alpha=0.1))
FOREIGN = [b"", b"\0", b"{}", b"[]", b"null", b"PK\x03\x04", b"\x89PNG\r\n", b"\xff\xfe\x00\x01", b"[" * 100_000,
           b'{"a":' * 100_000, b"NaN", b"1e999", b"9" * 5000, b"\xed\xa0\x80", b"\xff" * 16, b"a: &a [*a]"]
rounds = pytest.mark.parametrize("rounds", [50, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A folder with each kind of file, and its trainer."
    folder = tmp_path_factory.mktemp("whole")
    data = bars()
    run = train(CONFIG, data, progress=False)
    save_run(folder, *run)
    trainer = Trainer(CONFIG, data)
    trainer.epochs = run.record["epochs"][:1]
    runs._save_progress(folder / "resume.safetensors", trainer, run.record["data"])
    return folder


def damaged(data, draw):
    "`data` cut, with flipped bits, with a part missing, doubled or of another file, or something else."
    kind = draw.randrange(7)
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    if kind == 0:
        return data[:a]
    if kind in (1, 2):  # anywhere, or in the header of a safetensors file
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 9])):
            changed[draw.randrange(len(data) if kind == 1 else min(len(data), 900))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 3:
        return data[:a] + data[b:]
    if kind == 4:
        return data[:b] + data[a:]
    if kind == 5:
        return data[:a] + draw.randbytes(b - a) + data[b:]
    return draw.choice(FOREIGN)


def change_value(value, draw):
    "Plain data with one value somewhere replaced by one of another kind, or one key gone."
    others = [None, True, -1, 0.5, math.nan, math.inf, 10**400, "", "x", "../x", [], {}, [[]], {"a": 1}, "2", 1e308]
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        kept = {k: v for k, v in value.items() if k != key}
        return kept if draw.random() < 0.2 else kept | {key: change_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], change_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(others)


def read_or_refuse(read, path):
    "What `read()` gives, or None if it raises the one error that is allowed: one that names `path`."
    try:
        return read()
    except ValueError as e:
        error = e
    said = str(error)
    assert type(error) is ValueError and str(path) in said and len(said) < 3000, said
    assert re.search("remove it|YAML", said), said
    return None


@rounds
def test_a_damaged_record_is_refused_or_is_what_was_written(whole, tmp_path, rounds):
    draw = random.Random(0)
    right = read_record(whole / "record.json")
    path = tmp_path / "record.json"
    data = (whole / "record.json").read_bytes()
    for _ in range(rounds):
        path.write_bytes(damaged(data, draw))
        assert read_or_refuse(lambda: read_record(path), path) in (None, right)


@rounds
def test_an_older_record_of_other_values_is_refused_or_can_be_drawn(whole, tmp_path, rounds):
    draw = random.Random(1)
    right = read_record(whole / "record.json")
    path = tmp_path / "run" / "record.json"
    path.parent.mkdir()
    taken = 0
    for _ in range(rounds):
        changed = change_value(right, draw)
        path.write_text(json.dumps(changed))
        found = read_or_refuse(lambda: load_records(tmp_path), path)
        if found is not None:
            assert found == [changed] and len(runs_frame(found)) == 1
            taken += 1
    assert taken < rounds / 2


SCORES = {"ad": {k: {"ap": 0.6 + 0.01 * k, "others": None} for k in range(12)}, "none": {0: {"ap": 0.5}}}


@rounds
def test_damaged_scores_are_refused_or_are_what_was_written(whole, tmp_path, rounds):
    draw = random.Random(6)
    path = save_scores(tmp_path / "scores.json", SCORES, runs_frame([read_record(whole / "record.json")]), n_images=9)
    right = load_scores(path)
    assert right[0] == SCORES
    data = path.read_bytes()
    older = {k: v for k, v in json.loads(data).items() if k != "digest"}
    for _ in range(rounds):
        path.write_bytes(damaged(data, draw))
        assert read_or_refuse(lambda: load_scores(path), path) in (None, right)
        path.write_text(json.dumps(change_value(older, draw)))
        found = read_or_refuse(lambda: load_scores(path), path)
        assert found is None or compare_scores(found[0], "ad", "none", "ap").n <= 1


@rounds
def test_damaged_weights_are_refused_or_are_what_was_written(whole, tmp_path, rounds):
    draw = random.Random(2)
    right = load_run(whole).model.state_dict()
    (tmp_path / "record.json").write_bytes((whole / "record.json").read_bytes())
    path = tmp_path / "checkpoint.safetensors"
    data = (whole / "checkpoint.safetensors").read_bytes()
    for _ in range(rounds):
        path.write_bytes(damaged(data, draw))
        found = read_or_refuse(lambda: load_run(tmp_path), path)
        assert found is None or all(v.equal(right[k]) for k, v in found.model.state_dict().items())


@rounds
def test_damaged_progress_is_passed_over_or_is_what_was_written(whole, tmp_path, rounds):
    draw = random.Random(3)
    path = tmp_path / "resume.safetensors"
    data = (whole / "resume.safetensors").read_bytes()
    right, tensors = runs._read_progress(whole / "resume.safetensors")
    for _ in range(rounds):
        path.write_bytes(damaged(data, draw))
        found = read_or_refuse(lambda: runs._read_progress(path), path)
        if found:
            assert found[0] == right and all(v.equal(tensors[k]) for k, v in found[1].items())
        header = change_value(right, draw)  # a file that is whole, and says something else
        path.write_bytes(runs._pack(tensors, progress=json.dumps(header)))
        trainer = Trainer(CONFIG, bars())
        resumed, note = runs._load_progress(path, trainer, None)
        assert len(trainer.epochs) == (len(header["epochs"]) if resumed else 0)
        assert resumed or not note or str(path) in note


def test_progress_of_another_network_is_passed_over(whole, tmp_path):
    path = tmp_path / "resume.safetensors"
    header, tensors = runs._read_progress(whole / "resume.safetensors")
    name = next(k for k, v in tensors.items() if v.dim() == 4)
    wrong = {"model.more": tensors[name].clone(), name: tensors[name][:1], "random.cpu": tensors["random.cpu"][:9]}
    for key, value in [*wrong.items(), ("random.order", None), (name, tensors[name].half()), (name, None)]:
        changed = {k: v for k, v in (tensors | {key: value}).items() if v is not None}
        path.write_bytes(runs._pack(changed, progress=json.dumps(header)))
        trainer = Trainer(CONFIG, bars())
        resumed, note = runs._load_progress(path, trainer)
        assert not resumed and not trainer.epochs and str(path) in note


@pytest.mark.parametrize("name", ["record.json", "checkpoint.safetensors", "resume.safetensors", "grid.yaml"])
def test_what_is_no_file_is_refused(tmp_path, name):
    readers = {".json": read_record, ".yaml": read_grid, ".safetensors": runs._unpack}
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        readers[path.suffix](path)
    path.mkdir()
    with pytest.raises(ValueError, match=name):
        readers[path.suffix](path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(ValueError, match=name):
        readers[path.suffix](path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    for name, read in (("record.json", read_record), ("grid.yaml", read_grid)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(2**40)  # a hole of a terabyte
        with pytest.raises(ValueError, match=f"{name} is (damaged or not ours .it has more|no YAML file of at most)"):
            read(tmp_path / name)


# Grids


GRID = {
    "name": "mine",
    "defaults": {"dataset": "digits", "epochs": 3, "data_dir": "data"},
    "runs": [{"method": ["none", "ad"], "seed": [0, 1, 2]}, {"alpha": [0.1, 0.2], "drop_after": "layer1"}],
    "exclude": [{"method": "none", "seed": 2}],
    "notebooks": {"dataset": "digits"},
}


@rounds
def test_a_damaged_grid_is_refused_or_makes_runs(tmp_path, rounds):
    draw = random.Random(4)
    path = tmp_path / "grid.yaml"
    for _ in range(rounds):
        path.write_bytes(damaged(yaml.safe_dump(GRID).encode(), draw))
        check_grid(path)
        path.write_text(yaml.safe_dump(change_value(GRID, draw)))
        check_grid(path)


def check_grid(path):
    "A grid is refused with a sentence, or has runs whose names are of a plain folder."
    grid = read_or_refuse(lambda: read_grid(path), path)
    if grid is None:
        return
    said = ""
    try:
        assert all(make_config(run) for run in expand(grid))
    except ValueError as e:
        said = str(e)
    assert len(said) < 100_000


BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]"] + [
    f"{b}: &{b} [{', '.join(['*' + a for _ in range(9)])}]" for a, b in zip("abcdefgh", "bcdefghi")
])
SEVEN = ("seed", "epochs", "width", "batch_size", "lr", "block_size", "patience")
HOSTILE = [
    (BOMB + "\nruns: [{seed: *i}]", "too large"),
    ("a: &a [*a]\nruns: [{seed: 1}]", "too large|itself"),
    ("runs: ".ljust(3000, "["), "nested"),
    ("runs: [{seed: !!python/object/apply:os.system ['true']}]", "could not determine a constructor"),
    ("runs: [{seed: !!python/name:os.system }]", "could not determine a constructor"),
    ("runs: [{1: 2}]", "key"),
    ("runs: [{[a]: 1}]", "key"),
    ("runs: [{null: 1}]", "key"),
    ("{1: 2}", "key"),
    ("runs: [null]", "is None"),
    ("runs: [{run_name: ../x}]", "it is the sweep's to give"),
    ("runs: [{dataset: ../x}]", "a plain name"),
    (f"runs: [{{seed: 9{0:0400}}}]", "'seed' is 9000"),
    (f"runs: [{{seed: 9{0:05000}}}]", "grid.yaml|thousands"),
    ("runs: [{seed: 2024-13-45}]", "grid.yaml|is '2024-13-45'"),
    ("runs: [{seed: [0, 1]}]\nexclude: [{seed: true}]", "'seed' is True"),
    ("runs: [{data_dir: [a, b]}]", "'data_dir' is .* a place"),
    ("runs: [{device: [cpu, cuda]}]", "'device' is .* a place"),
    ("runs: [{milestones: 0.5}]", "write '0.5', with its quotes"),
    (json.dumps({"runs": [{name: list(range(1, 11)) for name in SEVEN}]}), "10000000 runs"),
]


@pytest.mark.parametrize("text, says", HOSTILE, ids=[says for _, says in HOSTILE])
def test_a_hostile_grid_is_refused_at_once(tmp_path, text, says):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        expand(read_grid(path))
    assert len(str(error.value)) < 5000
