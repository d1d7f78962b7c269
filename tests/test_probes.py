"""Laws of the probes: support and norms exactly, moments at a stated false-alarm rate, streams.

The seeds are fixed, so nothing here is flaky; ALPHA is the chance that a *correct* sampler would
have failed a statistical test with the seed chosen.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.fft import dct
from scipy.linalg import hadamard as scipy_hadamard
from scipy.stats import chi2, norm

from specbp.exact import block_variance
from specbp.probes import (
    LAWS,
    antithetic,
    gaussian,
    generator_for,
    hadamard,
    mixed_unit,
    orthogonal,
    rademacher,
    sphere,
    unit_vector,
)
from tests.support import EPS, f32, f64, generator, spd

ALPHA = 1e-6
each_law = pytest.mark.parametrize("law", list(LAWS.values()), ids=list(LAWS))
N_DRAWS, N = 20_000, 8
POPULATIONS = [orthogonal, hadamard, mixed_unit, unit_vector]
each_population = pytest.mark.parametrize("law", POPULATIONS)
SIGNS = (rademacher, hadamard, antithetic)


def draws(law, n=N, seed=1):
    """One vector out of each of many independent blocks, as rows: independent for every law."""
    m = 2 if law is antithetic else 1
    return law(n, m, generator=generator(seed), batch_shape=(N_DRAWS,))[..., -1]


def assert_mean(values, mean, variance):
    """Every column mean within the normal band of level ALPHA for all columns together."""
    columns = values.reshape(len(values), -1)
    limit = norm.isf(ALPHA / (2 * columns.shape[1])) * (variance / len(values)) ** 0.5
    worst = float((columns.mean(0) - mean).abs().max())
    assert worst <= max(limit, 1e-12), f"mean off by {worst:.3g}, ALPHA allows {limit:.3g}"


def population(law, n=N):
    """The n vectors that blocks are drawn from, up to signs, as rows."""
    if law is unit_vector:
        return n**0.5 * torch.eye(n, dtype=f64)
    return n**0.5 * torch.from_numpy(dct(torch.eye(n, dtype=f64).numpy(), axis=0, norm="ortho"))


def moment(law, *powers, n=N):
    """E Π xᵢ^powers[i] over the first coordinates, all powers even."""
    order = sum(powers) // 2
    if law in SIGNS:
        return 1.0
    if law in (mixed_unit, unit_vector):
        rows = population(law, n)
        return float(torch.stack([rows[:, i] ** p for i, p in enumerate(powers)]).prod(0).mean())
    normal = math.prod(math.prod(range(1, p, 2)) for p in powers)
    return normal * (1 if law is gaussian else n**order / math.prod(range(n, n + 2 * order, 2)))


@each_law
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_shape_dtype_device_and_layout(law, dtype, batch):
    X = law(8, 4, generator=generator(), batch_shape=batch, dtype=dtype)
    assert X.shape == (*batch, 8, 4)
    assert X.dtype == dtype
    assert X.device.type == "cpu"
    assert X.mT.is_contiguous()  # rows are what block products read


@each_law
def test_probes_move_to_the_device_asked_for(law):
    assert law(4, 2, generator=generator(), device="meta").device.type == "meta"


@pytest.mark.parametrize("law", SIGNS)
def test_support_of_signs(law):
    X = law(64, 20, generator=generator(), batch_shape=(10,))
    assert set(X.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("law", [sphere, *POPULATIONS])
@pytest.mark.parametrize("n", [1, 2, 64])
def test_norm_is_square_root_of_n(law, n):
    X = law(n, min(n, 5), generator=generator(), batch_shape=(3,))
    error = (X.square().sum(-2) - n).abs().max()
    assert float(error) <= 8 * n * n * EPS[f64]


@each_population
@pytest.mark.parametrize(("n", "m"), [(16, 1), (16, 5), (16, 16), (13, 13), (1024, 6)])
def test_populations_are_orthogonal(law, n, m):
    n = 16 if law is hadamard and n == 13 else n
    X = law(n, min(n, m), generator=generator(), batch_shape=(4,))
    gram = X.mT @ X / n
    assert float((gram - torch.eye(m, dtype=f64)).abs().max()) <= n * 16 * EPS[f64]


@each_population
def test_a_full_orthogonal_block_has_no_variance(law):
    A = spd(torch.linspace(1, 5, 8, dtype=f64))
    X = law(8, 8, generator=generator(), batch_shape=(50,))
    means = (X * (A @ X)).sum(-2).mean(-1)
    assert float((means - A.trace()).abs().max()) <= 8 * 8 * 5 * 8 * EPS[f64]


@each_law
def test_mean_is_zero(law):
    # Without the sign of diag(R), the first entry of every orthogonal block would be negative.
    x = draws(law)
    mean = N**-0.5 if law is unit_vector else 0.0
    assert_mean(x, mean, 1.0 - mean**2)
    # Pooled, a coin of 51 % shows at 8 standard errors.
    assert_mean(x.mean(1), mean, 0.0 if law is unit_vector else 1 / N)


@each_law
def test_second_moments_are_the_identity(law):
    x = draws(law)
    pairs = torch.triu_indices(N, N, 1)
    products, squares = x[:, pairs[0]] * x[:, pairs[1]], x.square()
    # The coordinates of a transform differ: the largest variance bounds them all.
    assert_mean(products, 0.0, max(moment(law, 2, 2), float(products.var(0).max())))
    assert_mean(squares, 1.0, max(moment(law, 4) - 1, float(squares.var(0).max())))


@each_law
def test_fourth_moments(law):
    x = draws(law)[:, 0]
    fourth = moment(law, 4)
    assert_mean(x**4, fourth, moment(law, 8) - fourth**2)


@each_law
def test_all_columns_of_a_block_are_isotropic(law):
    X = law(4, 4, generator=generator(2), batch_shape=(N_DRAWS,))
    mean = 0.5 if law is unit_vector else 0.0
    assert_mean(X, mean, 1.0 - mean**2)
    assert_mean(X.square(), 1.0, max(moment(law, 4, n=4) - 1, float(X.square().var(0).max())))


@pytest.mark.parametrize("law", [rademacher, gaussian, sphere])
def test_columns_of_a_block_are_independent(law):
    X = law(4, 2, generator=generator(3), batch_shape=(N_DRAWS,))
    # x_i y_j has mean 0 and variance 1; the product of their squares shows dependent norms.
    assert_mean(X[..., 0, 0] * X[..., 0, 1], 0.0, 1.0)
    fourth = moment(law, 4, n=4)
    assert_mean(X[..., 0, 0] ** 2 * X[..., 1, 1] ** 2, 1.0, fourth**2 - 1)


@pytest.mark.parametrize("name", LAWS)
def test_blocks_reach_the_variance_they_claim(name):
    """By the normal band of the mean of squared errors."""
    n, m = 8, 4
    B = spd(torch.linspace(-1, 4, n, dtype=f64)) + torch.diag(torch.arange(8.0) % 3)
    X = LAWS[name](n, m, generator=generator(4), batch_shape=(N_DRAWS,))
    errors = ((X * (B @ X)).sum(-2).mean(-1) - B.trace()).square()
    assert_mean(errors, block_variance(B, name, m), float(errors.var()))


def outcomes(law, n):
    """Every block of two probes that a law draws equally often, as tuples."""
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=n)), dtype=f64)
    if law is antithetic:
        s = [d for d in signs if abs(d.sum()) == n % 2]
        return Counter(key(torch.stack([x, x * d])) for x in signs for d in s)
    rows = torch.from_numpy(scipy_hadamard(n)).double() if law is hadamard else population(law, n)
    D = signs if law is not unit_vector else torch.ones(1, n, dtype=f64)
    pairs = itertools.permutations(range(n), 2)
    return Counter(key(d * rows[list(pair)]) for pair in pairs for d in D)


def key(rows):
    """Rows (m, n) rounded to nine digits."""
    return tuple((rows.flatten() * 1e9).round().long().tolist())


@pytest.mark.parametrize(
    ("law", "n"),
    [(hadamard, 2), (hadamard, 4), (mixed_unit, 3), (mixed_unit, 4), (unit_vector, 5)]
    + [(antithetic, n) for n in (2, 3, 4)],
)
def test_every_outcome_has_its_probability(law, n):
    """Pearson's χ² at ALPHA, and nothing else is drawn."""
    expected = outcomes(law, n)
    X = law(n, 2, generator=generator(6), batch_shape=(N_DRAWS,))
    found = Counter(map(key, X.mT))
    assert set(found) == set(expected)
    share = N_DRAWS / expected.total()
    statistic = sum((found[k] - share * c) ** 2 / (share * c) for k, c in expected.items())
    assert statistic <= chi2.isf(ALPHA, len(expected) - 1)


