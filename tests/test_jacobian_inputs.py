"""What `Jacobian` refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from specbp.jacobian import Jacobian
from specbp.models.two_dim import BottleneckResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def net() -> nn.Module:
    return BottleneckResNet(4, 6, 2, generator=seeded()).double()


def square(x: Tensor) -> Tensor:
    return x**2


# What f returns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "error", "match"),
    [
        (lambda x: (x, x), TypeError, r"must return one torch.Tensor \(b, \*out\), got tuple"),
        (lambda x: 1.0, TypeError, "got float"),
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: x.float(), TypeError, "z is torch.float64, f\\(z\\) is torch.float32"),
        (lambda x: x.long(), TypeError, "z is torch.float64, f\\(z\\) is torch.int64"),
        (lambda x: x.to("meta"), ValueError, "z is on cpu, f\\(z\\) is on meta"),
        (lambda x: x.sum(), ValueError, r"shape \(3, 4\) it returned \(\), not \(3, ...\)"),
        (lambda x: x.T, ValueError, r"shape \(3, 4\) it returned \(4, 3\), not \(3, ...\)"),
        (lambda x: x[:, :0], ValueError, r"it returned \(3, 0\)"),
        (
            lambda x: torch.zeros(3, 2).double(),
            ValueError,
            r"for b = 3 .*\(3, 2\), for b = 6 .*\(3, 2\)",
        ),
        (lambda x: x.log(), ValueError, r"NaN or inf at 2 of 3 points \(first: item 0"),
        (lambda x: x / 0, ValueError, "NaN or inf at 3 of 3 points"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_wrong_outputs(f, error, match):
    z = torch.tensor([[1, -1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], dtype=torch.float64)
    with pytest.raises(error, match=match):
        Jacobian(f, z)


def test_an_output_without_batch_dimension_is_found_for_one_point():
    with pytest.raises(ValueError, match=r"for b = 1 it returned \(1, 4\), for b = 2 \(1, 8\)"):
        Jacobian(lambda x: x.reshape(1, -1), randn(4))


# Items that see each other ------------------------------------------------------------------------


def batch_normalised(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, **options)).double()


@pytest.mark.parametrize("z", [randn(3, 4), randn(4)])
@pytest.mark.parametrize("check", [True, False])
def test_batch_norm_in_training_mode(z, check):
    f = batch_normalised()
    with pytest.raises(TypeError, match=r"layer '1' \(BatchNorm1d\).*call \.eval\(\)"):
        Jacobian(f, z, check=check)
    with pytest.raises(TypeError, match=r"layer '1' \(BatchNorm1d\).*call \.eval\(\)"):
        Jacobian(f.forward, z, check=check)
    assert Jacobian(f.eval(), z, check=check).shape[-2:] == (4, 4)


def test_batch_norm_without_running_statistics():
    with pytest.raises(TypeError, match="no running statistics"):
        Jacobian(batch_normalised(track_running_stats=False).eval(), randn(3, 4))


@pytest.mark.parametrize("b", [1, 2, 5])
@pytest.mark.parametrize(
    "couple",
    [
        lambda x: x - x.mean(0),
        lambda x: x.cumsum(0),
        lambda x: x + x.roll(1, 0).sin(),
        lambda x: x + x.flip(0).sin(),
        lambda x: x / x.norm(),
        lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt(),
    ],
)
def test_coupled_items(couple, b):
    with pytest.raises(ValueError, match=r"couples the items .*rounding explains"):
        Jacobian(couple, randn(b, 4))
    assert Jacobian(couple, randn(b, 4), check=False).shape == (b, 4, 4)


def test_hidden_batch_norm_is_found_by_its_effect():
    f = batch_normalised()
    with pytest.raises(ValueError, match="couples the items"):
        Jacobian(lambda x: f(x), randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("b", [1, 3, 64])
def test_independent_items_pass(b, scale, dtype):
    """Rounding depends on the size of the batch: the check must not take that for a coupling."""
    f = net().to(dtype)
    z = (scale * randn(b, 4)).to(dtype)
    assert Jacobian(f, z).shape == (b, 4, 4)
    assert Jacobian(lambda x: scale * f(x), z).shape == (b, 4, 4)


@pytest.mark.parametrize("b", [1, 3])
def test_random_functions(b):
    dropout = nn.Sequential(nn.Linear(4, 40), nn.Dropout(0.5)).double()
    with pytest.raises(
        ValueError, match=r"f is random: .*changed by .*Call \.eval\(\) \(dropout\)"
    ):
        Jacobian(dropout, randn(b, 4))
    assert Jacobian(dropout.eval(), randn(b, 4)).shape == (b, 40, 4)
    noise = seeded()
    with pytest.raises(ValueError, match="f is random"):
        Jacobian(lambda x: x + torch.randn(x.shape, generator=noise, dtype=x.dtype), randn(b, 4))


@pytest.mark.parametrize(
    "hide", [torch.no_grad()(square), lambda x: square(x.detach()), lambda x: square(x.data)]
)
def test_hidden_derivatives(hide):
    with pytest.raises(ValueError, match=r"hidden from autograd: remove torch\.no_grad"):
        Jacobian(hide, randn(3, 4))
    f = net()
    with pytest.raises(ValueError, match="hidden from autograd"):
        Jacobian(lambda x: f(x.detach()), randn(3, 4))


# z, X and the options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "options", "error", "match"),
    [
        ([1.0], {}, TypeError, "z must be a torch.Tensor .* got list"),
        (torch.ones(3, dtype=torch.int64), {}, TypeError, "float32 or float64, got torch.int64"),
        (torch.ones(3, dtype=torch.complex64), {}, TypeError, "got torch.complex64"),
        (torch.ones(3, dtype=torch.float16), {}, TypeError, "got torch.float16"),
        (torch.tensor(1.0), {}, ValueError, r"shape \(\) and event_dim=1"),
        (torch.ones(3), {"event_dim": 2}, ValueError, r"shape \(3,\) and event_dim=2"),
        (torch.ones(3), {"event_dim": 0}, ValueError, r"shape \(3,\) and event_dim=0"),
        (torch.ones(0, 3), {}, ValueError, r"none of them empty; got shape \(0, 3\)"),
        (torch.tensor([1.0, torch.nan]), {}, ValueError, "z contains NaN or inf"),
        (torch.ones(3), {"method": "fast"}, ValueError, "one of 'auto', .*'tape'; got 'fast'"),
        (torch.ones(3), {"chunk_size": 0}, ValueError, "chunk_size must be .* got 0"),
    ],
)
def test_wrong_arguments(z, options, error, match):
    with pytest.raises(error, match=match):
        Jacobian(square, z, **options)


def test_f_must_be_callable():
    with pytest.raises(TypeError, match="f must be callable.* got Tensor"):
        Jacobian(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        ([[1.0]], TypeError, r"X must be a torch.Tensor \(..., 4, m\), got list"),
        (randn(4, 1).float(), TypeError, "X is torch.float32, the Jacobian is torch.float64"),
        (randn(4, 1).to("meta"), ValueError, "X is on meta, the Jacobian on cpu"),
        (randn(4), ValueError, r"X must have shape \(..., 4, m\) .*\(2, 8, 4\), got \(4,\)"),
        (randn(8, 1), ValueError, r"X must have shape \(..., 4, m\) .*\(2, 8, 4\), got \(8, 1\)"),
        (randn(3, 4, 1), ValueError, r"X of shape \(3, 4, 1\) .*shape \(2, 8, 4\)"),
    ],
)
def test_wrong_blocks(X, error, match):
    J = Jacobian(lambda x: torch.cat([x, x**2], -1), randn(2, 4))
    with pytest.raises(error, match=f"J @ X: {match}"):
        J @ X


def test_wrong_blocks_of_the_adjoint():
    J = Jacobian(lambda x: torch.cat([x, x**2], -1), randn(2, 4))
    with pytest.raises(ValueError, match=r"J.mT @ U: U must have .*\(2, 4, 8\), got \(4, 1\)"):
        J.mT @ randn(4, 1)


# What f need not offer ----------------------------------------------------------------------------


class OnlyBackward(torch.autograd.Function):
    """x³, with a derivative in the old style: no vmap, no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class OnlyOnce(OnlyBackward):
    """The same, whose derivative has no derivative."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class ForwardToo(torch.autograd.Function):
    """The same once more, with a forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t


