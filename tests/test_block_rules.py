"""Rules from block Krylov spaces: bounds against exact forms, single-vector rules, limits."""

from __future__ import annotations

import math

import pytest
import torch

from specbp import quadrature
from specbp.block import block_golub_kahan, block_lanczos
from specbp.block_rules import (
    SLOWEST,
    decay,
    extrapolated,
    positive,
    radau_forms,
    spectrum,
    squared,
)
from specbp.block_rules import (
    limit as _limit,
)
from specbp.krylov import golub_kahan, lanczos
from tests.support import (
    f32,
    f64,
    factor,
    geometric,
    log_forms_of_factor,
    normal,
    signs,
)

N = 60
SPECTRA = {
    "geometric": geometric(N, 1e3),
    "far from zero": torch.linspace(0.5, 1.5, N, dtype=f64),
    "outliers": torch.cat([torch.tensor([1e-4, 30.0, 900.0], dtype=f64), torch.ones(N - 3) * 1.0]),
    "clusters": torch.cat([1 + 1e-3 * normal(N // 2), 1e-2 * (1 + 1e-3 * normal(N // 2, seed=1))]),
    "large": 1e6 * geometric(N, 1e2),
}
every = pytest.mark.parametrize("name", list(SPECTRA))
either = pytest.mark.parametrize("on_factor", [False, True])


def space(eigenvalues, rows, k, on_factor, dtype=f64):
    """The Krylov space of a matrix with these eigenvalues, by either process, and the matrix."""
    J = factor(eigenvalues.sqrt(), len(eigenvalues) + 9)
    if on_factor:
        return block_golub_kahan(J.to(dtype), rows.to(dtype), k, follow=True), J
    return block_lanczos((J.mT @ J).to(dtype), rows.to(dtype), k), J


# Gauss --------------------------------------------------------------------------------------------


@either
@every
@pytest.mark.parametrize("k", [1, 5, 20])
def test_gauss_is_an_upper_bound_for_every_probe(name, k, on_factor):
    rows = signs(4, N)
    K, J = space(SPECTRA[name], rows, k, on_factor)
    exact = log_forms_of_factor(J, rows.mT)
    gauss = spectrum(K).forms(K.start)
    assert bool((gauss >= exact - 1e-8).all())
    if k == 20:
        torch.testing.assert_close(gauss, exact, rtol=0, atol=1e-7)


@either
@every
def test_gauss_falls_with_every_step(name, on_factor):
    rows = signs(3, N)
    found = [space(SPECTRA[name], rows, k, on_factor)[0] for k in range(1, 12)]
    forms = torch.stack([spectrum(K).forms(K.start) for K in found])
    assert bool((forms.diff(dim=0) <= 1e-9).all())


@either
def test_gauss_is_better_in_the_space_of_more_probes(on_factor):
    rows = signs(6, N)
    few, many = (space(SPECTRA["geometric"], rows[:s], 5, on_factor)[0] for s in (2, 6))
    shared = spectrum(many).forms(many.start)[:2]
    assert bool((shared < spectrum(few).forms(few.start) - 0.1).all())


@either
@pytest.mark.parametrize("k", [1, 4, 9])
def test_one_probe_has_the_rules_of_one_vector(k, on_factor):
    rows = signs(1, N)
    K, J = space(SPECTRA["geometric"], rows, k, on_factor)
    T = golub_kahan(J, rows, k) if on_factor else lanczos(J.mT @ J, rows, k)
    gauss = quadrature.gauss(T)
    torch.testing.assert_close(spectrum(K).forms(K.start), gauss.value, rtol=0, atol=1e-9)
    for node in (1e-3, 2e-4):
        single = quadrature.gauss_radau(T, torch.tensor([node], dtype=f64)).value
        block = radau_forms(K, torch.tensor(node, dtype=f64))
        torch.testing.assert_close(block, single, rtol=0, atol=1e-8)


@either
def test_trace_is_that_of_the_logarithm_of_what_is_kept(on_factor):
    rows = signs(4, N)
    rows[2] = rows[0]
    K, J = space(SPECTRA["large"], rows, 5, on_factor)
    W = K.basis[K.kept]
    truth = torch.logdet(W @ (J.mT @ J) @ W.mT)
    assert float(spectrum(K).trace()) == pytest.approx(float(truth), rel=1e-12)
    assert float(positive(squared(K), K.kept).trace()) == pytest.approx(float(truth), rel=1e-9)


@either
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_lost_directions_do_not_disturb_small_or_large_nodes(scale, on_factor):
    rows = signs(4, N)
    rows[2] = rows[0]
    K, _ = space(scale * geometric(N, 1e4), rows, 5, on_factor)
    one, _ = space(geometric(N, 1e4), rows, 5, on_factor)
    assert int(K.rank) == int(one.rank) == 15
    for found, other in (
        (spectrum(K), spectrum(one)),
        (positive(squared(K), K.kept), positive(squared(one), one.kept)),
    ):
        assert int(found.kept.sum()) == 15
        assert found.nodes[~found.kept].tolist() == [1.0] * 5
        ours, theirs = (x.nodes[x.kept].sort().values for x in (found, other))
        torch.testing.assert_close(ours / scale, theirs, rtol=1e-9, atol=0)
        shift = float(torch.log(torch.tensor(scale, dtype=f64)))
        torch.testing.assert_close(
            found.forms(K.start), other.forms(one.start) + N * shift, rtol=1e-12, atol=1e-9
        )


def test_matrix_that_is_not_finite_counts_as_the_identity():
    K, _ = space(geometric(N, 9.0), signs(2, 3, N), 4, False)
    K.matrix[1, 3, 4] = torch.nan
    found = spectrum(K)
    assert found.nodes[1].tolist() == [1.0] * 12
    assert float(found.nodes[0].amin()) > 0.1


# Gauss–Radau --------------------------------------------------------------------------------------


@either
@every
@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("share", [0.5, 1.0 - 1e-9])
def test_radau_is_a_lower_bound_for_every_probe(name, k, share, on_factor):
    rows = signs(4, N)
    K, J = space(SPECTRA[name], rows, k, on_factor)
    exact = log_forms_of_factor(J, rows.mT)
    node = share * torch.linalg.svdvals(J).square().amin()
    below = radau_forms(K, node)
    assert bool((below <= exact + 1e-7).all())
    assert bool(torch.isfinite(below).all())
    gauss = spectrum(K).forms(K.start)
    if k == 12 and name == "geometric" and share == 0.5:
        assert float((gauss - below).amax()) < 1.0


@either
def test_radau_matrix_has_the_node_as_multiple_eigenvalue(on_factor):
    """Of multiplicity s: what one vector would leave to chance for s probes."""
    rows = signs(3, N)
    K, _ = space(geometric(N, 9.0), rows, 4, on_factor)
    T, node = squared(K), 0.05
    off = torch.zeros(12, 3, dtype=f64)
    off[9:] = K.coupling
    corner = off.mT @ torch.linalg.solve(T - node * torch.eye(12, dtype=f64), off)
    extended = torch.cat([torch.cat([T, off], 1), torch.cat([off.mT, corner], 1)])
    extended[12:, 12:] += node * torch.eye(3, dtype=f64)
    nodes, vectors = torch.linalg.eigh(extended)
    torch.testing.assert_close(nodes[:3], torch.full((3,), node, dtype=f64), rtol=1e-9, atol=0)
    weights = (K.start @ vectors[:3]).square()
    found = radau_forms(K, torch.tensor(node, dtype=f64))
    torch.testing.assert_close(found, weights @ nodes.log(), rtol=0, atol=1e-9)


@either
def test_node_above_a_ritz_value_proves_nothing(on_factor):
    rows = signs(2, 3, N)
    K, _ = space(geometric(N, 9.0), rows, 6, on_factor)
    smallest = spectrum(K).nodes.amin(-1)
    found = radau_forms(K, torch.stack([0.1 * smallest[0], 1.5 * smallest[1]]))
    assert bool(torch.isfinite(found[0]).all())
    assert found[1].tolist() == [-torch.inf] * 3


@either
def test_bound_survives_lost_directions(on_factor):
    """Their filler in T lies below λ_min here."""
    rows = signs(4, N)
    rows[3] = rows[1]
    K, J = space(100 * geometric(N, 9.0), rows, 6, on_factor)
    below = radau_forms(K, torch.tensor(10.0, dtype=f64))
    exact = log_forms_of_factor(J, rows.mT)
    assert bool((below <= exact).all())
    assert float((exact - below).amax()) < 0.01


@either
@pytest.mark.parametrize("dtype", [f32, f64])
def test_closed_space_has_equal_bounds(on_factor, dtype):
    K, J = space(torch.tensor([4.0, 1.0], dtype=f64).repeat(30), signs(3, N), 4, on_factor, dtype)
    exact = log_forms_of_factor(J, signs(3, N).mT)
    tolerance = 1e-3 if dtype == f32 else 1e-9
    for forms in (spectrum(K).forms(K.start), radau_forms(K, torch.tensor(0.7, dtype=f64))):
        torch.testing.assert_close(forms, exact, rtol=0, atol=tolerance)


def test_rules_of_a_batch_are_those_of_its_items():
    rows = signs(2, 3, N).clone()
    rows[1, 2] = rows[1, 0]
    K, _ = space(SPECTRA["geometric"], rows, 8, False)
    node = torch.tensor([1e-3, 1e-4], dtype=f64)
    bias, doubt, _ = extrapolated(K, spectrum(K).forms(K.start))
    for i in range(2):
        one, _ = space(SPECTRA["geometric"], rows[i], 8, False)
        forms = spectrum(one).forms(one.start)
        torch.testing.assert_close(spectrum(K).forms(K.start)[i], forms, rtol=0, atol=1e-9)
        torch.testing.assert_close(
            radau_forms(K, node)[i], radau_forms(one, node[i]), rtol=0, atol=1e-7
        )
        single = extrapolated(one, forms)[:2]
        torch.testing.assert_close(torch.stack([bias[i], doubt[i]]), torch.stack(single))


# The limit of a sequence --------------------------------------------------------------------------


def limit(*sequence):
    """(still to come, doubt) of a sequence given from the first value on."""
    values = [torch.tensor(float(v), dtype=f64) for v in reversed(sequence)]
    return tuple(float(x) for x in _limit(values))


def errors_of(law, steps=4):
    """A sequence 7 + law(i) of a positive error, and the last error."""
    return [7 + law(i) for i in range(1, steps + 1)], law(steps)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.6])
def test_limit_of_a_geometric_sequence_is_exact(ratio):
    sequence, error = errors_of(lambda i: 5 * ratio**i)
    total, doubt = limit(*sequence)
    assert total == pytest.approx(error, rel=1e-6)
    assert doubt >= 0.3 * total


def test_three_values_predict_nothing():
    """A space that fills at the last step: nothing is left to come, which three values hide."""
    assert limit(9, 7, 6) == (0, math.inf)


@pytest.mark.parametrize("slow", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("fast", [0.01, 0.1, 0.25])
def test_mixture_of_exponentials_is_corrected_by_less_than_its_error(slow, fast):
    sequence, error = errors_of(lambda i: 3 * slow**i + 4 * fast**i)
    total, doubt = limit(*sequence)
    last, before = sequence[2] - sequence[3], sequence[1] - sequence[2]
    aitken = last**2 / (before - last)
    assert total == pytest.approx(aitken, rel=1e-6)
    assert 0 < total <= error * (1 + 1e-9)


@pytest.mark.parametrize("power", [1.3, 1.6, 2.0])
@pytest.mark.parametrize("base", [0.9, 0.5, 0.2])
def test_accelerating_sequence_is_not_corrected_by_more_than_doubt_and_aitken(base, power):
    sequence, error = errors_of(lambda i: 5 * base ** (i**power))
    total, doubt = limit(*sequence)
    last, before = sequence[2] - sequence[3], sequence[1] - sequence[2]
    assert 0 <= total <= last**2 / (before - last) + 1e-9
    assert abs(total - error) <= max(2 * error, 1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_doubt_reaches_the_limit_of_an_algebraic_sequence(power):
    """As of a square Gaussian J: Aitken's rule finds a third of an error in 1 / k."""
    sequence, error = errors_of(lambda i: 5 * i**-power)
    total, doubt = limit(*sequence)
    assert total < 0.8 * error
    assert error <= (total + doubt) * (1 + 1e-6)


def test_sequence_that_is_constant_has_converged():
    assert limit(7, 7, 7, 7) == (0.0, pytest.approx(8e-12))
    assert limit(9, 8, 7, 7) == (0.0, pytest.approx(8e-12))


def test_sequence_that_rises_is_not_corrected():
    total, _ = limit(7, 8, 9, 10)
    assert total == 0


@pytest.mark.parametrize("sequence", [(9, 8, 7, 6), (9, 8.9, 8, 6), (9, 9, 9, 6)])
def test_sequence_without_visible_convergence_is_in_infinite_doubt(sequence):
    total, doubt = limit(*sequence)
    assert doubt == torch.inf
    last = sequence[2] - sequence[3]
    assert 0 <= total <= last / (1 - SLOWEST)


@pytest.mark.parametrize("sequence", [(7,), (9, 7)])
def test_two_values_say_nothing_of_a_limit(sequence):
    assert limit(*sequence) == (0.0, torch.inf)


@either
@pytest.mark.parametrize("cond", [3.0, 30.0])
def test_extrapolation_finds_most_of_the_truncation(cond, on_factor):
    eigenvalues = torch.linspace(1, cond, 200, dtype=f64)
    rows = signs(4, 200)
    K, J = space(eigenvalues, rows, 8, on_factor)
    forms = spectrum(K).forms(K.start)
    truncation = float((forms - log_forms_of_factor(J, rows.mT)).mean())
    total, doubt, _ = extrapolated(K, forms)
    assert truncation > 1e-9
    assert abs(float(total) - truncation) <= 0.5 * truncation
    assert abs(float(total) - truncation) <= 2 * float(doubt)


def test_extrapolation_compares_values_of_one_accuracy():
    """BᵀB blurs nodes below 1e-16 λ_max, which B itself resolves: that is no decrease."""
    K, _ = space(torch.linspace(1, 2, N, dtype=f64), signs(4, N), 8, True)
    K.matrix[:, 0] *= 1e-12  # a node of 1e-24, seen from the first step on
    forms = spectrum(K).forms(K.start)
    total, doubt, _ = extrapolated(K, forms)
    assert 0 <= float(total) <= 1e-3
    assert float(doubt) <= 1e-3


def test_decay_is_the_factor_for_one_step():
    """Chebyshev: the truncation falls by ((√κ − 1) / (√κ + 1))² with every step, or faster."""
    rows = signs(2, 300)
    K, _ = space(torch.linspace(1, 25, 300, dtype=f64), rows, 8, False)
    found = float(decay(K, spectrum(K).forms(K.start)))
    assert 0.3 * (4 / 6) ** 2 <= found <= 1.05 * (4 / 6) ** 2
    closed, _ = space(torch.ones(300, dtype=f64) * 2, rows, 8, False)
    assert float(decay(closed, spectrum(closed).forms(closed.start))) <= SLOWEST
    short, _ = space(torch.linspace(1, 25, 300, dtype=f64), rows, 2, False)
    assert float(decay(short, spectrum(short).forms(short.start))) == SLOWEST
