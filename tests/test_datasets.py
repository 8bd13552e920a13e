"Readers of published data sets, through tiny files in their true formats; downloads from a small server; errors."
import functools
import gzip
import hashlib
import http.server
import pickle
import struct
import tarfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, FashionMNIST

from attentiondrop_nb.training.datasets import load, subset
from attentiondrop_nb.training.shapes import Images, shapes

RNG = np.random.default_rng(0)
CLASSES = {CIFAR10: [f"thing {k}" for k in range(10)], CIFAR100: [f"fine {k}" for k in range(100)]}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pictures(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def no_network(monkeypatch):
    "Whoever asks the network gets an error; the list says who asked."
    asked = []

    def refuse(request, *args, **kwargs):
        asked.append(request.full_url)
        raise URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


# The true formats


class Python2Pickler(pickle._Pickler):
    "Pickles as Python 2 did, which wrote CIFAR's files: one type for text and bytes, protocol 2."

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012  as in its base  # noqa: RUF012  as in its base

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        Python2Pickler(f, protocol=2).dump(value)


def write_cifar(reader, root, monkeypatch, n=6):
    "CIFAR's batches, each row an image as red, green, blue planes; returns images and labels of train and test."
    folder = root / reader.base_folder
    label = "fine_labels" if reader is CIFAR100 else "labels"
    x = {}
    y = {}
    sums = {}
    for split, files in (("train", reader.train_list), ("test", reader.test_list)):
        x[split] = pictures(n * len(files), 3, 32, 32)
        y[split] = RNG.integers(0, len(CLASSES[reader]), n * len(files)).tolist()
        for k, (file, _) in enumerate(files):
            part = slice(k * n, (k + 1) * n)
            batch = {
                "batch_label": file,
                label: y[split][part],
                "data": x[split][part].reshape(n, 3072),
                "filenames": ["a.png"] * n,
            }
            dump(folder / file, batch | ({"coarse_labels": [0] * n} if reader is CIFAR100 else {}))
            sums[file] = md5(folder / file)
    dump(folder / reader.meta["filename"], {reader.meta["key"]: CLASSES[reader], "num_vis": 3072})
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5(folder / reader.meta["filename"])})
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(reader, name, [[file, sums[file]] for file, _ in getattr(reader, name)])
    return x, y


def write_svhn(root, monkeypatch, n):
    "SVHN's Matlab files: X [32, 32, 3, n], y [n, 1] with 10 for the digit 0; returns images and digits."
    x = {}
    y = {}
    listed = {}
    root.mkdir(parents=True, exist_ok=True)
    for split, (url, file, _) in SVHN.split_list.items():
        x[split] = pictures(n[split], 3, 32, 32)
        y[split] = np.arange(n[split]) % 10
        marks = np.where(y[split] == 0, 10, y[split]).astype(np.uint8)[:, None]
        savemat(root / file, {"X": x[split].transpose(2, 3, 1, 0), "y": marks}, do_compression=True)
        listed[split] = [url, file, md5(root / file)]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return x, y


def idx(array):
    "The idx format of MNIST: two zero bytes, 8 for uint8, the number of dimensions, each as big-endian int32, bytes."
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(root, monkeypatch, packed, n=9):
    "Fashion-MNIST's four idx files, packed with gzip as they are published, or unpacked; returns images and labels."
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    x = {}
    y = {}
    listed = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        x[split] = pictures(n, 28, 28)
        y[split] = RNG.integers(0, 10, n, dtype=np.uint8)
        for file, array in ((f"{prefix}-images-idx3-ubyte", x[split]), (f"{prefix}-labels-idx1-ubyte", y[split])):
            path = raw / (file + ".gz" if packed else file)
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
            listed.append((f"{file}.gz", md5(path)))
    monkeypatch.setattr(FashionMNIST, "resources", listed)
    return x, y


