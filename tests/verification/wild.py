"""Estimators as others write them, and as they should not: named by import path in the tests."""

from __future__ import annotations

import math
import os
import re
import time

import numpy as np
import torch

from specbp import CountingOperator, hutchinson_trace, rademacher
from specbp.estimate import from_samples
from specbp.methods import METHODS
from verification.subjects import from_method

not_callable = 3
row = METHODS["hutchinson"]
subject = from_method(row)


def forms(A, X):
    return (X * (A @ X)).sum(0)


def signs(n, m, generator=None):
    # Global randomness if there is no generator, as foreign code has it.
    return (
        2 * torch.bernoulli(torch.full((n, m), 0.5, dtype=torch.float64), generator=generator) - 1
    )


# Functions of (operator, probes) ------------------------------------------------------------------


def estimate(A, probes):
    A = CountingOperator(A)
    return from_samples((probes * (A @ probes)).sum(-2), num_matvecs=A.num_matvecs)


def pair(A, probes):
    y = forms(A, probes)
    return y.mean(), y.std() / math.sqrt(len(y))


def ddof_zero(A, probes):
    y = forms(A, probes)
    return y.mean(), y.std(correction=0) / math.sqrt(len(y))


def tensor_only(A, probes):
    return torch.einsum("im,ij,jm->m", probes, A, probes).mean()


def of_factor(J, omega):
    return (J @ omega).square().sum(0).mean()


def with_interval(A, probes, interval, scale=1.0):
    return scale * forms(A, probes).mean() * (interval[1] > interval[0])


def returns_a_vector(A, probes):
    return probes[:, 0]


def bars_of_many(A, probes):
    y = forms(A, probes)
    return y.mean(), (y.std() if len(y) > 4 else math.nan)


def bars_of_few(A, probes):
    y = forms(A, probes)
    return y.mean(), (y.std() / math.sqrt(len(y)) if len(y) < 4 else math.nan)


def keyword_probes(A, *, probes):
    return forms(A, probes).mean()


def overhead(A, probes):
    A @ torch.ones(A.shape[-1], 5, dtype=A.dtype)
    return forms(A, probes).mean()


def overhead_reported(A, probes):
    A = CountingOperator(A)
    A @ torch.ones(A.shape[-1], 5, dtype=A.dtype)
    return from_samples((probes * (A @ probes)).sum(-2), num_matvecs=A.num_matvecs)


def overhead_hidden(A, probes):
    A @ torch.ones(A.shape[-1], 5, dtype=A.dtype)
    return from_samples((probes * (A @ probes)).sum(-2), num_matvecs=probes.shape[-1])


def dense_logdet(A, probes):
    eigenvalues, V = torch.linalg.eigh(A.double())
    return ((V.mT @ probes.double()) ** 2 * eigenvalues.log()[:, None]).sum(0).mean()


def changes_its_matrix(A, probes):
    value = forms(A, probes).mean()
    A.mul_(2)
    return value


def changes_its_probes(A, probes):
    value = forms(A, probes).mean()
    probes.neg_()
    return value


def needs_a_scale(A, probes, scale):
    return scale * forms(A, probes).mean()


def any_keywords(A, probes, **_):
    return forms(A, probes).mean()


# Black boxes --------------------------------------------------------------------------------------


def right(A, generator):
    y = forms(A, signs(A.shape[-1], 8, generator))
    return y.mean(), y.std() / math.sqrt(len(y))


def global_signs(A):
    return forms(A, signs(A.shape[-1], 8)).mean()


def gaussian(A, generator):
    X = torch.randn(A.shape[-1], 8, generator=generator, dtype=torch.float64)
    return forms(A, X).mean()


def hutchpp(A, generator):
    n = A.shape[-1]
    S, G = signs(n, 6, generator), signs(n, 6, generator)
    Q, _ = torch.linalg.qr(A @ S)
    G = G - Q @ (Q.mT @ G)
    return torch.trace(Q.mT @ (A @ Q)) + (G * (A @ G)).sum() / 6


def small_bars(A, generator):
    value, bar = right(A, generator)
    return value, 0.7 * bar


def biased(A, generator):
    return 1.02 * right(A, generator)[0]


def frozen(A):
    return forms(A, signs(A.shape[-1], 8, torch.Generator().manual_seed(0))).mean()


def from_entropy(A):
    generator = torch.Generator()
    generator.seed()
    return forms(A, signs(A.shape[-1], 8, generator)).mean()


def exact(A):
    return torch.logdet(A)


def library(A, generator):
    return hutchinson_trace(A, rademacher(A.shape[-1], 8, generator=generator))


def ignores_its_matrix(A, generator):
    return torch.randn((), generator=generator)


def reads_the_diagonal(A, generator):
    # Right on average, and never a product.
    noise = torch.randn((), generator=generator, dtype=torch.float64)
    return A.diagonal().sum() + noise


def needs_a_number(A, num_probes):
    return forms(A, signs(A.shape[-1], num_probes)).mean()


def switches_torch(A, generator):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float16)
    return right(A, generator)


def raises(A):
    raise RuntimeError("no convergence <after> 3 steps")


def returns_nan(A):
    return math.nan


def sometimes_nan(A, generator):
    return right(A, generator)[0] if torch.rand((), generator=generator) < 0.9 else math.nan


def wrong_shape(A):
    return torch.zeros(3)


def leaves(A):
    raise SystemExit(0)


def hangs(A):
    print("this must not reach the table")
    time.sleep(1000)


def holds(A):
    print("worker", os.getpid(), flush=True)
    re.match("(a+)+$", 60 * "a" + "b")  # takes years, and never releases the interpreter


def dies(A):
    os._exit(3)


def some_bars(A, generator):
    # Most are a quarter of what they should be, and one of about 25 is NaN.
    value, bar = small_bars(A, generator)
    return value, bar / 3 if torch.rand((), generator=generator) < 0.96 else math.nan


def no_bars(A, generator):
    return right(A, generator)[0], math.nan


def zero_bars_hutchpp(A, generator):
    return hutchpp(A, generator), 0.0


def zero_bars(A, generator):
    return right(A, generator)[0], 0.0


def text_as_bar(A, generator):
    return right(A, generator)[0], "n/a"


def imaginary(A, generator):
    return np.complex128(right(A, generator)[0]) + 100j


def as_dict(A, generator):
    return {"value": right(A, generator)[0]}


def exact_by_products(A):
    return (A @ torch.eye(A.shape[-1], dtype=A.dtype)).trace()


def after_a_norm(A, generator):
    # The norm by power iteration from a fixed vector, then Hutchinson.
    v = torch.ones(A.shape[-1], dtype=torch.float64)
    for _ in range(3):
        v = A @ v
        v = v / v.norm()
    norm = v @ (A @ v)
    return norm * right(A / norm, generator)[0]


def noise_on_fixed_probes(A, generator):
    noise = torch.randn((), generator=generator, dtype=torch.float64)
    return A.diagonal().sum() + noise + 0 * frozen(A)


def shifts_in_place(A, generator):
    value = right(A, generator)
    A.diagonal().add_(1.0)
    return value


def shifts_what_is_large(A, generator):
    # A jitter as it is added where a factorisation fails: hidden from well-conditioned matrices.
    value = torch.logdet(A) + 0.1 * torch.randn((), generator=generator, dtype=torch.float64)
    if A.shape[-1] > 64:
        A.diagonal().add_(1e-6)
    return value
