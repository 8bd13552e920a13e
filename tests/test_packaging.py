"What a user of `pip install` gets, and that the package is what the notebooks export."
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from checkout import ROOT, files

import attentiondrop_nb

CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")


def python(code, **env):
    "Run `code` in a fresh interpreter outside the checkout."
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_the_checkout(folder):
    "The files that git would commit, in `folder`."
    for file in files():
        target = folder / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from the sdist as `python -m build` does, without fetching build tools."
    source = copy_of_the_checkout(tmp_path_factory.mktemp("source"))
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-o", "dist"], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.mark.whole
def test_wheel_holds_the_package_and_its_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        metadata = z.read(next(n for n in names if n.endswith("METADATA"))).decode()
    modules = {str(p.relative_to(ROOT)) for p in files("attentiondrop_nb", ".py")} | {"attentiondrop_nb/py.typed"}
    assert len(modules) > 25 and modules <= set(names) and not [n for n in names if n.startswith(("tests", "nbs"))]
    assert (
        f"Version: {CONFIG['DEFAULT']['version']}\n" in metadata
        and attentiondrop_nb.__version__ == CONFIG["DEFAULT"]["version"]
    )
    required = [
        line.split(": ")[1]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert required == CONFIG["DEFAULT"]["requirements"].split()


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError('blocked: ' + name)
sys.meta_path.insert(0, Block())
"""
NOT_TORCH = [
    "torchvision",
    "pydantic",
    "filelock",
    "pandas",
    "matplotlib",
    "safetensors",
    "tqdm",
    "sklearn",
    "skimage",
    "fastcore",
    "nbdev",
    "IPython",
    "papermill",
    "PIL",
]


@pytest.mark.whole
def test_installed_wheel_imports_with_torch_alone_and_works(wheel, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path),
            str(wheel),
        ],
        check=True,
    )
    code = BLOCK.format(blocked=NOT_TORCH) + (
        "import attentiondrop_nb as ad, torch\n"
        "layer = ad.AttentionDrop2d(0.5)\n"
        "x = torch.rand(2, 3, 8, 8)\n"
        "assert not layer(x).equal(x) and layer.eval()(x) is x\n"
        "assert all(hasattr(ad, name) for name in ad.__all__)\n"
        "print(ad.__file__)"
    )
    assert python(code, PYTHONPATH=str(tmp_path)).startswith(str(tmp_path))


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 15, 0)])
def test_another_python_ends_with_a_sentence_that_names_the_range(monkeypatch, version):
    for name in ("setuptools", "packaging.version"):  # what setup.py loads, loaded as the Python that this is
        importlib.import_module(name)
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit, match="needs Python 3.10 to 3.14"):
        runpy.run_path(str(ROOT / "setup.py"))


def test_import_loads_nothing_beside_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import attentiondrop_nb\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    assert python(code).strip() == "['attentiondrop_nb']"


def test_a_data_set_without_scikit_learn_says_what_to_install():
    code = BLOCK.format(blocked=["sklearn"]) + (
        "from attentiondrop_nb.training.datasets import load\n"
        "try: load('digits')\n"
        "except ImportError as e: print(e)"
    )
    assert "pip install scikit-learn" in python(code)


def test_package_is_in_sync_with_the_notebooks(tmp_path):
    "Clean and export in a copy: nothing may change."
    copy = copy_of_the_checkout(tmp_path)
    for command in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([str(Path(sys.executable).with_name(command))], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    generated = [f.relative_to(ROOT) for f in (*files("nbs", ".ipynb"), *files("attentiondrop_nb", ".py"))]
    assert not [str(f) for f in generated if (ROOT / f).read_bytes() != (copy / f).read_bytes()], (
        "run `make export` and commit"
    )
    exported = {f.relative_to(copy) for f in (copy / "attentiondrop_nb").rglob("*.py")}
    assert exported == {f for f in generated if f.suffix == ".py"}
