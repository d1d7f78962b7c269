"""The law of probes: correct samplers pass at the stated rate, and every planted fault is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbp import generator_for
from specbp.probes import LAWS as SAMPLERS
from specbp.testing import laws, tails
from specbp.testing.laws import law_checks, recognise_law
from specbp.testing.outcome import FAIL, INCONCLUSIVE, PASS, Level

LEVEL = Level(alpha=1e-3, margin=0.2)
N = 64


def draw(law: str, P: int = 1300, n: int = N, key: object = 0) -> torch.Tensor:
    return SAMPLERS[law](n, P, generator=generator_for("laws", law, key, n)).mT


def failures(probes: torch.Tensor, law: str, **options: bool) -> set[str]:
    checks = law_checks(probes, law, LEVEL, **options)
    return {check.name.removeprefix("P1 ") for check in checks if check.verdict == FAIL}


@pytest.mark.parametrize("law", laws.LAWS)
def test_the_right_law_passes_with_power_to_spare(law):
    checks = law_checks(draw(law), law, LEVEL)
    assert {check.verdict for check in checks} == {PASS}
    assert all(check.name.startswith("P1 ") for check in checks)


@pytest.mark.parametrize("law", laws.LAWS)
def test_false_alarms_come_at_the_stated_rate(law):
    """300 lists at level 0.05: the rate lies in 0.05 ± 0.045 with probability 1 - 1e-3."""
    blocks = SAMPLERS[law](8, 100, generator=generator_for("size", law), batch_shape=(300,)).mT
    level = Level(alpha=0.05, margin=math.inf)
    alarms = [any(c.verdict == FAIL for c in law_checks(x, law, level)) for x in blocks]
    assert abs(np.mean(alarms) - 0.05) < 0.045


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("law", laws.LAWS)
def test_false_alarms_of_short_vectors_do_not_exceed_the_stated_rate(law, n):
    """200 lists at 0.05 for each P: at most 0.05 + 0.05 with probability 1 - 1e-3."""
    level = Level(alpha=0.05, margin=math.inf)
    for P in (20, 200, 2000):
        key = generator_for("short", law, n, P)
        blocks = SAMPLERS[law](n, P, generator=key, batch_shape=(200,)).mT
        alarms = [any(c.verdict == FAIL for c in law_checks(x, law, level)) for x in blocks]
        assert np.mean(alarms) <= 0.1, P


def test_few_squares_of_pairs_and_fourth_powers_keep_a_small_level():
    """4000 lists of ten Gaussian pairs at 1e-3: 4 expected alarms, 15 with probability < 1e-4."""
    blocks = SAMPLERS["gaussian"](2, 10, generator=generator_for("few"), batch_shape=(4000,)).mT
    level = Level(alpha=1e-3, margin=math.inf)
    random = (laws._covariance, laws._fourth_moment)
    for check in random:
        alarms = sum(check(x, "gaussian", level).verdict == FAIL for x in blocks.numpy())
        assert alarms < 15, check.__name__


@pytest.mark.parametrize("n", [2, 8, 64])
def test_the_detectable_correlation_is_seen_with_the_stated_probability(n):
    """150 trials of random correlations of the stated size: 0.95 is at least 0.87 in them."""
    P, level, rng = 500, Level(alpha=1e-3, margin=math.inf), np.random.default_rng([n, 7])
    stated = laws._covariance(rng.standard_normal((P, n)), "gaussian", level).detectable
    found = []
    for _ in range(150):
        E = np.triu(rng.standard_normal((n, n)), 1)
        E *= stated / math.sqrt((E**2).sum() / math.comb(n, 2))
        factor = np.linalg.cholesky(np.eye(n) + E + E.T)
        x = rng.standard_normal((P, n)) @ factor.T
        found.append(laws._covariance(x, "gaussian", level).verdict == FAIL)
    assert np.mean(found) > 0.87


@pytest.mark.parametrize(
    ("law", "other", "found"),
    [
        ("gaussian", "rademacher", {"support"}),
        ("sphere", "rademacher", {"support"}),
        ("rademacher", "sphere", {"fourth moment"}),
        ("gaussian", "sphere", {"support"}),
        ("rademacher", "gaussian", {"fourth moment", "norms"}),
        ("sphere", "gaussian", {"norms"}),
    ],
)
def test_another_law_is_found(law, other, found):
    assert failures(draw(law), other) >= found


def biased_coin(q: float, P: int, key: object) -> torch.Tensor:
    uniform = torch.rand(P, N, generator=generator_for("coin", key), dtype=torch.float64)
    return torch.where(uniform < q, 1.0, -1.0).double()


def test_a_coin_of_51_percent_is_caught_at_the_stated_sample_size():
    """1125 probes of length 64: the pooled mean sees it with probability 0.95."""
    names = [failures(biased_coin(0.51, 1125, i), "rademacher") for i in range(60)]
    assert np.mean([found == {"pooled mean"} for found in names]) > 0.85
    assert not any(failures(biased_coin(0.5, 1125, i), "rademacher") for i in range(10))


def test_too_few_probes_cannot_say():
    checks = law_checks(draw("rademacher", P=100), "rademacher", LEVEL)
    verdicts = {check.name: check.verdict for check in checks}
    assert verdicts["P1 pooled mean"] == INCONCLUSIVE
    assert verdicts["P1 support"] == PASS


def one_constant_coordinate(x: torch.Tensor) -> torch.Tensor:
    x[:, 5] = 1.0
    return x


def two_equal_coordinates(x: torch.Tensor) -> torch.Tensor:
    x[:, 7] = x[:, 3]
    return x


def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[: len(x) // 2], -x[: len(x) // 2]])


def orthogonal_blocks(x: torch.Tensor) -> torch.Tensor:
    blocks = SAMPLERS["orthogonal"](N, N, generator=generator_for("o"), batch_shape=(18,))
    return blocks.mT.reshape(-1, N)


@pytest.mark.parametrize(
    ("law", "fault", "found"),
    [
        ("rademacher", one_constant_coordinate, {"coordinate mean"}),
        ("rademacher", two_equal_coordinates, {"largest correlation"}),
        ("rademacher", pairs, {"covariance"}),
        ("sphere", orthogonal_blocks, {"covariance"}),
        ("gaussian", lambda x: 1.05 * x, {"second moment"}),
        ("gaussian", lambda x: x + 0.03, {"pooled mean"}),
        ("rademacher", lambda x: 1.001 * x, {"support"}),
        ("sphere", lambda x: math.sqrt(N) * torch.eye(N).double().repeat(18, 1), {"fourth moment"}),
        ("rademacher", lambda x: x * math.nan, {"support"}),
    ],
)
def test_planted_faults_are_found(law, fault, found):
    assert failures(fault(draw(law)), law) >= found


def test_normalised_probes_are_judged_up_to_scale():
    x = draw("rademacher") / math.sqrt(N)
    assert failures(x, "rademacher") == {"support"}
    assert failures(x, "rademacher", up_to_scale=True) == set()
    assert failures(3 * draw("gaussian"), "gaussian", up_to_scale=True) == set()
    assert failures(draw("sphere").float(), "sphere") == set()


@pytest.mark.parametrize("n", [2, 16, N])
@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("law", laws.LAWS)
def test_laws_are_recognised(law, n, scale):
    assert recognise_law(scale * draw(law, P=max(400, 4000 // n), n=n)) == law


@pytest.mark.parametrize(
    "probes",
    [
        torch.rand(400, 16, generator=generator_for("u"), dtype=torch.float64) - 0.5,
        draw("gaussian", P=400) ** 3,
        torch.eye(16).double().repeat(20, 1),
        draw("sphere", P=400) * torch.linspace(0.5, 2, 400).unsqueeze(1),
    ],
)
def test_other_laws_are_not_recognised(probes):
    assert recognise_law(probes) is None


@pytest.mark.parametrize(
    "entries",
    [
        lambda g: torch.randn(10, 16, generator=g, dtype=torch.float64),
        lambda g: torch.rand(10, 16, generator=g, dtype=torch.float64) - 0.5,
        lambda g: torch.rand(10, 16, generator=g, dtype=torch.float64).logit(),
        lambda g: torch.randint(-1, 2, (10, 16), generator=g).double(),
    ],
)
def test_ten_vectors_are_too_few_to_name_a_continuous_law(entries):
    assert recognise_law(entries(generator_for("few"))) is None


@pytest.mark.parametrize(
    "entries",
    [
        lambda g: torch.rand(250, 16, generator=g, dtype=torch.float64) - 0.5,
        lambda g: torch.distributions.Laplace(0.0, 1.0).icdf(
            torch.rand(250, 16, generator=g, dtype=torch.float64).clamp(1e-12)
        ),
        lambda g: torch.randint(-1, 2, (250, 16), generator=g).double(),
    ],
)
def test_where_a_law_is_named_the_neighbours_of_the_gaussian_one_are_told_apart(entries):
    assert recognise_law(draw("gaussian", P=250, n=16)) == "gaussian"
    assert [recognise_law(entries(generator_for("near", i))) for i in range(20)] == [None] * 20


def test_shapes_and_names_are_checked():
    with pytest.raises(ValueError, match="law must be one of .* block_law_checks; got 'orth"):
        law_checks(draw("rademacher"), "orthogonal", LEVEL)
    with pytest.raises(ValueError, match=r"\(P, n\) with P ≥ 2, got shape \(1, 4\)"):
        law_checks(torch.ones(1, 4), "rademacher", LEVEL)
    assert failures(torch.ones(40, 1).double(), "rademacher") >= {"pooled mean"}


# The exact moments behind the null distributions, by brute force ----------------------------------


@pytest.mark.parametrize("law", laws.LAWS)
def test_moments_of_the_null_are_those_of_draws(law):
    """Second to fourth moments from 2e5 probes of length 5."""
    x = draw(law, P=200_000, n=5, key="moments").numpy()
    quartic = (x**4).sum(1)
    null = tails.fourth_powers(5, law) if law != "rademacher" else None
    if null is not None:
        assert quartic.mean() == pytest.approx(null.mean, rel=0.02)
        assert quartic.var() == pytest.approx(null.variance, rel=0.1)
        assert (quartic - null.mean).__pow__(3).mean() == pytest.approx(null.third, rel=0.4)
    assert (x[:, 0] ** 4).mean() == pytest.approx(tails.coordinate(5, law).fourth, rel=0.02)
    product = x[:, 0] * x[:, 1]
    assert product.var() == pytest.approx(tails.product(5, law).variance, rel=0.02)
    assert (product**4).mean() == pytest.approx(tails.product(5, law).fourth, rel=0.1)
    triple = (x[:, 0] * x[:, 1] * x[:, 2]) ** 2
    assert triple.mean() == pytest.approx(tails.mixed_moment(5, 3, law), rel=0.03)


def test_signs_have_an_exact_binomial_tail():
    one = tails.coordinate(4, "rademacher")
    assert tails.sum_of_entries(-5.0, 5, "rademacher", one, 5) == 2 / 32
    assert tails.sum_of_entries(3.0, 5, "rademacher", one, 5) == 12 / 32
    assert tails.sum_of_entries(1.0, 5, "rademacher", one, 5) == 1.0
