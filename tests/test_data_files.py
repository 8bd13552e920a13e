"Files that others wrote: what is wrong with one is said by name; damaged ones give the right images or an error."
import os
import random
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from test_datasets import CIFAR10, no_network, write_cifar, write_fashion, write_svhn  # noqa: F401 (a fixture)

from attentiondrop_nb.training.datasets import load

SIDE = 8
SPLITS = ("train", "test")
RNG = np.random.default_rng(0)
X = {split: RNG.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8) for split, n in zip(SPLITS, (6, 4))}
Y = {split: np.arange(len(X[split])) % 2 for split in SPLITS}
NPZ = {f"x_{s}": X[s] for s in SPLITS} | {f"y_{s}": Y[s] for s in SPLITS} | {"classes": np.array(["cat", "dog"])}


def found(data):
    "All that a data set holds, to compare: bytes and shapes of the images, labels, classes."
    images = [(x.numpy().tobytes(), tuple(x.shape)) for x in (data.x_train, data.x_test)]
    return images, data.y_train.tolist(), data.y_test.tolist(), data.classes


def write_pictures(root, ending="png", convert=lambda x: Image.fromarray(x), **options):
    "The images X as files in folders of classes."
    for split in SPLITS:
        for i, (x, y) in enumerate(zip(X[split], Y[split])):
            folder = root / split / ("cat", "dog")[y]
            folder.mkdir(parents=True, exist_ok=True)
            convert(x).save(folder / f"{i}.{ending}", **options)


def channels_first(split, by_class=False):
    x = X[split].transpose(0, 3, 1, 2)
    return x[np.argsort(Y[split], kind="stable")] if by_class else x


# npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_every_form_comes_back(tmp_path, save):
    grey = {s: X[s][..., 0] for s in SPLITS}
    for form in (lambda x: x, np.asfortranarray):
        for x in (X, grey):
            y = {"y_train": Y["train"].astype(">i2")[:, None], "y_test": Y["test"].astype(np.uint64)}
            classes = np.array([b"cat", "høne".encode()])
            save(tmp_path / "a.npz", x_train=form(x["train"]), x_test=form(x["test"]), **y, classes=classes, more=[{}])
            data = load("a", tmp_path)
            for split, ours in zip(SPLITS, (data.x_train, data.x_test)):
                theirs = channels_first(split) if x is X else np.repeat(x[split][:, None], 3, 1)
                np.testing.assert_array_equal(ours.numpy(), theirs)
                assert ours.is_contiguous()
            assert data.y_train.tolist() == Y["train"].tolist() and data.classes == ("cat", "høne")


def rewrite(path, **members):
    "The npz file at `path` with other bytes for some of its members."
    with zipfile.ZipFile(path) as f:
        old = {name: f.read(name) for name in f.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as f:
        for name, data in (old | {f"{key}.npy": data for key, data in members.items()}).items():
            f.writestr(name, data)


def npy(shape, data=b"", descr="|u1", version=1):
    "The bytes of an npy file whose header says `shape`, whatever follows."
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 * version, "little") + header + data


