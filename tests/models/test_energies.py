"""Test energies and data: published formulas, normalisers, samplers, far points, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch.func import grad, vmap
from torch.testing import assert_close

from specbp import generator_for
from specbp.models import DATA, ENERGIES
from specbp.models.energies import EDGE, Box

CONFINED = ("u2", "u3", "u4")


def published(name: str, a: float, b: float) -> float:
    """The formulas as printed, on one point, with math functions only."""

    def bump(t: float, width: float) -> float:
        return math.exp(-0.5 * (t / width) ** 2)

    w1 = math.sin(2 * math.pi * a / 4)
    w2 = 3 * bump(a - 1, 0.6)
    w3 = 3 / (1 + math.exp(-(a - 1) / 0.3))
    return {
        "u1": lambda: (
            0.5 * ((math.sqrt(a * a + b * b) - 2) / 0.4) ** 2
            - math.log(bump(a - 2, 0.6) + bump(a + 2, 0.6))
        ),
        "u2": lambda: 0.5 * ((b - w1) / 0.4) ** 2,
        "u3": lambda: -math.log(bump(b - w1, 0.35) + bump(b - w1 + w2, 0.35)),
        "u4": lambda: -math.log(bump(b - w1, 0.4) + bump(b - w1 + w3, 0.35)),
    }[name]()


def midpoints(box: Box, num: int) -> tuple[torch.Tensor, float]:
    steps = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    axes = [low + (high - low) * steps for low, high in box]
    area = math.prod((high - low) / num for low, high in box)
    return torch.cartesian_prod(*axes), area


@pytest.mark.parametrize("name", ["u1", "u2", "u3", "u4"])
@given(a=st.floats(-4, 4), b=st.floats(-4, 4))
def test_the_published_formulas(name, a, b):
    z = torch.tensor([a, b], dtype=torch.float64)
    expected = published(name, a, b)
    assert float(ENERGIES[name](z)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", CONFINED)
def test_confinement_changes_nothing_within_the_region_shown(name):
    z, _ = midpoints(((-EDGE, EDGE), (-4, 4)), 60)
    assert torch.equal(ENERGIES[f"{name}_confined"](z), ENERGIES[name](z))
    beyond = torch.tensor([[EDGE + 1, 0.0], [-EDGE - 1, 0.0]], dtype=torch.float64)
    added = ENERGIES[f"{name}_confined"](beyond) - ENERGIES[name](beyond)
    assert_close(added, torch.full_like(added, 2.0))  # two widths: 2²/2


@pytest.mark.parametrize("name", CONFINED)
def test_closed_form_of_the_normaliser(name):
    energy = ENERGIES[f"{name}_confined"]
    z, area = midpoints(energy.box, 400)
    assert math.log(float(torch.exp(-energy(z)).sum()) * area) == pytest.approx(
        energy.log_normaliser, abs=1e-6
    )


@pytest.mark.parametrize("name", CONFINED)
def test_the_plain_forms_have_the_same_mass_for_every_z1(name):
    """Which makes that over the plane infinite."""

    def mass(a: float) -> float:
        def density(b: float) -> float:
            return math.exp(-float(ENERGIES[name](torch.tensor([a, b]).double())))

        return integrate.quad(density, -10, 8, points=[-4, -2, 0, 1], epsabs=1e-7, limit=100)[0]

    assert [mass(a) for a in (-7.3, 1.0, 12.6)] == pytest.approx([mass(0.0)] * 3, rel=1e-6)
    assert not ENERGIES[name].normalised
    assert ENERGIES[name].log_normaliser == math.inf


def test_only_u1_of_the_published_ones_is_normalised():
    z, area = midpoints(ENERGIES["u1"].box, 200)
    wide, wide_area = midpoints(((-10, 10), (-10, 10)), 400)
    density = torch.exp(-ENERGIES["u1"](z)).sum() * area
    assert_close(torch.exp(-ENERGIES["u1"](wide)).sum() * wide_area, density, rtol=1e-6, atol=0)
    assert [name for name, U in ENERGIES.items() if U.normalised] == [
        "u1",
        *(f"{name}_confined" for name in CONFINED),
    ]


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=list(ENERGIES))
def test_the_box_of_a_normalised_energy_holds_its_mass(energy):
    if not energy.normalised:
        assert energy.box == ((-4, 4), (-4, 4))
        return
    (a, b), (c, d) = energy.box
    inside, area = midpoints(energy.box, 300)
    outside, wide_area = midpoints(((a - 3, b + 3), (c - 3, d + 3)), 500)
    low, high = torch.tensor([a, c]), torch.tensor([b, d])
    outside = outside[((outside < low) | (outside > high)).any(-1)]
    mass = torch.exp(-energy(inside)).sum() * area
    assert torch.exp(-energy(outside)).sum() * wide_area < 1e-8 * mass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("energy", ENERGIES.values(), ids=list(ENERGIES))
def test_finite_with_finite_gradient_far_away_and_at_zero(energy, dtype):
    far = [0.0, 1.0, -30.0, 1e3, -1e6, 1e12]
    z = torch.cartesian_prod(*[torch.tensor(far, dtype=dtype)] * 2)
    values, gradients = energy(z), vmap(grad(energy))(z)
    assert values.dtype == gradients.dtype == dtype
    assert values.isfinite().all()
    assert gradients.isfinite().all()


@pytest.mark.parametrize("energy", ENERGIES.values(), ids=list(ENERGIES))
def test_derivative_dtype_and_shape(energy):
    z = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator_for("energies"))
    z.requires_grad_()
    assert torch.autograd.gradcheck(energy, z)
    assert energy(z).shape == (3, 2)
    single = energy(z.detach().float())
    assert_close(single.double(), energy(z.detach()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", DATA.values(), ids=list(DATA))
def test_data_density_is_normalised_and_equals_the_sum_over_components(data):
    x, area = midpoints(data.box, 150)
    assert float(data.log_prob(x).exp().sum()) * area == pytest.approx(1, abs=1e-8)
    normal = [
        torch.exp(-(x - mean).square().sum(-1) / (2 * data.std**2)) / (2 * math.pi * data.std**2)
        for mean in data.means
    ]
    near = data.log_prob(x) > -300  # the sum of exponentials underflows beyond
    naive = torch.stack(normal).mean(0).log()
    assert_close(data.log_prob(x)[near], naive[near], rtol=1e-9, atol=1e-9)
    assert data.log_prob(torch.tensor([1e6, 0.0])).isfinite()


@pytest.mark.parametrize("data", DATA.values(), ids=list(DATA))
def test_samples_follow_the_density(data):
    """E[log p(x)] and E[x xᵀ] of samples against quadrature, within five standard errors."""
    num = 20_000
    x = data.sample(num, generator=generator_for("data", data.name))
    grid, area = midpoints(data.box, 150)
    weight = data.log_prob(grid).exp() * area

    def statistics(y: torch.Tensor) -> torch.Tensor:
        squares = (y.unsqueeze(-1) * y.unsqueeze(-2)).flatten(1)
        return torch.cat([data.log_prob(y).unsqueeze(-1), y, squares], -1)

    exact = (weight.unsqueeze(-1) * statistics(grid)).sum(0)
    found = statistics(x)
    error = (found.mean(0) - exact) / (found.std(0) / num**0.5)
    assert error.abs().max() < 5


def test_samples_depend_on_the_generator_alone():
    data = DATA["eight"]
    first, second = (data.sample(7, generator=generator_for("twice")) for _ in range(2))
    assert torch.equal(first, second)
    single = data.sample(7, generator=generator_for("twice"), dtype=torch.float32)
    assert torch.equal(single, first.float())
    assert not torch.equal(data.sample(7, generator=generator_for("other")), first)
    assert data.sample(0, generator=generator_for("none")).shape == (0, 2)


def test_bad_input():
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\), got \(4, 3\)"):
        ENERGIES["u1"](torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"got \(\)"):
        DATA["moons"].log_prob(torch.tensor(1.0))
    with pytest.raises(ValueError, match="num must not be negative, got -1"):
        DATA["moons"].sample(-1, generator=generator_for("bad"))
