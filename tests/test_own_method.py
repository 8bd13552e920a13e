"A method of one's own, registered in a module that ATTENTIONDROP_METHODS names, is known to every process."
import os
import subprocess
import sys

import pytest

from attentiondrop_nb.checks import message
from attentiondrop_nb.layers.layers import AttentionDrop2d
from attentiondrop_nb.training.config import METHODS, make_config, make_model, register_method

MODULE = """
from attentiondrop_nb.layers.layers import AttentionDrop2d
from attentiondrop_nb.training.config import register_method


class Mine(AttentionDrop2d):
    pass


register_method("mine", lambda config: Mine(config.alpha, config.beta), beta=7.0)
"""
ASK = """
from attentiondrop_nb.training.config import make_config, make_model, run_name
config = make_config({"method": "mine", "width": 4})
print(config.beta, [type(m).__name__ for m in make_model(config, 10).modules()].count("Mine"), run_name(config))
"""


def ask(folder, methods, script=ASK):
    "What a fresh Python prints that finds modules in `folder`."
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "ATTENTIONDROP_METHODS": methods}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)


def test_another_process_knows_it(tmp_path):
    (tmp_path / "my_methods.py").write_text(MODULE)
    done = ask(tmp_path, "my_methods")
    beta, layers, name = done.stdout.split()
    assert (beta, layers) == ("7.0", "2") and name.startswith("digits-mine-w4-"), done.stderr


def test_the_module_may_be_imported_first(tmp_path):
    (tmp_path / "my_methods.py").write_text(MODULE)
    done = ask(tmp_path, "my_methods", "import my_methods" + ASK)
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_not_there_is_named(tmp_path):
    done = ask(tmp_path, "my_methods")
    assert done.returncode and "ATTENTIONDROP_METHODS names 'my_methods'" in done.stderr
    assert "is there a my_methods.py" in done.stderr


def test_what_a_module_lacks_is_not_blamed_on_it(tmp_path):
    (tmp_path / "my_methods.py").write_text("import not_installed\n")
    done = ask(tmp_path, "my_methods")
    assert "No module named 'not_installed'" in done.stderr and "is there a" not in done.stderr


@pytest.fixture
def mine():
    register_method("mine", lambda config: AttentionDrop2d(config.alpha, config.beta), beta=5.0)
    yield "mine"
    del METHODS["mine"]


def test_its_options_are_those_it_was_registered_with(mine):
    config = make_config({"method": mine, "drop_after": "layer3", "width": 4})
    layers = [m for m in make_model(config, 10).modules() if isinstance(m, AttentionDrop2d)]
    assert [layer.beta for layer in layers] == [5.0]
    assert make_config({"method": mine}).drop_after == "layer1 layer2"
    assert "'block_size'" in message(make_config, {"method": mine, "block_size": 3})


def test_a_bad_registration_says_what_is_wrong(mine):
    assert "the library's" in message(register_method, "ad", AttentionDrop2d)
    assert "'../x'" in message(register_method, "../x", AttentionDrop2d)
    assert "'gamma'" in message(register_method, "other", AttentionDrop2d, gamma=1)
    assert "did you mean 'mine'" in message(make_config, {"method": "min"})
    assert "register_method" in message(make_config, {"method": "xyz_xyz"})  # no name of any notebook's