def same(data, x, y):
    "Whether `data` holds these images (numpy [N, 3, H, W] or grey [N, H, W]) and labels, in this order."
    for split, ours, labels in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        theirs = np.repeat(x[split][:, None], 3, 1) if x[split].ndim == 3 else x[split]
        assert ours.dtype == torch.uint8 and ours.is_contiguous() and labels.dtype == torch.int64
        np.testing.assert_array_equal(ours.numpy(), theirs)
        np.testing.assert_array_equal(labels.numpy(), y[split])


# Readers


@pytest.mark.parametrize("name, reader", [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_read_from_its_pickled_batches(tmp_path, monkeypatch, no_network, name, reader):
    x, y = write_cifar(reader, tmp_path, monkeypatch)
    data = load(name, tmp_path)
    same(data, x, y)
    assert data.classes == tuple(CLASSES[reader]) and data.mirror and data.name == name and not no_network


def test_cifar_is_unpacked_from_its_archive(tmp_path, monkeypatch, no_network):
    x, y = write_cifar(CIFAR10, tmp_path / "made", monkeypatch)
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as f:
        f.add(tmp_path / "made" / CIFAR10.base_folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    same(load("cifar10", tmp_path / "data"), x, y)
    assert shown(tmp_path / "data") == [CIFAR10.base_folder, CIFAR10.filename] and not no_network


def test_svhn_joins_train_and_extra(tmp_path, monkeypatch, no_network):
    x, y = write_svhn(tmp_path, monkeypatch, dict(train=11, extra=23, test=12))
    data = load("svhn", tmp_path)
    join = lambda a: {"train": np.concatenate([a["train"], a["extra"]]), "test": a["test"]}
    same(data, join(x), join(y))
    assert data.classes == tuple("0123456789") and not no_network


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, monkeypatch, no_network, packed):
    x, y = write_fashion(tmp_path, monkeypatch, packed)
    data = load("fashion_mnist", tmp_path)
    same(data, x, y)
    assert data.x_train.shape == (9, 3, 28, 28) and data.classes[9] == "Ankle boot" and not no_network


def test_a_damaged_file_is_downloaded_again_or_named(tmp_path, monkeypatch, no_network):
    write_cifar(CIFAR10, tmp_path, monkeypatch)
    victim = tmp_path / CIFAR10.base_folder / "data_batch_3"
    victim.write_bytes(victim.read_bytes()[:100])
    why = "no network in this test|Error downloading"  # an old torchvision keeps the cause to itself
    with pytest.raises(FileNotFoundError, match=f"Downloading it failed.*({why})") as e:
        load("cifar10", tmp_path)
    assert no_network and e.value.__cause__ is not None


def test_a_damaged_file_without_a_checksum_is_named(tmp_path, monkeypatch, no_network):
    write_fashion(tmp_path, monkeypatch, packed=False)
    victim = tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    half = victim.read_bytes()[:100]
    victim.write_bytes(half)
    with pytest.raises((ValueError, FileNotFoundError), match="fashion_mnist") as e:
        load("fashion_mnist", tmp_path)
    assert str(tmp_path) in str(e.value) and victim.read_bytes() == half and not no_network


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A web server for the folder `remote`; its address. `broken` holds the names of files it sends only half of."
    (tmp_path / "remote").mkdir()
    broken = set()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, out):
            data = source.read()
            out.write(data[: len(data) // 2] if self.path.rsplit("/")[-1] in broken else data)

        def log_message(self, *args):
            "A test prints nothing."

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path / "remote"))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield f"http://127.0.0.1:{httpd.server_port}", broken
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def serve_svhn(tmp_path, monkeypatch, url):
    x, y = write_svhn(tmp_path / "remote", monkeypatch, dict(train=3, extra=4, test=5))
    monkeypatch.setattr(
        SVHN, "split_list", {s: [f"{url}/{file}", file, m] for s, (_, file, m) in SVHN.split_list.items()}
    )
    return {"train": np.concatenate([x["train"], x["extra"]]), "test": x["test"]}, {
        "train": np.r_[y["train"], y["extra"]],
        "test": y["test"],
    }


def shown(folder):
    "The names of a folder's files that are not hidden."
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_what_is_missing_is_downloaded_once(tmp_path, monkeypatch, server):
    x, y = serve_svhn(tmp_path, monkeypatch, server[0])
    same(load("svhn", tmp_path / "data"), x, y)
    assert shown(tmp_path / "data") == ["extra_32x32.mat", "test_32x32.mat", "train_32x32.mat"]
    for file in (tmp_path / "remote").iterdir():
        file.unlink()
    same(load("svhn", tmp_path / "data"), x, y)  # from disk


def test_four_that_miss_the_same_files_download_them_once(tmp_path, monkeypatch, server):
    x, y = serve_svhn(tmp_path, monkeypatch, server[0])
    requests = []
    urlopen = urllib.request.urlopen

    def count(request, *args, **kwargs):
        requests.append(request.full_url)
        return urlopen(request, *args, **kwargs)

    monkeypatch.setattr("urllib.request.urlopen", count)
    with ThreadPoolExecutor(4) as pool:
        for data in pool.map(lambda _: load("svhn", tmp_path / "data"), range(4)):
            same(data, x, y)
    assert len(requests) == 6  # two for each file: where it is, and what it is


def test_after_a_download_that_breaks_off_the_next_call_goes_on(tmp_path, monkeypatch, server):
    x, y = serve_svhn(tmp_path, monkeypatch, server[0])
    server[1].add("extra_32x32.mat")
    with pytest.raises(FileNotFoundError, match="Downloading it failed") as e:
        load("svhn", tmp_path / "data")
    assert e.value.__cause__ is not None
    server[1].clear()
    same(load("svhn", tmp_path / "data"), x, y)


def test_an_interrupted_download_stays_one(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("urllib.request.urlopen", stop)
    for _ in range(2):  # the lock is free again
        with pytest.raises(KeyboardInterrupt):
            load("fashion_mnist", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_no_network_is_one_error_that_says_what_to_do(tmp_path, no_network, name):
    with pytest.raises(FileNotFoundError) as e:
        load(name, tmp_path)
    for text in (
        f"no data set '{name}'",
        f"{tmp_path}/{name}.npz",
        f"{tmp_path}/{name}/train/<class>",
        f"torchvision's own files in {tmp_path}",
        "Downloading it failed: ",
        "data_dir",
    ):
        assert text in str(e.value)
    assert "\n" not in str(e.value) and no_network and e.value.__cause__ is not None


def test_unknown_name(tmp_path, no_network):
    with pytest.raises(FileNotFoundError, match="no data set 'cifar'.*cifar10, cifar100, svhn, fashion_mnist"):
        load("cifar", tmp_path)
    assert not no_network


# The order of places


def write_npz(path, grey):
    x = np.full((2, 8, 8, 3), grey, np.uint8)
    y = np.array([0, 1])
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)


def write_folder(root, grey):
    for split in ("train", "test"):
        for c in "ab":
            (root / split / c).mkdir(parents=True)
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(root / split / c / "0.png")


def test_npz_before_folder_before_torchvision(tmp_path, monkeypatch, no_network):
    x, y = write_cifar(CIFAR10, tmp_path, monkeypatch)
    write_folder(tmp_path / "cifar10", 20)
    write_npz(tmp_path / "cifar10.npz", 10)
    assert (load("cifar10", tmp_path).x_train == 10).all()
    (tmp_path / "cifar10.npz").unlink()
    assert (load("cifar10", tmp_path).x_train == 20).all()
    (tmp_path / "cifar10" / "test").rename(tmp_path / "cifar10" / "no test")
    same(load("cifar10", tmp_path), x, y)


@pytest.mark.parametrize("name, n", [("digits", 1437), ("shapes", 10_000)])
def test_embedded_names_are_ours_whatever_lies_there(tmp_path, name, n):
    write_npz(tmp_path / f"{name}.npz", 10)
    assert len(load(name, tmp_path).x_train) == n


# Subsets and masks


def toy(y, masks=False):
    "A data set whose image k has the value k, and whose mask k covers k pixels."
    n = len(y)
    x = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)
    m = (torch.arange(256)[None] < torch.arange(n)[:, None]).view(n, 16, 16) if masks else None
    return Images("toy", x, torch.tensor(y), x, torch.tensor(y), tuple("abcd"), masks_train=m, masks_test=m)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.data())