BAD_MEMBERS = {
    "no magic": (dict(x_train=b"plain text"), "magic"),
    "a shape beyond all memory": (dict(x_train=npy("(10000000, 5000, 5000, 3)")), "by its header"),
    "a shape that overflows": (dict(x_train=npy(f"({2**62}, 4, 1, 3)")), "by its header"),
    "a negative shape": (dict(x_train=npy("(-6, -8, 8, 3)", bytes(1152))), "by its header"),
    "more than its header says": (dict(x_train=npy("(6, 8, 8, 3)", bytes(2000))), "by its header"),
    "less than its header says": (dict(x_train=npy("(6, 8, 8, 3)", bytes(1000))), "by its header"),
    "nested brackets": (dict(x_train=npy("".ljust(9000, "("))), "cannot be read"),
    "a long header": (dict(x_train=npy("(6, 8, 8, 3)".ljust(60000), bytes(1152))), "large"),
    "another version": (dict(x_train=npy("(6, 8, 8, 3)", bytes(1152), version=2)), "version"),
    "pickled labels": (dict(y_train=npy("(6,)", b"cos\nsystem\n(S'false'\ntR.", "|O")), "pickle"),
    "labels that are fractions": (dict(y_train=npy("(6,)", np.full(6, np.nan).tobytes(), "<f8")), "one label"),
    "labels below zero": (dict(y_train=npy("(6,)", bytes([255] * 6), "|i1")), "labels from -1"),
    "labels without end": (dict(y_train=npy("(6,)", bytes([255] * 48), "<u8")), "labels from"),
    "classes that are numbers with fractions": (dict(classes=npy("(2,)", bytes(16), "<f8")), "name for each"),
    "classes that are no text": (dict(classes=npy("(2,)", b"\xff\xfe", "|S1")), "Unicode"),
    "no images": (dict(x_train=npy("(0, 8, 8, 3)"), y_train=npy("(0,)")), "not empty"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_a_bad_member_is_one_error_that_names_the_file(tmp_path, case):
    members, needed = BAD_MEMBERS[case]
    path = tmp_path / "a.npz"
    np.savez(path, **NPZ)
    rewrite(path, **members)
    with pytest.raises(ValueError, match=needed) as e:
        load("a", tmp_path)
    assert str(path) in str(e.value) and "write it anew" in str(e.value) and "\n" not in str(e.value)


def test_what_is_not_needed_is_not_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **NPZ)
    expected = found(load("a", tmp_path))
    rewrite(tmp_path / "a.npz", more=b"no array", masks=npy("(10000000, 5000, 5000)"))
    assert found(load("a", tmp_path)) == expected


def write_bomb(path, megabytes=2000):
    "An npz file of 2 MB: black grey images that unpack to 2 GB, and as three channels fill 6."
    n = megabytes * 2**10
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    header = packer.compress(npy(f"({n}, 32, 32)")) + packer.flush(zlib.Z_FULL_FLUSH)
    black = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = b"".join([header, *[black] * megabytes, packer.flush()])
    with zipfile.ZipFile(path, "w") as f:
        f.writestr("x_train.npy", stream)
        f.writestr("y_train.npy", npy(f"({n},)", bytes(n)), zipfile.ZIP_DEFLATED)
        f.writestr("x_test.npy", npy("(1, 32, 32)", bytes(1024)))
        f.writestr("y_test.npy", npy("(1,)", bytes(1)))
    raw = bytearray(path.read_bytes())
    size = (len(npy(f"({n}, 32, 32)")) + n * 1024).to_bytes(4, "little")
    for start in (0, raw.index(b"PK\1\2") + 2):  # what is stored is packed already, here and in the directory
        raw[start + 8 : start + 10] = b"\x08\0"
        raw[start + 22 : start + 26] = size
    path.write_bytes(raw)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    write_bomb(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as f, f.open("x_train.npy") as member:
        assert f.getinfo("x_train.npy").file_size > 300 * os.path.getsize(tmp_path / "a.npz")
        member.read(2**20)
        assert not any(member.read(2**20))  # a true stream of zeros
    monkeypatch.setattr("attentiondrop_nb.training.datasets._memory", lambda: 2**40)
    with pytest.raises(ValueError, match="would grow from .* as no images do"):
        load("a", tmp_path)
    monkeypatch.setattr("attentiondrop_nb.training.datasets._memory", lambda: 2**33)
    with pytest.raises(ValueError, match=r"6\.3 GB in memory, and at most 4\.3"):
        load("a", tmp_path)


def test_a_directory_that_says_less_than_there_is_is_an_error(tmp_path):
    "x_train unpacks to twice of what header and directory say."
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **NPZ | {"x_train": np.concatenate([X["train"], X["train"]])})
    with zipfile.ZipFile(path) as f:
        info = f.getinfo("x_train.npy")
        whole = f.read(info)
    raw = path.read_bytes()
    said = info.file_size.to_bytes(4, "little")
    less = (info.file_size - X["train"].nbytes).to_bytes(4, "little")
    place = raw.index(said, raw.index(b"PK\1\2"))
    path.write_bytes(raw[:place] + less + raw[place + 4 :])
    assert len(whole) > int.from_bytes(less, "little")
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'x_train.npy'"):
        load("a", tmp_path)


def test_an_array_hidden_in_a_comment_is_missed(tmp_path):
    "One flipped byte, and the directory's last entry, the names of the classes, is the comment of the entry before."
    path = tmp_path / "a.npz"
    np.savez(path, **NPZ)
    raw = bytearray(path.read_bytes())
    last = raw.rindex(b"PK\1\2")
    before = raw.rindex(b"PK\1\2", 0, last)
    raw[before + 32] = raw.rindex(b"PK\5\6") - last
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as f:
        assert len(f.namelist()) == 4  # zipfile does not mind
    with pytest.raises(ValueError, match="should hold 5 files, and 4 are found"):
        load("a", tmp_path)


# Pictures


def test_pictures_come_back(tmp_path):
    write_pictures(tmp_path / "a")
    data = load("a", tmp_path)
    for split, ours, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        np.testing.assert_array_equal(ours.numpy(), channels_first(split, by_class=True))
        assert y.tolist() == sorted(Y[split].tolist()) and ours.is_contiguous()
    assert data.classes == ("cat", "dog")


def png(width, height, depth, kind, rows, *chunks):
    "A PNG by hand."
    pack = lambda name, data: len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    parts = [(b"IHDR", size + bytes([depth, kind, 0, 0, 0])), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pack(name, data) for name, data in parts)


def one(tmp_path, data=None, ending="png", **picture):
    "The first image of a data set whose pictures are all this one, given as bytes or as a Pillow image."
    for split in SPLITS:
        place = tmp_path / "one" / split / "a" / f"0.{ending}"
        place.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            picture["image"].save(place, **{k: v for k, v in picture.items() if k != "image"})
        else:
            place.write_bytes(data)
    return load("one", tmp_path).x_train[0].numpy()


def test_sixteen_bits_keep_their_upper_byte(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1))
    for ending in ("png", "tif"):
        seen = one(tmp_path / ending, image=Image.fromarray(ramp), ending=ending)
        assert (seen == 17 * np.arange(16)).all() and seen.shape == (3, 16, 16)
    # Colour by hand: Pillow cannot write it.
    colour = np.array([[[0, 255, 256], [65535, 128 * 256, 4369]]], dtype=">u2")
    assert one(tmp_path, png(2, 1, 16, 2, b"\0" + colour.tobytes())).tolist() == [[[0, 255]], [[0, 128]], [[1, 17]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    with pytest.raises(ValueError, match=f"0.tif cannot be read as a picture: its pixels have Pillow's mode {mode}"):
        one(tmp_path, image=Image.new(mode, (4, 4), 70000), ending="tif")


def test_transparent_pixels_are_black(tmp_path):
    grey = Image.merge("LA", [Image.new("L", (2, 1), 200), Image.fromarray(np.array([[0, 255]], dtype=np.uint8))])
    assert one(tmp_path / "la", image=grey).tolist() == [[[0, 200]]] * 3
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert one(tmp_path / "p", image=palette).tolist() == [[[10, 40]], [[20, 50]], [[30, 60]]]
    assert one(tmp_path / "pt", image=palette, transparency=0).tolist() == [[[0, 40]], [[0, 50]], [[0, 60]]]
    key = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], dtype=np.uint8))
    assert one(tmp_path / "key", image=key, transparency=(9, 8, 7)).tolist() == [[[0, 1]], [[0, 2]], [[0, 3]]]
    opaque = Image.fromarray(X["train"][0]).convert("RGBA")
    np.testing.assert_array_equal(one(tmp_path / "opaque", image=opaque), channels_first("train")[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    stored = Image.fromarray(X["train"][0][:5])
    exif = stored.getexif()
    exif[0x112] = orientation
    turn = [
        lambda x: x,
        np.fliplr,
        lambda x: np.rot90(x, 2),
        np.flipud,
        lambda x: x.transpose(1, 0, 2),
        lambda x: np.rot90(x, -1),
        lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        np.rot90,
    ][orientation - 1]
    seen = one(tmp_path, image=stored, exif=exif)
    np.testing.assert_array_equal(seen.transpose(1, 2, 0), turn(X["train"][0][:5]))


def bad_pictures():
    "Bytes that are no picture for us, and what is said of them."
    yield "empty", b"", "cannot identify"
    yield "text", b"no picture at all", "cannot identify"
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "cannot identify"
    yield "bomb", png(50_000, 50_000, 8, 2, b""), "cannot be read as a picture"
    yield "large", png(5_000, 5_000, 8, 2, b""), "5000×5000 pixels"
    whole = png(8, 8, 8, 2, bytes(200))
    yield "cut", whole[:-20], "cannot be read as a picture"
    place = whole.index(b"IDAT") + 7
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    yield "flipped", flipped, "cannot be read as a picture"
    yield "text bomb", png(8, 8, 8, 2, bytes(200), (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))), "picture"


@pytest.mark.parametrize("data, needed", [c[1:] for c in bad_pictures()], ids=[c[0] for c in bad_pictures()])
def test_a_bad_picture_is_one_error_that_names_it(tmp_path, data, needed):
    write_pictures(tmp_path / "a")
    path = tmp_path / "a" / "test" / "dog" / "3.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=needed) as e:
        load("a", tmp_path)
    assert str(path) in str(e.value) and "save it anew, or take it away" in str(e.value)


def test_a_picture_that_moves_is_refused(tmp_path):
    frames = [Image.fromarray(x) for x in X["train"]]
    with pytest.raises(ValueError, match="6 frames"):
        one(tmp_path, image=frames[0], save_all=True, append_images=frames[1:])


def test_more_pictures_than_memory_are_refused(tmp_path, monkeypatch):
    write_pictures(tmp_path / "a")
    monkeypatch.setattr("attentiondrop_nb.training.datasets._memory", lambda: 2 * 10 * 3 * SIDE * SIDE - 1)
    with pytest.raises(ValueError, match="10 pictures like .*half of this machine"):
        load("a", tmp_path)


# Folders


def test_hidden_files_and_text_are_passed_over(tmp_path):
    root = tmp_path / "a"
    write_pictures(root)
    expected = found(load("a", tmp_path))
    picture = (root / "train" / "cat" / "0.png").read_bytes()
    for place in (".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        (root / "train" / place).mkdir()
        (root / "train" / place / "0-checkpoint.png").write_bytes(picture)
    (root / "train" / "cat" / "._0.png").write_bytes(b"a Mac's notes")
    (root / "train" / "._cat.png").write_bytes(b"more of them")
    (root / "train" / ".DS_Store").write_bytes(b"and more")
    (root / "train" / "cat" / "README.txt").write_text("my cats")
    (root / "train" / "labels.csv").write_text("0,cat")
    assert found(load("a", tmp_path)) == expected


def test_a_picture_reached_twice_counts_once(tmp_path):
    root = tmp_path / "a"
    write_pictures(root)
    (root / "train" / "cat" / "more").mkdir()
    (root / "train" / "cat" / "2.png").rename(root / "train" / "cat" / "more" / "2.png")
    expected = found(load("a", tmp_path))
    assert len(load("a", tmp_path).x_train) == 6
    (root / "train" / "cat" / "back").symlink_to(root / "train" / "cat")
    (root / "train" / "cat" / "more" / "again.png").symlink_to(root / "train" / "cat" / "0.png")
    assert found(load("a", tmp_path)) == expected


def test_links_to_pictures_and_classes_elsewhere_are_followed(tmp_path):
    write_pictures(tmp_path / "there")
    expected = found(load("there", tmp_path))
    for split in SPLITS:
        (tmp_path / "a" / split / "dog").mkdir(parents=True)
        (tmp_path / "a" / split / "cat").symlink_to(tmp_path / "there" / split / "cat")
        for path in (tmp_path / "there" / split / "dog").iterdir():
            (tmp_path / "a" / split / "dog" / path.name).symlink_to(path)
    assert found(load("a", tmp_path)) == expected


def bad_folders():
    "Changes to a folder of pictures, and what is said of them."
    yield "an empty class", lambda r: [(r / s / "bird").mkdir() for s in SPLITS], "class .*train/bird has no picture"
    yield "flat", lambda r: (r / "train" / "cat" / "0.png").rename(r / "train" / "0.png"), "0.png belongs to no class"
    yield "a class in one", lambda r: (r / "test" / "dog").rename(r / "test" / "bird"), "different classes.* bird, dog"
    yield "two classes", lambda r: (r / "train/dog/x").symlink_to(r / "train/cat"), "of the class 'cat' already"
    yield "a link up", lambda r: (r / "train/cat/x").symlink_to(r / "train"), "of the class 'cat' already"
    yield "to nowhere", lambda r: (r / "train/cat/x.png").symlink_to("nowhere"), "x.png .*no file is there"
    yield "a pipe", lambda r: os.mkfifo(r / "train/cat/x.png"), "x.png .*no file is there"
    yield "a gif", lambda r: Image.new("L", (8, 8)).save(r / "train/cat/x.gif"), "x.gif is of a kind that is not read"
    yield "a size", lambda r: Image.new("L", (8, 7)).save(r / "test/cat/x.png"), r"x.png is \(7, 8\).*one size"


@pytest.mark.parametrize("change, needed", [c[1:] for c in bad_folders()], ids=[c[0] for c in bad_folders()])
def test_a_bad_folder_is_one_error_that_names_the_place(tmp_path, change, needed):
    write_pictures(tmp_path / "a")
    change(tmp_path / "a")
    with pytest.raises(ValueError, match=needed) as e:
        load("a", tmp_path)
    assert str(tmp_path / "a") in str(e.value) and "\n" not in str(e.value)


def test_no_class_at_all(tmp_path):
    for split in SPLITS:
        (tmp_path / "a" / split).mkdir(parents=True)
    with pytest.raises(ValueError, match="a/train has no folder of a class"):
        load("a", tmp_path)


# torchvision's files


def test_svhn_without_scipy_is_refused_before_any_work(tmp_path, monkeypatch, no_network):  # noqa: F811
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"SciPy.*pip install 'attentiondrop_nb\[experiments\]'"):
        load("svhn", tmp_path / "data")
    assert not no_network and not (tmp_path / "data").exists()


def test_an_unpacked_file_is_compared_with_its_archive(tmp_path, monkeypatch, no_network):  # noqa: F811
    write_fashion(tmp_path, monkeypatch, packed=True)
    load("fashion_mnist", tmp_path)
    victim = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(ValueError, match=f"{victim} is not what {victim.name}.gz has packed.*delete them"):
        load("fashion_mnist", tmp_path)
    victim.unlink()
    load("fashion_mnist", tmp_path)
    assert victim.read_bytes() == whole


def test_labels_beyond_the_classes_are_refused(tmp_path, monkeypatch, no_network):  # noqa: F811
    write_fashion(tmp_path, monkeypatch, packed=False)
    victim = tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    victim.write_bytes(victim.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(ValueError, match="fashion_mnist.*test: 9 images and 9 labels, . to 10"):
        load("fashion_mnist", tmp_path)


# Names and places


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "..", ".", "", "a\\b", "a\0b", None, 5])
def test_a_name_does_not_leave_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="a plain name is needed, and its folder as data_dir"):
        load(name, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_name_too_long_for_a_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data set 'aaa"):
        load("".ljust(5000, "a"), tmp_path)


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch, no_network):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "data").mkdir(parents=True)
    np.savez(tmp_path / "home" / "data" / "a.npz", **NPZ)
    assert load("a", "~/data").classes == ("cat", "dog")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/home/data/fashion_mnist.npz"):
        load("fashion_mnist", "~/data")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# Damage


