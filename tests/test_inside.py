"Masks, maps and activations measured: against other people's code, on random input; and the figures that need runs."
import sys
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score
from torch import nn

from attentiondrop_nb.evidence.figures import load_scores
from attentiondrop_nb.evidence.inside import average_precision, cam, capture, find_region, iou
from attentiondrop_nb.evidence.objects import (
    activation_counts,
    activations,
    find_runs,
    object_share,
    run_cams,
    share_of_object,
    share_on_object,
)
from attentiondrop_nb.layers.removed import sample_mask
from attentiondrop_nb.training.config import make_config, run_folder
from attentiondrop_nb.training.datasets import load, subset
from attentiondrop_nb.training.resnet import PreActResNet18, ResNet18
from attentiondrop_nb.training.runs import load_run, save_run, train

EXPERIMENTS = Path(__file__).parent.parent / "nbs" / "experiments"
FIGURES = ("fig1_masks_on_a_picture", "fig2_masks_in_a_network", "fig3_mask_heatmaps", "fig6_cam", "fig7_activations")


def random_norms(model, seed=0):
    "Batch norms with statistics and weights as after some training, so that no two layers are alike."
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low, high in (
                (m.weight.data, 0.5, 1.5),
                (m.bias.data, -0.5, 0.5),
                (m.running_mean, -0.5, 0.5),
                (m.running_var, 0.5, 2),
            ):
                t.copy_(torch.rand(t.shape, generator=g) * (high - low) + low)
    return model.eval()


NETWORKS = [(ResNet18, None), (ResNet18, "layer4"), (PreActResNet18, None), ("torchvision", "layer4")]


@pytest.mark.parametrize("make, layer", NETWORKS)
def test_mean_of_the_cam_plus_bias_is_the_score(make, layer):
    torch.manual_seed(0)
    model = random_norms(torchvision.models.resnet18(num_classes=7) if make == "torchvision" else make(7, width=4))
    x = torch.randn(5, 3, 64, 64)
    classes = torch.tensor([0, 6, 3, 3, 1])
    with torch.no_grad():
        scores = model(x)[torch.arange(5), classes]
    torch.testing.assert_close(
        cam(model, x, classes, layer).mean((1, 2)) + model.fc.bias.detach()[classes], scores, rtol=1e-3, atol=1e-4
    )


def test_cam_refuses_maps_that_are_not_the_pooled_ones():
    model = random_norms(PreActResNet18(7, width=4))
    x = torch.randn(2, 3, 32, 32)
    for layer in ("layer4", "layer3", "fc"):  # before the last batch norm; other channels; no maps
        with pytest.raises(ValueError, match=f"does not score the mean of what '{layer}' returns"):
            cam(model, x, torch.tensor([0, 1]), layer)


def test_capture_leaves_nothing_behind_and_is_not_overwritten():
    model = random_norms(torchvision.models.resnet18(num_classes=3))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), capture(model, ["bn1", "layer2"]) as kept:
        model(x)
        assert kept["bn1"].equal(model.bn1(model.conv1(x)))  # torchvision's ReLU works in place
    with pytest.raises(RuntimeError, match="mine"), capture(model, ["bn1"]):
        raise RuntimeError("mine")
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="'layer5'; near names: 'layer4'"), capture(model, ["bn1", "layer5"]):
        pass
    assert not any(m._forward_hooks for m in model.modules())


def test_capture_names_what_returns_no_tensor():
    pool = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(ValueError, match="'0' returns a tuple; a tensor is needed"), capture(pool, ["0"]):
        pool(torch.randn(1, 3, 8, 8))
    assert not pool[0]._forward_hooks


def test_cam_of_a_network_in_half_precision():
    model = random_norms(ResNet18(7, width=8))
    x = torch.randn(4, 3, 32, 32)
    classes = torch.tensor([0, 6, 3, 3])
    want = cam(model, x, classes)
    half = cam(model.bfloat16(), x.bfloat16(), classes)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, want, rtol=0.1, atol=0.1 * float(want.abs().max()))
    with pytest.raises(ValueError, match="does not score"):
        cam(model, x.bfloat16(), classes, "layer3")


def test_subset_takes_numpys_integers():
    data = load("digits")
    assert subset(data, np.int64(20)).x_train.equal(subset(data, 20).x_train)
    for bad in (True, np.float64(20), np.int64(0)):
        with pytest.raises(ValueError, match="train_images is"):
            subset(data, bad)


