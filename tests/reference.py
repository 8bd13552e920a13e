"The paper's equations on one plane of plain Python numbers: nothing is shared with the package but the text."
import math
from fractions import Fraction


def threshold(f, beta):
    "F_top-β: the k-th largest value, k = ⌈β/100 · H·W⌉."
    values = sorted((v for row in f for v in row), reverse=True)
    return values[max(1, math.ceil(Fraction(str(beta)) / 100 * len(values))) - 1]


def normalized(f):
    "Eq. 6."
    values = [v for row in f for v in row]
    low, high = min(values), max(values)
    return [[(v - low) / (high - low) if high > low else 0.0 for v in row] for row in f]


def attention(method, f, beta):
    "S of Eq. 4 (am), Eq. 7 (sm) or Algorithm 1 (ad)."
    t = threshold(f, beta)
    hat = normalized(f)
    cases = {
        "am": lambda v, h: 1.0 if v <= t else 0.0,
        "sm": lambda v, h: 1 - h,
        "ad": lambda v, h: 1 - h if v >= t else 1.0,
    }
    return [[cases[method](v, h) for v, h in zip(fr, hr)] for fr, hr in zip(f, hat)]


def weights(method, x, gamma, beta, rescale):
    "Mask times scale for maps [N][C][H][W] (nested lists), with the coins gamma of the same shape."
    def mask(f, g):
        if not all(math.isfinite(v) for row in f for v in row):
            return [[1.0] * len(f[0]) for _ in f]
        return [[s if coin == 1 else 1.0 for s, coin in zip(sr, gr)] for sr, gr in zip(attention(method, f, beta), g)]

    masks = [[mask(f, g) for f, g in zip(fs, gs)] for fs, gs in zip(x, gamma)]
    total = sum(v for fs in masks for m in fs for row in m for v in row)
    count = sum(len(m) * len(m[0]) for fs in masks for m in fs)

    def scale(f, m):
        sum_m = sum(v for row in m for v in row)
        numel = len(m) * len(m[0])
        if rescale == "none" or not all(math.isfinite(v) for row in f for v in row):
            return 1.0
        top, bottom = {"literal": (1, sum_m), "map": (numel, sum_m), "tensor": (count, total)}[rescale]
        return top / bottom if bottom > 0 else 0.0

    return [[[[v * scale(f, m) for v in row] for row in m] for f, m in zip(fs, ms)] for fs, ms in zip(x, masks)]