def damaged(data, chance):
    "Bytes with one kind of damage: cut, foreign, bits flipped, a stretch overwritten, zeroed, lost, doubled or moved."
    kind = chance.choice(["cut", "foreign", "bit", "bit", "bit", "bytes", "zeros", "lost", "doubled", "moved"])
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + chance.choice([1, 4, 60]))
    c = chance.randrange(len(data) + 1)
    if kind == "cut":
        return data[:c]
    if kind == "foreign":
        return chance.randbytes(c)
    if kind == "bit":
        raw = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 5])):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        return bytes(raw)
    rest = data[:a] + data[b:]
    middle = {
        "bytes": chance.randbytes(b - a),
        "zeros": bytes(b - a),
        "lost": b"",
        "doubled": data[a:b] + data[a:b],
        "moved": b"",
    }[kind]
    moved = rest[:c] + data[a:b] + rest[c:]
    return moved if kind == "moved" else data[:a] + middle + data[b:]


def write_files(kind, folder, monkeypatch):
    "Tiny files of a kind in `folder`: the name of the data set."
    if kind.startswith("npz"):
        (np.savez if kind == "npz" else np.savez_compressed)(folder / "a.npz", **NPZ)
    elif kind in ("png", "jpg", "tif", "bmp", "webp"):
        write_pictures(folder / "a", kind)
    elif kind == "png16":
        write_pictures(folder / "a", convert=lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 250))
    elif kind == "exif":
        exif = Image.Exif()
        exif[0x112] = 3
        write_pictures(folder / "a", convert=lambda x: Image.fromarray(x).convert("RGBA"), exif=exif)
    elif kind == "svhn":
        write_svhn(folder, monkeypatch, dict(train=5, extra=4, test=3))
    elif kind == "cifar":
        write_cifar(CIFAR10, folder, monkeypatch, 2)
    else:
        write_fashion(folder, monkeypatch, packed=kind == "fashion")
    return {"svhn": "svhn", "cifar": "cifar10", "fashion": "fashion_mnist", "idx": "fashion_mnist"}.get(kind, "a")


