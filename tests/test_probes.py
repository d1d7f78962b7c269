"""Laws of the probes: support and norms exactly, moments at a stated false-alarm rate, streams.

The seeds are fixed, so nothing here is flaky; ALPHA is the chance that a *correct* sampler would
have failed a statistical test with the seed chosen.
"""

from __future__ import annotations

import hashlib
import inspect

import pytest
import torch
from scipy.stats import norm

from specbp.probes import LAWS, gaussian, generator_for, orthogonal, rademacher, sphere
from tests.support import EPS, f32, f64, generator, spd

ALPHA = 1e-6
each_law = pytest.mark.parametrize("law", list(LAWS.values()), ids=list(LAWS))
N_DRAWS, N = 20_000, 6


def draws(law, n=N, seed=1):
    """One vector out of each of many independent blocks, as rows: independent for every law."""
    return law(n, 1, generator=generator(seed), batch_shape=(N_DRAWS,)).squeeze(-1)


def assert_mean(values, mean, variance):
    """Every column mean within the normal band of level ALPHA for all columns together."""
    columns = values.reshape(len(values), -1)
    limit = norm.isf(ALPHA / (2 * columns.shape[1])) * (variance / len(values)) ** 0.5
    worst = float((columns.mean(0) - mean).abs().max())
    assert worst <= max(limit, 1e-12), f"mean off by {worst:.3g}, ALPHA allows {limit:.3g}"


def fourth_moment(law, n=N):
    """E x⁴ of one entry, and E x⁸ for the variance of its average."""
    on_sphere = (3 * n / (n + 2), 105 * n**3 / ((n + 2) * (n + 4) * (n + 6)))
    table = {rademacher: (1, 1), gaussian: (3, 105), sphere: on_sphere, orthogonal: on_sphere}
    return table[law]


@each_law
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shape_dtype_device_and_layout(law, dtype, batch):
    X = law(7, 4, generator=generator(), batch_shape=batch, dtype=dtype)
    assert X.shape == (*batch, 7, 4)
    assert X.dtype == dtype
    assert X.device.type == "cpu"
    assert X.mT.is_contiguous()  # rows are what block products read


@each_law
def test_probes_move_to_the_device_asked_for(law):
    assert law(4, 2, generator=generator(), device="meta").device.type == "meta"