@pytest.mark.parametrize("n", [1, 2, 64])
def test_hadamard_columns_have_the_parity_of_common_bits(n):
    X = hadamard(n, n, generator=generator()).long().tolist()
    D = [row[0] for row in X]
    # Columns over the first are those of H again: (−1)^popcount(i & j), each j once.
    columns = sorted(tuple(x * d for x, d in zip(c, D, strict=True)) for c in zip(*X, strict=True))
    H = [tuple((-1) ** (i & j).bit_count() for i in range(n)) for j in range(n)]
    assert columns == sorted(H)


@pytest.mark.parametrize("n", [5, 8, 1000])
def test_mixed_unit_vectors_are_rows_of_a_transform_up_to_signs(n):
    rows = (mixed_unit(n, n, generator=generator()).mT.abs(), population(mixed_unit, n).abs())
    # First entries decrease with the frequency, but for two rows that are equal.
    first, second = (v[v[:, 0].argsort()] for v in rows)
    assert float((first - second).abs().max()) <= 64 * n * EPS[f64]


@pytest.mark.parametrize("n", [1, 2, 9, 64])
def test_antithetic_pairs_are_balanced(n):
    X = antithetic(n, 6, generator=generator(), batch_shape=(50,))
    found = (X[..., ::2] * X[..., 1::2]).sum(-2).flatten()
    assert set(found.tolist()) == ({0.0} if n % 2 == 0 else {1.0, -1.0})