@settings(deadline=None, max_examples=60)
def test_subset_is_balanced_nested_and_keeps_pairs(y, draw):
    n = draw.draw(st.integers(1, len(y)))
    data = toy(y, masks=True)
    part, whole = subset(data, n), subset(data, len(y))
    which = part.x_train[:, 0, 0, 0].tolist()
    assert (
        len(set(which)) == n
        and part.y_train.tolist() == [y[k] for k in which]
        and part.masks_train.sum((1, 2)).tolist() == which
    )
    assert whole.x_train[:n].equal(part.x_train) and part.x_test is data.x_test and part.masks_test is data.masks_test
    counts = part.y_train.bincount(minlength=4).tolist()
    sizes = [y.count(k) for k in range(4)]
    most = max(counts)
    assert all(c >= min(size, most - 1) for c, size in zip(counts, sizes))  # nobody is behind who has images left


def test_subset_does_not_hang_on_the_seed_of_a_run():
    data = toy([0, 1, 2, 3] * 20)
    torch.manual_seed(1)
    np.random.seed(1)
    first = subset(data, 13)
    torch.manual_seed(2)
    np.random.seed(2)
    assert subset(data, 13).x_train.equal(first.x_train)


@pytest.mark.parametrize("n", [0, -1, 81, 2.0, True, "5", None])
def test_a_bad_subset_names_the_parameter(n):
    with pytest.raises(ValueError, match=f"train_images is {n!r}; toy has 80 training images"):
        subset(toy([0, 1, 2, 3] * 20), n)