UNSURE = ("jpg", "tif", "bmp", "webp", "idx")  # without a checksum: other colours may come out
ROUNDS = [50, pytest.param(1000, marks=pytest.mark.slow)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", ["npz", "npz packed", "png", "png16", "exif", *UNSURE, "svhn", "cifar", "fashion"])
def test_damaged_files_give_the_right_images_or_an_error(tmp_path, monkeypatch, no_network, kind, rounds):  # noqa: F811
    name = write_files(kind, tmp_path, monkeypatch)
    expected = found(load(name, tmp_path))
    files = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.name[0] != "."}
    chance = random.Random(kind)
    outcomes = set()
    for k in range(rounds):
        victim = chance.choice(list(files))
        victim.write_bytes(damaged(files[victim], chance))
        try:
            seen = found(load(name, tmp_path))
            outcomes.add("loaded")
            shapes = [[shape for _, shape in data[0]] for data in (seen, expected)]
            assert seen == expected or (kind in UNSURE and shapes[0] == shapes[1]), (k, victim)
        except (ValueError, FileNotFoundError) as e:
            outcomes.add("error")
            assert str(tmp_path) in str(e), (k, e)
        victim.write_bytes(files[victim])
    assert "error" in outcomes and found(load(name, tmp_path)) == expected


# All of SVHN


