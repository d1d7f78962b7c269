"""Flows: closed-form log-determinants against dense Jacobians, inverses, masks, construction."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, vmap
from torch.testing import assert_close

from specbp.models import (
    AdditiveCoupling,
    AffineCoupling,
    AutoregressiveFlow,
    Composition,
    ElementWiseFlow,
    Flow,
    LinearFlow,
    RealNVP,
    TriangularFlow,
)

# torch scripts some decompositions when the first JVP of a process is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")

EPS = torch.finfo(torch.float64).eps
ODD = torch.tensor([False, True, False, True, False])

# name: constructor of a flow from R^5, by generator
FLOWS = {
    "linear": lambda g: LinearFlow(5, generator=g),
    "linear-tall": lambda g: LinearFlow(5, 8, generator=g),
    "triangular": lambda g: TriangularFlow(5, generator=g),
    "element-wise": lambda g: ElementWiseFlow(5, generator=g),
    "additive": lambda g: AdditiveCoupling(5, generator=g),
    "additive-odd": lambda g: AdditiveCoupling(5, 7, ODD, gain=2.0, generator=g),
    "affine": lambda g: AffineCoupling(5, generator=g),
    "affine-odd": lambda g: AffineCoupling(5, 7, ODD, bound=0.5, generator=g),
    "autoregressive": lambda g: AutoregressiveFlow(5, 16, generator=g),
    "real-nvp": lambda g: RealNVP(5, 16, 6, generator=g),
    "composition": lambda g: Composition(
        ElementWiseFlow(5, generator=g),
        TriangularFlow(5, generator=g),
        AutoregressiveFlow(5, generator=g),
        LinearFlow(5, 7, generator=g),
    ),
}
every_flow = pytest.mark.parametrize("name", FLOWS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(name: str, seed: int = 0) -> Flow:
    return FLOWS[name](generator(seed)).double()


def points(*batch: int, dim: int = 5) -> torch.Tensor:
    return torch.randn(*batch, dim, dtype=torch.float64, generator=generator(1))


def dense(f: Flow, z: torch.Tensor) -> torch.Tensor:
    """The Jacobians (b, N, n) of f at z (b, n), differentiable."""
    return vmap(jacfwd(f))(z)


def half_logdet(J: torch.Tensor) -> torch.Tensor:
    """½ log det JᵀJ, by LU of the metric where J is tall."""
    if J.shape[-2] == J.shape[-1]:
        return torch.linalg.slogdet(J).logabsdet
    return torch.linalg.slogdet(J.mT @ J).logabsdet / 2


def gradients(value: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the sum, zero where there is no path."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    pairs = zip(found, leaves, strict=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in pairs]


# Closed forms -------------------------------------------------------------------------------------


@every_flow
@pytest.mark.parametrize("seed", [0, 1])
def test_log_det_is_that_of_the_dense_jacobian(name, seed):
    f, z = flow(name, seed), points(4)
    assert_close(f.log_det(z), half_logdet(dense(f, z)), rtol=0, atol=1e-10)


@every_flow
def test_inverse_undoes_forward(name):
    f, z = flow(name), points(4)
    assert_close(f.inverse(f(z)), z, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", [name for name in FLOWS if name not in ("linear-tall", "composition")]
)
def test_forward_undoes_inverse(name):
    f, x = flow(name), points(4)
    assert_close(f(f.inverse(x)), x, rtol=0, atol=1e-10)


@every_flow
def test_log_prob_is_the_change_of_variables(name):
    f, z = flow(name), points(4)
    normal = -(z.square().sum(-1) + 5 * math.log(2 * math.pi)) / 2
    expected = normal - half_logdet(dense(f, z))
    assert_close(f.log_prob(f(z)), expected, rtol=0, atol=1e-10)


@every_flow
def test_leading_dimensions_broadcast(name):
    f, z = flow(name), points(2, 3)
    assert f(z).shape == (2, 3, f.out_dim)
    assert f.log_det(z).shape == f.log_prob(f(z)).shape == (2, 3)
    assert_close(f.log_det(z)[1, 2], f.log_det(z[1, 2]), rtol=0, atol=100 * EPS)
    assert_close(f.inverse(f(z))[1, 2], f.inverse(f(z[1, 2])), rtol=0, atol=1e-10)


@every_flow
def test_gradients_of_log_det(name):
    """With respect to all parameters and to z, against reverse mode through the dense Jacobian."""
    f, z = flow(name), points(3).requires_grad_()
    leaves = [z, *f.parameters()]
    found = gradients(f.log_det(z), leaves)
    for a, b in zip(found, gradients(half_logdet(dense(f, z)), leaves), strict=True):
        assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["affine", "autoregressive", "real-nvp", "element-wise"])
def test_log_det_depends_on_the_point(name):
    """A constant log-determinant would have passed the test of the gradient in z by being zero."""
    z = points(2).requires_grad_()
    (grad,) = torch.autograd.grad(flow(name).log_det(z).sum(), z)
    assert (grad.abs().amax(-1) > 1e-3).all()


def test_density_integrates_to_one():
    """exp(log_prob) over a fine grid of R², for a map that is far from linear."""
    f = Composition(
        RealNVP(2, 8, 4, bound=0.7, generator=generator(3)),
        AutoregressiveFlow(2, 8, bound=0.7, generator=generator(4)),
    ).double()
    side = torch.linspace(-20, 20, 601, dtype=torch.float64)
    with torch.no_grad():
        density = f.log_prob(torch.cartesian_prod(side, side)).exp()
    assert abs(density.sum().item() / 15**2 - 1) < 1e-6


# What each family is there for --------------------------------------------------------------------


def test_additive_coupling_has_log_det_zero_and_a_spectrum():
    f, z = flow("additive-odd"), points(6)
    assert bool((f.log_det(z) == 0).all())
    sigma = torch.linalg.svdvals(dense(f, z)).log()
    assert_close(sigma.sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (sigma.abs().sum(-1) > 0.5).all()


def test_triangular_flow_has_eigenvalues_other_than_its_squared_diagonal():
    f, z = flow("triangular"), points(1)
    J = dense(f, z)[0]
    assert bool((J.triu(1) == 0).all())
    assert_close(J.diagonal(), f.log_diagonal.exp(), rtol=0, atol=4 * EPS)
    eigenvalues = torch.linalg.eigvalsh(J.mT @ J)
    assert (eigenvalues - J.diagonal().square().sort().values).abs().max() > 0.1


def test_singular_values_of_the_element_wise_flow_are_its_derivatives():
    f, z = flow("element-wise"), points(1)
    J = dense(f, z)[0]
    assert torch.equal(J, J.diagonal().diag())
    assert (J.diagonal() > 0).all()
    ratio = [
        torch.linalg.cond(dense(ElementWiseFlow(64, s, generator=generator()).double(), w)).item()
        for w in [points(1, dim=64)]
        for s in (0.1, 3.0)
    ]
    assert ratio[1] > 1e3 * ratio[0]


@pytest.mark.parametrize("kept", [None, ODD])
def test_a_coupling_keeps_what_its_mask_says(kept):
    f, z = AffineCoupling(5, 7, kept, generator=generator()).double(), points(2)
    mask = torch.arange(5) < 2 if kept is None else kept
    assert torch.equal(f(z)[:, mask], z[:, mask])
    assert (f(z)[:, ~mask] != z[:, ~mask]).all()
    J = dense(f, z)
    off_diagonal = J - J.diagonal(dim1=-2, dim2=-1).diag_embed()
    assert bool((off_diagonal[:, :, ~mask] == 0).all())
    assert bool((off_diagonal[:, ~mask][:, :, mask] != 0).all())


def test_log_scales_of_a_coupling_are_bounded():
    f = AffineCoupling(5, bound=0.5, gain=1e3, generator=generator()).double()
    log_det = f.log_det(100 * points(50))
    assert (log_det.abs() <= 3 * 0.5).all()
    assert log_det.abs().max() > 0.9 * 0.5


def test_conditionals_of_the_autoregressive_flow_read_only_what_comes_before():
    f, x = flow("autoregressive"), points(1)[0]
    for part in jacfwd(f._conditionals)(x):
        assert bool((part.triu() == 0).all())
        assert (part.abs().amax(-1)[1:] > 0).all()
    inverse = jacfwd(f.inverse)(x)
    assert bool((inverse.triu(1) == 0).all())


def test_the_autoregressive_flow_samples_its_own_conditionals():
    """The generator, coordinate by coordinate, from the conditionals alone."""
    f, z = flow("autoregressive"), points(3)
    x = torch.zeros_like(z)
    for i in range(5):
        mean, log_scale = f._conditionals(x)
        x = x.clone()
        x[:, i] = mean[:, i] + log_scale[:, i].exp() * z[:, i]
    assert_close(f(z), x, rtol=0, atol=100 * EPS)


def test_every_coordinate_of_real_nvp_moves():
    f = RealNVP(6, 8, 2, generator=generator()).double()
    assert (f(points(1, dim=6)) != points(1, dim=6)).all()
    identity = RealNVP(6, 8, 4, gain=0.0, generator=generator()).double()
    assert torch.equal(identity(points(1, dim=6)), points(1, dim=6))


@given(dim=st.integers(2, 6), seeds=st.tuples(*[st.integers(0, 2**16)] * 3))
def test_log_dets_of_a_composition_add(dim, seeds):
    parts = [
        RealNVP(dim, 8, 2, generator=generator(seeds[0])).double(),
        ElementWiseFlow(dim, generator=generator(seeds[1])).double(),
        LinearFlow(dim, dim + 1, generator=generator(seeds[2])).double(),
    ]
    z = points(2, dim=dim)
    expected, h = torch.zeros(2, dtype=torch.float64), z
    for part in parts:
        expected, h = expected + part.log_det(h), part(h)
    f = Composition(*parts)
    assert_close(f.log_det(z), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(f(z), h)
    assert_close(f.log_det(z), half_logdet(dense(f, z)), rtol=1e-8, atol=1e-8)


# Construction -------------------------------------------------------------------------------------


@every_flow
def test_parameters_come_from_the_generator_alone_in_float32(name):
    before = torch.get_rng_state()
    first, again, other = (
        FLOWS[name](generator()),
        FLOWS[name](generator()),
        FLOWS[name](generator(1)),
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.dtype for p in first.state_dict().values()} == {torch.float32}
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())


@every_flow
def test_float32_and_float64_agree(name):
    f, z = flow(name), points(3)
    single = copy.deepcopy(f).float()
    assert_close(single(z.float()).double(), f(z), rtol=1e-4, atol=1e-4)
    assert_close(single.log_det(z.float()).double(), f.log_det(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("construct", "said"),
    [
        (lambda g: LinearFlow(3, 2, generator=g), "dim <= out_dim"),
        (lambda g: ElementWiseFlow(0, generator=g), "1 <= dim"),
        (lambda g: AffineCoupling(1, generator=g), "boolean mask"),
        (lambda g: AffineCoupling(3, kept=torch.ones(3, dtype=torch.bool), generator=g), "3 kept"),
        (lambda g: AdditiveCoupling(3, kept=torch.ones(3), generator=g), "float32"),
        (lambda g: AutoregressiveFlow(1, generator=g), "dim >= 2"),
        (lambda g: RealNVP(4, layers=0, generator=g), "needs flows"),
        (lambda _: Composition(), "needs flows"),
        (
            lambda g: Composition(LinearFlow(2, 3, generator=g), LinearFlow(3, generator=g)),
            "the last alone may be tall",
        ),
        (
            lambda g: Composition(LinearFlow(2, generator=g), LinearFlow(3, generator=g)),
            r"\(2, 2\), \(3, 3\)",
        ),
    ],
)
def test_impossible_sizes_are_refused(construct, said):
    with pytest.raises(ValueError, match=said):
        construct(generator())


def test_a_flow_without_inverse_says_so():
    class Cubic(Flow):
        def _transform(self, z):
            return z + z**3, (1 + 3 * z.square()).log().sum(-1)

    f, z = Cubic(3), points(2, dim=3)
    assert_close(f.log_det(z), half_logdet(dense(f, z)), rtol=0, atol=1e-12)
    with pytest.raises(NotImplementedError, match="Cubic has no inverse"):
        f.inverse(z)
