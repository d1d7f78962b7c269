"""Products with J and its adjoint against `torch.func.jacrev`, for every strategy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from specbp.jacobian import Jacobian, JacobianMetric, products
from specbp.jacobian.products import METHODS
from specbp.models.dcgan import DCGANGenerator
from specbp.models.two_dim import BottleneckResNet
from specbp.models.wide_resnet import ConvWideResNet

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A block (..., n, m) in the library's layout: the transpose of contiguous rows."""
    return randn(*shape[:-2], shape[-1], shape[-2], seed=seed, dtype=dtype).mT


class Normalised(nn.Module):
    """Layers whose derivatives take other paths: norms, attention, pooling, in place, chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.batch_norm = nn.LayerNorm(6), nn.BatchNorm1d(2)
        for i, p in enumerate(self.parameters()):
            nn.init.normal_(p, generator=seeded(i))
        nn.init.uniform_(self.batch_norm.running_var, 1, 2, generator=seeded())
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.batch_norm(self.norm(x).unflatten(-1, (2, 3)))
        q, k, v = h.chunk(3, -1)
        h = torch.softmax(q @ k.mT, -1) @ v + h
        h = torch.cat([self.act(h * 2), h.cumsum(-1)], -1)
        return nn.functional.max_pool1d(h, 2).flatten(1)


def coupling(x: Tensor) -> Tensor:
    """Written into, and indexed: half of the items move, depending on the other half."""
    y = torch.empty_like(x)
    y[:, ::2] = x[:, ::2]
    y[:, [1, 3]] = x[:, [3, 1]] * torch.exp(torch.tanh(x[:, [0, 2]]))
    y[:, 0] += y[:, 1].clone() ** 2
    return y


def attention(x: Tensor) -> Tensor:
    """Fused, it has a derivative, but that has none."""
    h = x.unflatten(-1, (1, 3, 4))
    return nn.functional.scaled_dot_product_attention(h, h.sin(), h).flatten(1)


# name: (f, event)
NETS = {
    "bottleneck": (lambda: BottleneckResNet(5, 8, 2, generator=seeded()), (5,)),
    "images": (lambda: ConvWideResNet(1, 3, 2, generator=seeded()), (1, 4, 3)),
    "generator": (lambda: DCGANGenerator(3, 1, 1, 32, generator=seeded()), (3,)),
    "normalised": (lambda: Normalised().eval(), (6,)),
    "coupling": (lambda: coupling, (4,)),
    "attention": (lambda: attention, (12,)),
    "overwrites": (lambda: nn.Sequential(nn.LeakyReLU(0.1, True), nn.Softmax(-1)), (4,)),
    "scalar": (lambda: lambda x: x.sin().prod(-1), (3,)),
    "wide": (lambda: lambda x: torch.stack([x[:, 0] * x[:, 1], x.square().sum(-1)], -1), (7,)),
    "constant": (lambda: lambda x: x.new_ones(len(x), 3), (2,)),
    "partly": (lambda: lambda x: torch.stack([x[:, 0].exp(), x[:, 0] * 0 + 1], -1), (2,)),
}


def network(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu"):
    make, event = NETS[name]
    f = make()
    return (f.to(device, dtype) if isinstance(f, nn.Module) else f), event


def reference(f, z: Tensor, event_dim: int) -> Tensor:
    """J (*batch, N, n) by reverse mode, one item at a time."""
    batch, event = z.shape[: z.ndim - event_dim], z.shape[z.ndim - event_dim :]
    items = z.reshape(-1, *event)
    with sdpa_kernel(SDPBackend.MATH):
        J = [torch.func.jacrev(lambda x: f(x[None].clone())[0])(item).detach() for item in items]
    return torch.stack(J).reshape(*batch, -1, math.prod(event))


def assert_rounding(
    actual: Tensor, expected: Tensor, scale: Tensor | None = None, roundings: float = 2.0**10
) -> None:
    """Equal but for so many roundings of the largest element (of the terms summed, if given)."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    size = float((expected if scale is None else scale).abs().max())
    limit = roundings * torch.finfo(expected.dtype).eps * size
    assert float((actual - expected).abs().max()) <= limit