@pytest.mark.parametrize("law", [law for law in LAWS.values() if law is not unit_vector])
def test_no_two_probes_are_equal_up_to_sign(law):
    source = generator(5)
    blocks = [law(64, 8, generator=source, batch_shape=(5,)) for _ in range(3)]
    x = torch.cat([block.mT.reshape(-1, 64) for block in blocks]) / 8
    overlap = (x @ x.mT).abs() - torch.eye(len(x), dtype=f64)
    # Two vectors of random signs agree up to sign with probability 2^-63.
    assert float(overlap.max()) < 1 - 1e-6


@each_law
def test_same_key_same_probes_and_different_key_different_probes(law):
    X = law(32, 4, generator=generator_for("case", 1))
    assert torch.equal(X, law(32, 4, generator=generator_for("case", 1)))
    for key in (("case", 2), ("case", "1"), ("case",), (1, "case"), (("case", 1),)):
        assert not torch.equal(X, law(32, 4, generator=generator_for(*key)))


def test_seed_is_the_sha256_of_the_key():
    digest = hashlib.sha256(b"('case', 1)").hexdigest()
    assert generator_for("case", 1).initial_seed() == int(digest[:16], 16) // 2


def test_the_stream_is_the_same_on_every_machine():
    def rows(law):
        X = law(8, 2, generator=generator_for("golden"))
        return ["".join("-0+"[int(s > 0) - int(s < 0) + 1] for s in row) for row in X.mT.tolist()]

    assert rows(rademacher) == ["+-+-+-++", "++++----"]
    assert rows(hadamard) == ["-+--++-+", "--+-+-++"]
    assert rows(mixed_unit) == ["-+++---+", "-+----+-"]
    assert rows(unit_vector) == ["0000000+", "0000+000"]
    assert rows(antithetic) == ["+-+-+-++", "----+---"]


@each_law
def test_generator_advances(law):
    source = generator()
    before = source.get_state()
    first = law(32, 4, generator=source)
    assert not torch.equal(before, source.get_state())
    assert not torch.equal(first, law(32, 4, generator=source))


@each_law
def test_dtypes_share_their_probes(law):
    single = law(16, 6, generator=generator(), dtype=f32)
    double = law(16, 6, generator=generator(), dtype=f64)
    assert torch.equal(single, double.to(f32))


@pytest.mark.parametrize("law", [gaussian, sphere, orthogonal, mixed_unit])
def test_probes_are_drawn_with_the_resolution_of_float64(law):
    X = law(16, 6, generator=generator())
    assert not torch.equal(X, X.float().double())


@each_law
def test_global_generator_is_neither_used_nor_moved(law):
    before = torch.get_rng_state()
    X = law(16, 6, generator=generator())
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(X, law(16, 6, generator=generator()))


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


@each_population
def test_more_orthogonal_probes_than_dimensions(law):
    with pytest.raises(ValueError, match="At most n = 2 orthogonal probes exist, got m = 4"):
        law(2, 4, generator=generator())


@pytest.mark.parametrize("n", [3, 6, 1000])
def test_hadamard_probes_of_another_order(n):
    with pytest.raises(ValueError, match=f"need n = 2\\^k, got n = {n}: take mixed_unit or orth"):
        hadamard(n, 2, generator=generator())


def test_antithetic_probes_without_a_partner():
    with pytest.raises(ValueError, match="in pairs: m must be even, got m = 3"):
        antithetic(4, 3, generator=generator())
