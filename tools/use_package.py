"""What a user does with the installed library, without the checkout: a layer in a network, a schedule, a training.

    python tools/use_package.py
"""
import sys
from pathlib import Path

import torch

import attentiondrop_nb as ad
from attentiondrop_nb.training.config import make_config
from attentiondrop_nb.training.runs import train
from attentiondrop_nb.training.shapes import shapes


def main():
    "Use the library; raises if something is not as it should be."
    assert not Path(ad.__file__).is_relative_to(Path(__file__).parents[1]), "the checkout was used, not the package"
    model = ad.ResNet18(10, 4, drop=ad.AttentionDrop2d)
    schedule = ad.LinearSchedule(model, 0.0, 0.1, steps=10)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    schedule.step()
    run = train(make_config(dict(dataset="shapes", width=2, epochs=1)), shapes(256, 64), progress=False)
    versions = f"attentiondrop_nb {ad.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}"
    print(f"{versions}: {run.record['final']}")


if __name__ == "__main__":
    main()