def test_rademacher_support():
    X = rademacher(50, 200, generator=generator())
    assert set(X.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("law", [sphere, orthogonal])
@pytest.mark.parametrize("n", [1, 2, 64])
def test_norm_is_square_root_of_n(law, n):
    X = law(n, min(n, 5), generator=generator(), batch_shape=(3,))
    error = (X.square().sum(-2) - n).abs().max()
    assert float(error) <= 8 * n * n * EPS[f64]


@pytest.mark.parametrize("m", [1, 5, 16])
def test_orthogonal_probes_are_orthogonal(m):
    X = orthogonal(16, m, generator=generator(), batch_shape=(4,))
    gram = X.mT @ X / 16
    assert float((gram - torch.eye(m, dtype=f64)).abs().max()) <= 16 * 16 * EPS[f64]


def test_a_full_orthogonal_block_has_no_variance():
    A = spd(torch.linspace(1, 5, 8, dtype=f64))
    X = orthogonal(8, 8, generator=generator(), batch_shape=(50,))
    means = (X * (A @ X)).sum(-2).mean(-1)
    assert float((means - A.trace()).abs().max()) <= 8 * 8 * 5 * 8 * EPS[f64]


@each_law
def test_mean_is_zero(law):
    # Without the sign of diag(R), the first entry of every orthogonal block would be negative.
    x = draws(law)
    assert_mean(x, 0.0, 1.0)
    assert_mean(x.mean(1), 0.0, 1 / N)  # pooled: a coin of 51 % shows at 7 standard errors


@each_law
def test_second_moments_are_the_identity(law):
    x = draws(law)
    fourth, _ = fourth_moment(law)
    pairs = torch.triu_indices(N, N, 1)
    square = 1.0 if law in (rademacher, gaussian) else N / (N + 2)  # E x_i² x_j², also the variance
    assert_mean(x[:, pairs[0]] * x[:, pairs[1]], 0.0, square)
    assert_mean(x.square(), 1.0, fourth - 1)


@each_law
def test_fourth_moments(law):
    x = draws(law)
    fourth, eighth = fourth_moment(law)
    assert_mean(x**4, fourth, eighth - fourth**2)


@each_law
def test_all_columns_of_a_block_are_isotropic(law):
    X = law(4, 3, generator=generator(2), batch_shape=(N_DRAWS,))
    assert_mean(X, 0.0, 1.0)
    assert_mean(X.square(), 1.0, fourth_moment(law, 4)[0] - 1)


@pytest.mark.parametrize("law", [rademacher, gaussian, sphere])
def test_columns_of_a_block_are_independent(law):
    X = law(4, 2, generator=generator(3), batch_shape=(N_DRAWS,))
    # x_i y_j has mean 0 and variance 1; the product of their squares shows dependent norms.
    assert_mean(X[..., 0, 0] * X[..., 0, 1], 0.0, 1.0)
    fourth, _ = fourth_moment(law, 4)
    assert_mean(X[..., 0, 0] ** 2 * X[..., 1, 1] ** 2, 1.0, fourth**2 - 1)


def test_orthogonal_blocks_reach_the_variance_they_claim():
    """(n − m)/(n − 1) · V₁/m, by the normal band of the mean of squared errors."""
    n, m, blocks = 6, 3, 20_000
    B = spd(torch.linspace(-1, 4, n, dtype=f64))
    X = orthogonal(n, m, generator=generator(4), batch_shape=(blocks,))
    errors = ((X * (B @ X)).sum(-2).mean(-1) - B.trace()).square()
    centred = B - B.trace() / n * torch.eye(n, dtype=f64)
    one = 2 * n / (n + 2) * float(centred.square().sum())
    assert_mean(errors, (n - m) / (n - 1) * one / m, float(errors.var()))


@each_law
def test_no_two_probes_are_equal_up_to_sign(law):
    source = generator(5)
    blocks = [law(64, 8, generator=source, batch_shape=(5,)) for _ in range(3)]
    x = torch.cat([block.mT.reshape(-1, 64) for block in blocks]) / 8
    overlap = (x @ x.mT).abs() - torch.eye(len(x), dtype=f64)
    # Two vectors of random signs agree up to sign with probability 2^-63.
    assert float(overlap.max()) < 1 - 1e-6


@each_law
def test_same_key_same_probes_and_different_key_different_probes(law):
    X = law(30, 4, generator=generator_for("case", 1))
    assert torch.equal(X, law(30, 4, generator=generator_for("case", 1)))
    for key in (("case", 2), ("case", "1"), ("case",), (1, "case"), (("case", 1),)):
        assert not torch.equal(X, law(30, 4, generator=generator_for(*key)))


def test_seed_is_the_sha256_of_the_key():
    digest = hashlib.sha256(b"('case', 1)").hexdigest()
    assert generator_for("case", 1).initial_seed() == int(digest[:16], 16) // 2


def test_the_stream_is_the_same_on_every_machine():
    X = rademacher(8, 2, generator=generator_for("golden"))
    rows = ["".join("+" if s > 0 else "-" for s in row) for row in X.mT.tolist()]
    assert rows == ["+-+-+-++", "++++----"]


@each_law
def test_generator_advances(law):
    source = generator()
    before = source.get_state()
    first = law(30, 4, generator=source)
    assert not torch.equal(before, source.get_state())
    assert not torch.equal(first, law(30, 4, generator=source))


@each_law
def test_dtypes_share_their_probes(law):
    single = law(9, 5, generator=generator(), dtype=f32)
    double = law(9, 5, generator=generator(), dtype=f64)
    assert torch.equal(single, double.to(f32))


@pytest.mark.parametrize("law", [gaussian, sphere, orthogonal])
def test_probes_are_drawn_with_the_resolution_of_float64(law):
    X = law(9, 5, generator=generator())
    assert not torch.equal(X, X.float().double())


@each_law
def test_global_generator_is_neither_used_nor_moved(law):
    before = torch.get_rng_state()
    X = law(9, 5, generator=generator())
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(X, law(9, 5, generator=generator()))


@each_law
def test_generator_is_required_and_keyword_only(law):
    parameter = inspect.signature(law).parameters["generator"]
    assert parameter.kind is parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="required keyword-only argument: 'generator'"):
        law(3, 2)


@each_law
@pytest.mark.parametrize(("n", "m"), [(0, 1), (1, 0), (-1, 2), (3, -2)])
def test_empty_blocks_are_refused(law, n, m):
    with pytest.raises(ValueError, match=f"n ≥ 1 and m ≥ 1, got n = {n}, m = {m}"):
        law(n, m, generator=generator())


def test_more_orthogonal_probes_than_dimensions():
    with pytest.raises(ValueError, match="At most n = 3 orthogonal probes exist, got m = 4"):
        orthogonal(3, 4, generator=generator())