BIG = """
import resource, sys
from attentiondrop_nb.training.datasets import load
load("small", sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
base = peak()
data = load("big", sys.argv[1])
assert data.x_train.shape == (604388, 3, 32, 32) and data.y_train[-1] == 604387 % 10
assert data.x_train[604387, :, 5, 7].tolist() == [3 * (604387 % 80) + c for c in range(3)]
print(peak() - base)
"""


def write_big(path, sizes=(604_388, 26_032)):
    "An npz file of SVHN's size, a thousand images at a time: image k is 3·(k mod 80) + channel."
    with zipfile.ZipFile(path, "w", allowZip64=True) as f:
        for split, n in zip(SPLITS, sizes):
            with f.open(f"x_{split}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member, dict(descr="|u1", fortran_order=False, shape=(n, 32, 32, 3))
                )
                for start in range(0, n, 1000):
                    k = np.arange(start, min(n, start + 1000), dtype=np.int64)[:, None, None, None]
                    block = (3 * (k % 80) + np.arange(3)).astype(np.uint8)
                    member.write(np.broadcast_to(block, (len(k), 32, 32, 3)).tobytes())
            with f.open(f"y_{split}.npy", "w") as member:
                np.lib.format.write_array(member, np.arange(n) % 10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs resource")
def test_all_of_svhn_loads_in_two_and_a_half_gigabytes(tmp_path):
    np.savez(tmp_path / "small.npz", **NPZ)
    write_big(tmp_path / "big.npz")
    done = subprocess.run([sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=True)
    (tmp_path / "big.npz").unlink()
    assert int(done.stdout) < 2.5e9
