"""P1–P3: wrong laws, shared and returning probes, and samplers that ignore their generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dct
from scipy.linalg import hadamard as scipy_hadamard

from specbp import generator_for, rademacher, sphere
from specbp.methods import METHODS
from specbp.probes import LAWS as SAMPLERS
from specbp.probes import antithetic as antithetic_pairs
from specbp.probes import mixed_unit, unit_vector
from specbp.testing.outcome import FAIL, PASS
from verification.checks import law
from verification.checks.settings import Settings
from verification.subjects import from_method

WITHIN = "P2 duplicates within one block"
SLQ, QR = (from_method(METHODS[name]) for name in ("slq", "qr"))


def verdicts(claim, subject):
    return {check.name: check.verdict for check in claim(subject, Settings())}


def drawing(draw, promised="rademacher"):
    """A subject whose sampler is `draw(n, m, generator, batch_shape)`."""

    def sampler(n, m, *, generator, batch_shape=(), dtype=torch.float64, device="cpu"):
        return draw(n, m, generator, tuple(batch_shape)).to(dtype=dtype, device=device)

    return replace(SLQ, sampler=sampler, law=promised)


def signs(n, m, generator, batch=()):
    return rademacher(n, m, generator=generator, batch_shape=batch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_laws_of_the_library_pass(name):
    subject = replace(SLQ, sampler=SAMPLERS[name], law=name)
    for claim in law.CHECKS:
        assert set(verdicts(claim, subject).values()) == {PASS}


@pytest.mark.parametrize("drawn", ["gaussian", "sphere"])
def test_another_law_than_promised_is_seen(drawn):
    assert verdicts(law.law, replace(SLQ, sampler=SAMPLERS[drawn]))["P1 support"] == FAIL


def biased(n, m, generator, batch):
    uniform = torch.rand((*batch, n, m), generator=generator, dtype=torch.float64)
    return (2 * (uniform < 0.51) - 1).double()


def test_a_biased_coin_is_seen():
    assert verdicts(law.law, drawing(biased))["P1 pooled mean"] == FAIL


def test_blocks_that_are_not_orthogonal_are_seen():
    found = verdicts(law.law, replace(SLQ, sampler=sphere, law="orthogonal"))
    assert found.pop("P1 orthogonal") == FAIL
    assert set(found.values()) == {PASS}


def rows_of(law, generator, n, m, batch, *, replacement=False, signs=None):
    """Blocks of a population whose indices and signs D are drawn as one likes."""
    keys = torch.rand((*batch, n), generator=generator, dtype=torch.float64)
    j = keys.argsort(-1)[..., :m]
    if replacement:
        j = torch.randint(n, (*batch, m), generator=generator)
    H = {"hadamard": scipy_hadamard(n), "mixed_unit": n**0.5 * dct(np.eye(n), axis=0, norm="ortho")}
    H["unit_vector"] = n**0.5 * np.eye(n)
    D = rademacher(n, 1, generator=generator, batch_shape=batch).mT if signs is None else signs
    D = 1.0 if law == "unit_vector" else D
    return (torch.from_numpy(H[law]).double()[j] * D).mT


POPULATIONS = ("hadamard", "mixed_unit", "unit_vector")


@pytest.mark.parametrize("promised", POPULATIONS)
def test_populations_with_all_their_parts_pass(promised):
    def draw(n, m, generator, batch):
        return rows_of(promised, generator, n, m, batch)

    assert set(verdicts(law.law, drawing(draw, promised)).values()) == {PASS}


@pytest.mark.parametrize("promised", POPULATIONS)
def test_sampling_with_replacement_is_seen(promised):
    def draw(n, m, generator, batch):
        return rows_of(promised, generator, n, m, batch, replacement=True)

    assert verdicts(law.law, drawing(draw, promised))["P1 orthogonal"] == FAIL
    assert verdicts(law.duplicates, drawing(draw, promised))[WITHIN] == FAIL


@pytest.mark.parametrize("promised", ["hadamard", "mixed_unit"])
@pytest.mark.parametrize("fixed", ["none", "one draw"])
def test_signs_that_are_not_random_are_seen(promised, fixed):
    def draw(n, m, generator, batch):
        D = 1.0 if fixed == "none" else signs(n, 1, generator_for("D")).mT
        return rows_of(promised, generator, n, m, batch, signs=D)

    assert verdicts(law.law, drawing(draw, promised))["P1 coordinate mean"] == FAIL


@pytest.mark.parametrize("sampler", [mixed_unit, unit_vector])
def test_a_missing_square_root_is_seen(sampler):
    def draw(n, m, generator, batch):
        return sampler(n, m, generator=generator, batch_shape=batch) / n**0.5

    found = verdicts(law.law, drawing(draw, sampler.__name__))
    assert found["P1 support"] == found["P1 orthogonal"] == FAIL


@pytest.mark.parametrize(
    ("s", "name"),
    [
        (lambda n, m, g, batch: signs(n, m, g, batch), "P1 balance"),
        (lambda n, m, g, batch: 1 - 2 * (torch.arange(n) < n // 2).double()[:, None], "P1 s mean"),
    ],
)
def test_pairs_that_are_not_balanced_or_not_random_are_seen(s, name):
    def draw(n, m, generator, batch):
        x = signs(n, m // 2, generator, batch)
        return torch.stack([x, s(n, m // 2, generator, batch) * x], -1).flatten(-2)

    assert verdicts(law.law, drawing(draw, "antithetic"))[name] == FAIL


def test_independent_signs_are_no_antithetic_pairs_and_pairs_are_no_hadamard_block():
    for sampler, promised, name in (
        (rademacher, "antithetic", "P1 balance"),
        (antithetic_pairs, "hadamard", "P1 orthogonal"),
    ):
        subject = replace(SLQ, sampler=sampler, law=promised)
        assert verdicts(law.law, subject)[name] == FAIL


@pytest.mark.parametrize("axis", ["items", "calls", "seeds"])
def test_sequences_of_unit_vectors_that_return_are_seen(axis):
    def draw(n, m, generator, batch):
        source = generator_for("0") if axis == "seeds" else generator
        if axis == "calls":
            source = generator_for("seed", generator.initial_seed())
        size = () if axis == "items" else batch
        X = unit_vector(n, m, generator=source, batch_shape=size)
        return X.expand(*batch, n, m)

    found = verdicts(law.duplicates, drawing(draw, "unit_vector"))
    assert found[f"P2 duplicates across {axis}"] == FAIL


def shared(n, m, generator, batch):
    return signs(n, m, generator).expand(*batch, n, m)


def antithetic(n, m, generator, batch):
    half = signs(n, m // 2, generator, batch)
    return torch.cat([half, -half], -1)


def frozen_calls(n, m, generator, batch):
    return signs(n, m, generator_for("seed", generator.initial_seed()), batch)


@pytest.mark.parametrize(
    ("draw", "scope"),
    [
        (shared, "across items"),
        (antithetic, "within one block"),
        (frozen_calls, "across calls"),
        (lambda n, m, _generator, batch: signs(n, m, generator_for("0"), batch), "across seeds"),
    ],
)
def test_probes_that_return_are_seen_where_they_return(draw, scope):
    found = verdicts(law.duplicates, drawing(draw))
    assert found[f"P2 duplicates {scope}"] == FAIL


def periodic(n, m, generator, batch):
    seed = int(torch.randint(5, (), generator=generator))
    return signs(n, m, generator_for("period", seed), batch)


def global_draw(n, m, _generator, batch):
    bits = np.random.randint(2, size=(*batch, n, m))  # noqa: NPY002
    return torch.from_numpy(2.0 * bits - 1)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (periodic, "P3 seeds"),
        (global_draw, "P3 same seed"),
        (global_draw, "P3 global state"),
        (lambda n, m, _generator, batch: signs(n, m, generator_for("0"), batch), "P3 new seed"),
    ],
)
def test_samplers_that_are_no_function_of_their_generator_are_seen(draw, name):
    assert verdicts(law.reproducible, drawing(draw))[name] == FAIL


def test_methods_without_probes_have_no_law():
    assert [verdicts(claim, QR) for claim in law.CHECKS] == [{}, {}, {}]


def test_a_law_nobody_knows_is_refused():
    (check,) = law.law(replace(SLQ, law="uniform"), Settings())
    assert check.verdict == FAIL
    assert "law must be one of" in check.message