def reads_a_number(x: Tensor) -> Tensor:
    """Fine, as the number does not depend on the columns."""
    return x**3 if float(x.detach().abs().sum()) > 0 else x


@pytest.mark.parametrize("f", [OnlyBackward.apply, ForwardToo.apply, reads_a_number])
@pytest.mark.parametrize("identity", [0, 1])
def test_functions_with_some_derivatives_only(f, identity):
    """Cut anywhere, the double backward would lose a part of J without a word."""
    J = Jacobian(lambda x: f(x) + identity * x, randn(3, 4))
    expected = torch.diag_embed(3 * randn(3, 4) ** 2 + identity)
    for m in (1, 3, 40):
        for seed in range(3):
            X = randn(3, 4, m, seed=seed)
            torch.testing.assert_close(J @ X, expected @ X)
            torch.testing.assert_close(J.mT @ X, expected @ X)


@pytest.mark.parametrize("identity", [0, 1])
def test_a_product_that_no_strategy_can_compute_says_why(identity):
    J = Jacobian(lambda x: OnlyOnce.apply(x) + identity * x, randn(4))
    expected = torch.diag(3 * randn(4) ** 2 + identity)
    torch.testing.assert_close(J.mT @ randn(4, 2), expected @ randn(4, 2))
    for _ in range(2):
        with pytest.raises(
            RuntimeError,
            match=r"(?s)No strategy can .* JVP of f.*not differentiable.*setup_context",
        ):
            J @ randn(4, 2)
    for method in ("graph", "tape"):
        with pytest.raises(RuntimeError, match="not differentiable in turn"):
            Jacobian(lambda x: OnlyOnce.apply(x) + x, randn(4), method=method) @ randn(4, 2)


def test_steps_have_a_zero_jacobian():
    J = Jacobian(lambda x: x.round(), randn(3, 4))
    for _ in range(3):
        assert not (J @ randn(4, 2)).any()
        assert not (J.mT @ randn(4, 2)).any()


def test_singular_derivatives_come_through():
    """They are the caller's to see: an estimator reports them with its status."""
    J = Jacobian(lambda x: x.sqrt(), torch.tensor([0.0, 4.0]))
    for _ in range(3):
        product = J @ torch.eye(2)
        assert product[0, 0].isinf()
        assert product[1, 1] == 0.25