def test_masks_move_with_the_images():
    moved = toy([0, 1], masks=True).to("meta")
    tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
    assert len(tensors) == 6 and all(t.is_meta for t in tensors)
    assert toy([0, 1]).to("meta").masks_train is None


@pytest.mark.parametrize("n", [1, 5, 30])
def test_shapes_of_any_number(n):
    data = shapes(n, n)
    assert data.x_train.shape == (n, 3, 32, 32) and data.y_train.bincount(minlength=10).max() == -(-n // 10)
    assert data.masks_test.any((1, 2)).all() and not data.masks_test.all((1, 2)).any()


def test_shapes_need_a_picture():
    with pytest.raises(ValueError, match="0 training and 5 test pictures"):
        shapes(0, 5)


def test_shapes_are_the_same_whatever_was_drawn_before():
    first = shapes(30, 10)
    np.random.seed(1)
    torch.manual_seed(1)
    again = shapes(30, 10)
    assert again.x_train.equal(first.x_train) and again.masks_test.equal(first.masks_test)


@pytest.mark.parametrize("name", ["digits", "noise", "drawn"])
def test_a_default_device_or_dtype_changes_no_data(tmp_path, name):
    rng = np.random.default_rng(1)
    arrays = {f"x_{split}": rng.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez(tmp_path / "noise.npz", **arrays, y_train=np.arange(8) % 2, y_test=np.arange(8) % 2)
    for split in ("train", "test"):
        (tmp_path / "drawn" / split / "a").mkdir(parents=True)
        Image.fromarray(arrays[f"x_{split}"][0]).save(tmp_path / "drawn" / split / "a" / "0.png")
    right = load(name, tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = load(name, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert getattr(found, part).equal(getattr(right, part))
