"The page's explorer computes what the library computes, and the widgets answer."
import json
import sys

import py_mini_racer
import pytest
import torch
from checkout import ROOT

from attentiondrop_nb.explorer import attention_steps, explore
from attentiondrop_nb.method.adaptive import top_beta_count
from attentiondrop_nb.method.dropout import GRANULARITIES, RESCALES, sample_gamma

METHODS = ("ad", "am", "sm", "dropout")
FILE = json.loads((ROOT / "nbs" / "explorer_maps.json").read_text(encoding="utf-8"))
LESSON = [[0, 1, 2, 1], [1, 4, 8, 2], [0, 6, 5, 3], [0, 0, 1, 2]]


def relu_map():
    "Six planes of noise behind a ReLU: many ties at 0, one plane that is 0 altogether and one that is 3."
    x = torch.randn(1, 6, 9, 7, generator=torch.Generator().manual_seed(0)).double().relu()
    x[0, 2] = x[0, 2].round()  # ties elsewhere, too
    x[0, 3] = 0
    x[0, 4] = 3
    x[0, 5, 1:] = 0
    return x


def cat_map():
    "The cat's planes, thinned out to 8×8."
    cat = FILE["maps"][0]
    return (torch.tensor(cat["planes"]).double() * cat["step"]).view(1, -1, 64, 64)[..., ::8, ::8]


MAPS = {"lesson": torch.tensor(LESSON).double()[None, None], "relu": relu_map(), "cat": cat_map()}


@pytest.fixture(scope="module")
def js():
    "The functions of explorer.js: js(name, *arguments) calls one."
    engine = py_mini_racer.MiniRacer()
    engine.eval("const module = {exports: {}};" + (ROOT / "nbs" / "explorer.js").read_text(encoding="utf-8"))
    engine.eval("const call = (name, given) => JSON.stringify(module.exports[name](...JSON.parse(given)));")
    return lambda name, *given: json.loads(engine.call("call", name, json.dumps(given)))


def flat(x):
    "[1, C, H, W] as one list a plane."
    return x[0].flatten(1).tolist()


def as_list(value):
    return value if isinstance(value, list) else [value]


def cases():
    "Settings (method, granularity, α, β): what each takes."
    for method in METHODS:
        for granularity in GRANULARITIES:
            for alpha in (0.0, 0.1, 0.6, 1.0):
                for beta in (0.5, 7, 20, 55.5, 100) if method in ("ad", "am") else (20,):
                    yield method, granularity, alpha, beta


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("name", MAPS)
def test_the_page_computes_what_the_library_computes(js, name, rescale):
    x = MAPS[name]
    for k, (method, granularity, alpha, beta) in enumerate(cases()):
        gamma = sample_gamma(x, alpha, granularity, torch.Generator().manual_seed(k)).expand_as(x)
        want = attention_steps(x, method, beta=beta, rescale=rescale, gamma=gamma)
        options = dict(method=method, beta=beta, rescale=rescale)
        got = js("attentionSteps", {"planes": flat(x)}, options, flat(gamma))
        assert len(got) == x.shape[1] and all(plane.keys() == want.keys() for plane in got)
        theirs = torch.cat([value.reshape(x.shape[1], -1).double() for value in want.values()], 1)
        rows = [[v for step in want for v in as_list(plane[step])] for plane in got]
        ours = torch.tensor(rows, dtype=torch.float64)
        where = f"{granularity}, α = {alpha}, {options}: "
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=lambda said: where + said)


def test_the_page_counts_and_finds_the_threshold_as_the_library(js):
    for pixels in (1, 16, 63, 100, 4096):
        for tenths in range(1, 1001, 7):
            assert js("topBetaCount", tenths / 10, pixels) == top_beta_count(tenths / 10, pixels)
    assert js("topBetaCount", 7, 100) == 7  # where floats say 8
    assert js("topBetaThreshold", flat(MAPS["lesson"])[0], 20) == 4


def test_the_coins_of_the_page_fall_as_they_should(js):
    shape = {"planes": [[0] * 1024] * 3}
    draw = lambda **options: torch.tensor(js("drawGamma", shape, dict(granularity="element", seed=0) | options))
    few, many = draw(alpha=0.1), draw(alpha=0.5)
    assert abs(few.double().mean() - 0.1) < 0.028 and abs(many.double().mean() - 0.5) < 0.046  # five standard errors
    assert (few <= many).all()  # a larger α only adds
    assert few.equal(draw(alpha=0.1)) and not few.equal(draw(alpha=0.1, seed=1))
    assert not draw(alpha=0).any() and draw(alpha=1).all()
    shape["planes"] = [[0] * 4] * 3
    for granularity, of_unit in (("map", lambda d: d[:, :1]), ("sample", lambda d: d[:1, :1])):
        draws = torch.stack([draw(alpha=0.5, granularity=granularity, seed=seed) for seed in range(200)])
        assert all((d == of_unit(d)).all() for d in draws)
        assert abs(draws[:, 0, 0].double().mean() - 0.5) < 0.18
        assert (draws != draws[:, :1, :1]).any() == (granularity == "map")  # the planes of an image may differ


def test_the_file_of_maps_reads_the_same_in_both_languages(js):
    for read, kept in zip(js("readMaps", FILE), FILE["maps"], strict=True):
        values = torch.tensor(kept["planes"]).float() * kept["step"]  # float32, as the maps are
        assert torch.tensor(read["planes"], dtype=torch.float64).equal(values.double())
        assert len(read["planes"]) == len(read["labels"])
        assert all(len(p) == read["height"] * read["width"] for p in read["planes"])


def test_the_script_needs_nothing_but_its_maps():
    source = (ROOT / "nbs" / "explorer.js").read_text(encoding="utf-8")
    assert not [word for word in ("http:", "https:", "import ", "require(", "eval(", "innerHTML") if word in source]
    assert source.count("fetch(") == 1 and "explorer_maps.json" in source
    assert max(map(len, source.splitlines())) <= 120


def controls_of(explorer):
    panel, board = explorer.children
    return {control.description: control for control in panel.children}, board


def test_the_widgets_answer():
    pytest.importorskip("ipywidgets")
    controls, board = controls_of(explore())
    gamma = sample_gamma(MAPS["lesson"].float(), 1.0)
    before = board.value
    controls["alpha"].value = 1.0
    factor = attention_steps(MAPS["lesson"].float(), "ad", gamma=gamma)["factor"].item()
    assert board.value != before and f"factor <b>{factor:.5g}</b>" in board.value
    for name, value in (("beta", 50), ("method", "am"), ("rescale", "none"), ("alpha", 0.3), ("seed", 7)):
        before = board.value
        controls[name].value = value
        assert board.value != before, name
    controls["method"].value = "sm"
    assert controls["beta"].disabled  # it has none


@pytest.mark.parametrize("missing", ["ipywidgets", "skimage"])
def test_without_its_extra_the_explorer_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'attentiondrop_nb\[explorer\]'"):
        explore()