def assert_products(J: Jacobian, expected: Tensor, X: Tensor, U: Tensor) -> None:
    """J @ X and J.mT @ U are those of the explicit matrix; the terms |J||X| set the scale."""
    assert_rounding(J @ X, expected @ X, expected.abs() @ X.abs())
    assert_rounding(J.mT @ U, expected.mT @ U, expected.mT.abs() @ U.abs())


@pytest.fixture(params=["small", "large"])
def regime(request, monkeypatch):
    """Force the two ways to multiply wide blocks, whatever the size of the test's map."""
    monkeypatch.setattr(products, "SMALL_BYTES", 2**40 if request.param == "small" else 0)


@pytest.mark.usefixtures("regime")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_products_agree_with_reverse_mode(name, method):
    """First use, recording and replay, each with another block; one column and several."""
    f, event = network(name)
    z = randn(2, *event)
    J = Jacobian(f, z, event_dim=len(event), method=method)
    expected = reference(f, z, len(event))
    assert J.shape == expected.shape
    for m in (1, 3):
        for seed in range(4):
            X, U = rows(2, J.shape[-1], m, seed=seed), rows(2, J.shape[-2], m, seed=seed + 9)
            assert_products(J, expected, X, U)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1,), (2, 1), (1, 2)])
@pytest.mark.parametrize("name", ["bottleneck", "images"])
def test_leading_dimensions_broadcast_as_in_matmul(name, batch, method):
    f, event = network(name)
    z = randn(*batch, *event)
    J = Jacobian(f, z, event_dim=len(event), method=method)
    expected = reference(f, z, len(event))
    stretched = tuple(5 if size == 1 else size for size in batch)
    for lead in [(), batch, stretched, (4, *batch), (2, 1, *batch), (1,) * len(batch)]:
        X, U = rows(*lead, J.shape[-1], 2), rows(*lead, J.shape[-2], 2, seed=1)
        assert_products(J, expected, X, U)


@given(
    method=st.sampled_from(list(METHODS)),
    name=st.sampled_from(["bottleneck", "normalised", "coupling", "wide"]),
    batch=st.lists(st.integers(1, 3), max_size=2),
    m=st.integers(1, 4),
    seed=st.integers(0, 2**20),
)
def test_adjoint_identity_and_linearity(method, name, batch, m, seed):
    """<u, J x> = <Jᵀu, x>, and J(ax + y) = a Jx + Jy, column by column."""
    f, event = network(name)
    J = Jacobian(f, randn(*batch, *event, seed=seed), method=method, check=False)
    X = rows(*batch, J.shape[-1], m, seed=seed + 1)
    Y = rows(*batch, J.shape[-1], m, seed=seed + 2)
    U = rows(*batch, J.shape[-2], m, seed=seed + 3)
    JX, JY = J @ X, J @ Y
    scale = (U.abs() * JX.abs()).sum(-2) + ((J.mT @ U).abs() * X.abs()).sum(-2)
    gap = ((U * JX).sum(-2) - ((J.mT @ U) * X).sum(-2)).abs()
    eps = torch.finfo(X.dtype).eps
    assert bool((gap <= 2**8 * eps * scale.amax()).all())
    sizes = (3 * JX).abs().max() + JY.abs().max()
    assert float((J @ (3 * X + Y) - 3 * JX - JY).abs().max()) <= 2**8 * eps * float(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["bottleneck", "generator", "normalised"])