masks = arrays(bool, (6, 6)).filter(lambda m: m.any())
few_values = arrays(np.float32, (6, 6), elements=st.sampled_from([-2, 0, 0.5, 1, 3]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(few_values, masks), min_size=1, max_size=3))
def test_average_precision_is_scikit_learns_ties_included(pairs):
    score, truth = (torch.from_numpy(np.stack(a)) for a in zip(*pairs))
    want = [average_precision_score(t.ravel(), s.ravel()) for s, t in pairs]
    np.testing.assert_allclose(average_precision(score, truth), want, rtol=1e-5)
    np.testing.assert_allclose(average_precision(score * 3 - 7, truth), want, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_iou_is_symmetric_and_counts_pixels(a, b):
    r, t = torch.from_numpy(a)[None], torch.from_numpy(b)[None]
    assert (
        iou(r, t).item() == pytest.approx((a & b).sum() / (a | b).sum()) and iou(r, t) == iou(t, r) and iou(r, r) == 1
    )


def test_a_constant_map_has_no_region():
    assert (
        not find_region(torch.full((1, 4, 4), 3.0)).any()
        and iou(find_region(torch.ones(1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.bool)) == 0
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 3, 5, 8, 12]), masks, st.integers(0, 1000))
def test_shares_of_a_mask(channels, side, truth, seed):
    truth = torch.from_numpy(truth)[None].repeat_interleave(4, 1).repeat_interleave(4, 2)  # 24×24 pixels
    mask = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(seed))
    inside = object_share(truth, (side, side))
    if 24 % side == 0:
        torch.testing.assert_close(inside.mean(), truth.float().mean())
        torch.testing.assert_close(share_on_object(torch.zeros_like(mask), truth), truth.float().mean()[None])
        big = mask.repeat_interleave(24 // side, 2).repeat_interleave(24 // side, 3)  # the same by pixels
        torch.testing.assert_close(
            share_on_object(mask, truth),
            (((1 - big) * truth[:, None]).sum() / (1 - big).sum())[None],
            rtol=1e-4,
            atol=1e-6,
        )
    if not truth.all():
        torch.testing.assert_close(share_on_object(mask, truth) + share_on_object(mask, ~truth), torch.ones(1))
    assert share_of_object(torch.zeros_like(mask), truth).allclose(torch.ones(1, channels))
    assert share_of_object(torch.ones_like(mask), truth).equal(torch.zeros(1, channels))


def test_masks_blind_to_the_features_fit_any_object_alike():
    "And those of AttentionDrop fit the object that is bright."
    truth = load("shapes").masks_test[:400]
    f = object_share(truth, (16, 16)) + 0.3 * torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    gain = {}
    for method in ("dropout", "dropblock", "ad"):
        mask = sample_mask(method, f.expand(-1, 8, -1, -1), 0.1, torch.Generator().manual_seed(1))
        own, other = share_on_object(mask, truth), share_on_object(mask, truth.roll(1, 0))
        gain[method] = (own - other).nanmean().item()
    assert abs(gain["dropout"]) < 0.03 and abs(gain["dropblock"]) < 0.03 and gain["ad"] > 0.3


def test_activation_counts_lose_nothing_from_the_lower_edge_on():
    x = torch.randn(7, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    edges = (0.0, 0.3, 1.0, 10.0)
    assert (activation_counts(x, edges) * 7).tolist() == [((x >= a) & (x < b)).sum() for a, b in pairwise(edges)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two seeds of three methods and one of a fourth on shapes, hardly trained; the folder."
    out = tmp_path_factory.mktemp("runs")
    data = subset(load("shapes"), 64)
    for method, seeds in {"none": 2, "dropblock": 2, "ad": 2, "dropout": 1}.items():
        for seed in range(seeds):
            config = make_config(
                dict(
                    dataset="shapes",
                    method=method,
                    width=2,
                    epochs=1,
                    batch_size=32,
                    seed=seed,
                    device="cpu",
                    train_images=64,
                    out_dir=str(out),
                )
            )
            save_run(run_folder(config), *train(config, data, progress=False))
    return out


def test_runs_are_found_by_their_checkpoints(runs, tmp_path):
    found = find_runs(runs)
    assert len(found) == 7 and list(found) == sorted(found)
    run = load_run(next(iter(found)))
    data = load("shapes")
    maps = run_cams(run, data.x_test[:7], data.y_test[:7], batch_size=3)
    torch.testing.assert_close(maps, run_cams(run, data.x_test[:7], data.y_test[:7]), rtol=1e-3, atol=1e-4)
    assert maps.shape == data.masks_test[:7].shape
    several, one = (activations(run, data.x_test[:7], ["layer3.1.bn2"], batch_size=b)["layer3.1.bn2"] for b in (3, 7))
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-4)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "record.json").write_text('{"schema": 1}')
    assert find_runs(tmp_path) == {}  # no weights: of no interest
    (tmp_path / "old" / "checkpoint.safetensors").touch()
    with pytest.raises(ValueError, match="schema 1"):
        find_runs(tmp_path)


def run_notebook(name, folder, monkeypatch, **parameters):
    "Run a figure's cells in `folder`, with these parameters; returns what they printed."
    import io
    from contextlib import redirect_stdout

    monkeypatch.chdir(folder)
    namespace = {}
    text = io.StringIO()
    with redirect_stdout(text):
        for cell in nbformat.read(EXPERIMENTS / f"{name}.ipynb", 4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{name} {cell.id}", "exec"), namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace.update(parameters)
    return text.getvalue()


QUICK = {
    "fig3_mask_heatmaps": dict(n_images=100),
    "fig6_cam": dict(n_images=20),
    "fig7_activations": dict(dataset="shapes", n_images=20),
}
DRAWN = {
    "fig2_masks_in_a_network": ["fig2"],
    "fig3_mask_heatmaps": ["fig3_masks", "fig3_share"],
    "fig6_cam": ["fig6_cam", "fig6_iou"],
    "fig7_activations": ["fig7_shapes"],
}
SCORES = {
    "fig3_mask_heatmaps": ["fig3_scores.json"],
    "fig6_cam": ["fig6_scores.json"],
    "fig7_activations": ["fig7_shapes_scores.json"],
}


@pytest.mark.whole
@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_drawn_from_runs(name, runs, tmp_path, monkeypatch):
    said = run_notebook(name, tmp_path, monkeypatch, runs_dir=str(runs), out_dir="drawn", **QUICK.get(name, {}))
    pictures = [f"{d}.{kind}" for d in DRAWN[name] for kind in ("png", "svg")]
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == sorted([*pictures, *SCORES.get(name, [])])
    assert "attentiondrop-sweep" not in said  # nothing is missing
    if name == "fig6_cam":
        assert "(1 pair, no interval)" in said  # dropout has one seed


DROPS = {"dropout", "spatial", "dropblock", "am", "sm", "ad", "released"}


@pytest.mark.parametrize("name, file, score, methods", [
    ("fig3_mask_heatmaps", "fig3_scores.json", "layer2 own", DROPS),
    ("fig6_cam", "fig6_scores.json", "ap", {"none", "dropout", "dropblock", "ad"}),
    ("fig7_activations", "fig7_shapes_scores.json", "layer4.1.bn2 mean", {"none", "dropblock", "ad"}),
])
def test_the_scores_beside_a_figure_are_those_it_prints(name, file, score, methods, runs, tmp_path, monkeypatch):
    said = run_notebook(name, tmp_path, monkeypatch, runs_dir=str(runs), out_dir="drawn", **QUICK[name])
    scores, about = load_scores(tmp_path / "drawn" / file)
    assert (
        scores.keys() == methods
        and about["setting"]["dataset"] == "shapes"
        and about["parameters"]["n_images"] == QUICK[name]["n_images"]
    )
    assert set(about["runs"]) <= {folder.name for folder in runs.iterdir()}
    for method, seeds in scores.items():
        mean = sum(values[score] for values in seeds.values()) / len(seeds)
        assert f"{mean:.3f}" in said, (method, score)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_without_runs_says_how_to_make_them(name, tmp_path, monkeypatch):
    said = run_notebook(name, tmp_path, monkeypatch, runs_dir="nowhere")
    assert "attentiondrop-sweep nbs/experiments/grids/" in said and "'nowhere'" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, parameters, says", [
    ("fig1_masks_on_a_picture", dict(picture="dog"), "parameter 'picture' is 'dog'"),
    ("fig1_masks_on_a_picture", dict(alpha=2.0), "alpha is 2.0"),
    ("fig2_masks_in_a_network", dict(image=-1), "parameter 'image' is -1"),
    ("fig2_masks_in_a_network", dict(stage="layer9"), "parameter 'stage' is 'layer9'"),
    ("fig3_mask_heatmaps", dict(n_images=3), "parameter 'n_images' is 3"),
    ("fig3_mask_heatmaps", dict(alpha=0.0), "parameter 'alpha' is 0"),
    ("fig6_cam", dict(n_images=10**6), "parameter 'n_images' is 1000000"),
    ("fig7_activations", dict(dataset="../x"), "'dataset' is '../x'"),
    ("fig7_activations", dict(n_images=0), "parameter 'n_images' is 0"),
    *((name, dict(runs=3), "unknown parameter 'runs'") for name in FIGURES),
    *((name, dict(out_dir=3), "'out_dir' is 3") for name in FIGURES),
])
def test_a_bad_parameter_ends_a_figure_before_any_work(name, parameters, says, tmp_path, monkeypatch):
    with pytest.raises((TypeError, ValueError), match=says.replace(".", r"\.")):
        run_notebook(name, tmp_path, monkeypatch, **parameters)
    assert not list(tmp_path.iterdir())


def test_every_parameter_of_a_figure_is_explained():
    for name in FIGURES:
        cell = next(
            c
            for c in nbformat.read(EXPERIMENTS / f"{name}.ipynb", 4).cells
            if "parameters" in c.metadata.get("tags", [])
        )
        assert not [line for line in cell.source.splitlines() if "  # " not in line], name


def test_importing_the_analysis_loads_nothing_heavy():
    import subprocess

    heavy = ("torchvision", "pandas", "scipy", "matplotlib", "ray", "yaml")
    code = f"import sys, attentiondrop_nb.evidence.objects; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