def test_strategies_agree_to_rounding(name, device, dtype):
    f, event = network(name, dtype, device)
    z = randn(2, *event, dtype=dtype).to(device)
    forward = Jacobian(f, z, method="forward")
    expected = forward.dense().abs()
    X = rows(2, expected.shape[-1], 5, dtype=dtype).to(device)
    U = rows(2, expected.shape[-2], 5, dtype=dtype).to(device)
    tf32 = 2.0**13 if device == "cuda" and dtype == torch.float32 else 1
    for method in METHODS:
        J = Jacobian(f, z, method=method)
        assert (J.device.type, J.dtype) == (device, dtype)
        for _ in range(3):
            assert_rounding(J @ X, forward @ X, expected @ X.abs(), 2**10 * tf32)
            assert_rounding(J.mT @ U, forward.mT @ U, expected.mT @ U.abs(), 2**10 * tf32)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_change_nothing(method):
    f, event = network("images")
    z = randn(2, *event)
    whole = Jacobian(f, z, event_dim=3).dense()
    X, U = rows(3, 2, 12, 5), rows(3, 2, 12, 5, seed=1)
    for chunk_size in (1, 2, 4, 7, 100):
        J = Jacobian(f, z, event_dim=3, method=method, chunk_size=chunk_size)
        assert_products(J, whole, X, U)


@pytest.mark.parametrize("max_bytes", [None, 1, 10**5])
@pytest.mark.parametrize("batch", [(), (2, 2)])
@pytest.mark.parametrize("name", ["bottleneck", "images", "generator", "wide", "constant"])
def test_dense(name, batch, max_bytes):
    f, event = network(name)
    z = randn(*batch, *event)
    J = Jacobian(f, z, event_dim=len(event)).dense(max_bytes=max_bytes)
    assert_rounding(J, reference(f, z, len(event)))


@pytest.mark.parametrize("J", [randn(3, 6, 4), Jacobian(lambda x: x**2, randn(3, 4))])
def test_metric_is_the_gram_matrix(J):
    A = JacobianMetric(J)
    columns = J @ torch.eye(4, dtype=torch.float64)
    gram = A @ torch.eye(4, dtype=torch.float64)
    assert A.shape == (3, 4, 4)
    assert (A.dtype, A.device) == (J.dtype, J.device)
    assert_rounding(gram, columns.mT @ columns)
    assert_rounding(gram, gram.mT)
    assert_rounding(A @ rows(2, 3, 4, 2), gram @ rows(2, 3, 4, 2))


def test_metric_requires_an_adjoint():
    with pytest.raises(TypeError, match="lacks shape, dtype, device, mT"):
        JacobianMetric([[1.0]])


def test_adjoint_is_a_view():
    J = Jacobian(lambda x: x.repeat(1, 2), randn(3, 4))
    assert J.mT.shape == (3, 4, 8)
    assert (J.mT.dtype, J.mT.device) == (J.dtype, J.device)
    assert J.mT.mT is J
    assert_rounding(J.value, randn(3, 4).repeat(1, 2))
    assert repr(J) in repr(J.mT)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", [lambda x: x, lambda x: x.view(-1, 2, 2), lambda x: x[:, 1:]])
def test_results_never_share_memory_with_the_block(f, method):
    J = Jacobian(f, randn(4), method=method)
    expected = reference(f, randn(4), 1)
    for m in (1, 3):
        X, U = rows(4, m).requires_grad_(), rows(J.shape[-2], m).requires_grad_()
        for _ in range(3):
            for result, block in ((J @ X, X), (J.mT @ U, U)):
                assert not result.requires_grad
                assert result.untyped_storage().data_ptr() != block.untyped_storage().data_ptr()
            assert_products(J, expected, X.detach(), U.detach())


@pytest.mark.parametrize("method", METHODS)
def test_a_block_may_be_a_constant_of_f(method):
    W = randn(4, 4)
    J = Jacobian(lambda x: x @ W, randn(4), method=method)
    for X in (W.mT, W[:1].mT, W):
        for _ in range(3):
            assert_products(J, W.mT, X, X)
