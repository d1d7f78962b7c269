"""Whatever an estimator multiplies by is written down, in every notation that foreign code uses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from specbp import (
    CountingOperator,
    chebyshev_logdet,
    golub_kahan_logdet,
    hutchinson_trace,
    rademacher,
    slq_logdet,
    sphere,
)
from specbp.testing import capture
from specbp.testing.capture import Product, RecordingOperator, first_block, recording_tensor
from specbp.testing.laws import duplicate_checks, law_checks, recognise_law
from specbp.testing.outcome import Level
from tests.support import factor, generator, geometric, normal, signs, spd

N = 6
A = normal(N, N, seed=1)
X = normal(N, 2, seed=2)
x = X[:, 0]

PRODUCTS = {
    "@": (lambda A: A @ X, X, False),
    "@ vector": (lambda A: A @ x, x[:, None], False),
    "method": (lambda A: A.matmul(X), X, False),
    "from the left": (lambda A: X.mT @ A, X, True),
    "from the left, transposed": (lambda A: X.mT @ A.mT, X, False),
    "vector from the left": (lambda A: x @ A, x[:, None], True),
    "of the transpose": (lambda A: A.mT @ X, X, True),
    "T": (lambda A: A.T @ X, X, True),
}
TENSOR_PRODUCTS = PRODUCTS | {
    "matmul": (lambda A: torch.matmul(A, X), X, False),
    "mm": (lambda A: A.mm(X), X, False),
    "mv": (lambda A: torch.mv(A, x), x[:, None], False),
    "bmm": (lambda A: torch.bmm(A[None], X[None]), X[None], False),
    "keywords": (lambda A: torch.mm(input=A, mat2=X), X, False),
    "linear": (lambda A: F.linear(X.mT, A), X, False),
    "weight of linear": (lambda A: F.linear(A, X.mT), X, False),
    "einsum": (lambda A: torch.einsum("ij,jk->ik", A, X), X, False),
    "einsum, rows": (lambda A: torch.einsum("kj,ij", X.mT, A), X, False),
    "einsum, adjoint": (lambda A: torch.einsum("ij,ik->jk", A, X), X, True),
    "einsum, form": (lambda A: torch.einsum("ik,ij,jk->k", X, A, X), X, False),
    "t": (lambda A: A.t() @ X, X, True),
    "transpose": (lambda A: torch.transpose(A, 0, 1) @ X, X, True),
    "shifted and scaled": (lambda A: (2 * A - torch.eye(N).double()) / 3 @ X, X, False),
    "detached copy": (lambda A: A.detach().clone().double() @ X, X, False),
}


def the_one(record: list[Product]) -> Product:
    assert len(record) == 1
    return record[0]


@pytest.mark.parametrize("how", PRODUCTS)
def test_an_operator_logs_the_product_and_returns_it(how):
    function, block, adjoint = PRODUCTS[how]
    recorder = RecordingOperator(A)
    assert torch.equal(function(recorder), function(A))
    assert torch.equal(the_one(recorder.record).block, block)
    assert the_one(recorder.record).adjoint is adjoint


@pytest.mark.parametrize("how", TENSOR_PRODUCTS)
def test_a_tensor_logs_the_product_and_returns_a_plain_one(how):
    function, block, adjoint = TENSOR_PRODUCTS[how]
    recorder = recording_tensor(A)
    result = function(recorder)
    assert torch.equal(result, function(A))
    assert type(result) is torch.Tensor
    assert torch.equal(the_one(recorder.record).block, block)
    assert the_one(recorder.record).adjoint is adjoint


@pytest.mark.parametrize(
    "function",
    [
        lambda A: A @ A,
        lambda A: A.diagonal().sum(),
        lambda A: A * 2,
        lambda A: torch.einsum("ij,ij", A, torch.ones(N, N).double()),
        lambda A: torch.linalg.eigvalsh(A),
        lambda A: A.sum(-1),
    ],
)
def test_what_is_no_product_with_a_block_is_not_logged(function):
    recorder = recording_tensor(A)
    assert torch.equal(function(recorder), function(A))
    assert recorder.record == []


def test_the_record_is_a_copy():
    recorder, block = RecordingOperator(A), X.clone()
    recorder @ block
    block.zero_()
    assert torch.equal(recorder.record[0].block, X)


def test_gradients_flow_through_a_recording_tensor():
    theta = A.clone().requires_grad_(True)
    recorder = recording_tensor(theta * 2)
    (recorder @ X).sum().backward()
    assert torch.equal(theta.grad, 2 * torch.ones(N, 2).double() @ X.mT)
    assert len(recorder.record) == 1


def test_an_operator_without_adjoint_says_so():
    recorder = RecordingOperator(CountingOperator(RecordingOperator(object())))
    with pytest.raises(TypeError, match="has no adjoint `.mT`"):
        recorder.mT  # noqa: B018


@pytest.mark.parametrize("wrap", [RecordingOperator, recording_tensor])
@pytest.mark.parametrize(
    "estimate",
    [
        hutchinson_trace,
        lambda A, X: slq_logdet(A, X, num_steps=3),
        lambda A, X: chebyshev_logdet(A, X, degree=4, interval=(0.05, 1.2)),
    ],
)
def test_the_estimators_of_this_package_are_recorded_without_a_change(wrap, estimate):
    matrix, probes = spd(geometric(8, 10.0)), signs(8, 3, seed=5)
    recorder = wrap(matrix)
    assert torch.allclose(estimate(recorder, probes).value, estimate(matrix, probes).value)
    found = first_block(recorder.record)
    assert torch.allclose(found / found[0].abs(), probes)


def test_a_factor_is_recorded_too():
    recorder = RecordingOperator(factor(geometric(5, 3.0), 9))
    probes = signs(5, 2, seed=6)
    golub_kahan_logdet(recorder, probes, num_steps=2)
    found = first_block(recorder.record)
    assert torch.allclose(found / found[0].abs(), probes)
    assert {product.adjoint for product in recorder.record} == {False, True}


def test_blocks_of_zeros_are_no_probes():
    recorder = RecordingOperator(A.float())
    recorder @ torch.zeros(N, 2)
    with pytest.raises(ValueError, match=r"No product with probes was recorded \(1 in all"):
        first_block(recorder.record)
    recorder @ X.float()
    found = first_block(recorder.record)
    assert found.dtype == torch.float32
    assert torch.equal(found, X.float())


def test_float32_probes_are_judged_by_their_own_rounding():
    """Norms of float32 sphere vectors are right to 1e-7, not to 1e-13."""

    def black_box(A, generator):
        return hutchinson_trace(A, sphere(40, 4, generator=generator, dtype=torch.float32))

    matrix = torch.eye(40, dtype=torch.float32)
    found = capture.captured_probes(black_box, matrix, calls=50, key=("float32",))
    flat = found.mT.reshape(-1, 40)
    assert recognise_law(flat) == "sphere"
    checks = law_checks(flat, "sphere", Level(alpha=1e-3, margin=1.0))
    assert "FAIL" not in {check.verdict for check in checks}
    blocks = capture.captured_probes(black_box, matrix, calls=3, key=("bits",)).bfloat16()
    assert duplicate_checks(blocks)[0].verdict == "PASS"


def test_captured_probes_are_those_of_the_black_box():
    def black_box(A, generator):
        return hutchinson_trace(A, rademacher(N, 3, generator=generator))

    found = capture.captured_probes(black_box, A, calls=4, key=("test",))
    assert found.shape == (4, N, 3)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, capture.captured_probes(black_box, A, calls=4, key=("test",)))
    assert not torch.equal(found, capture.captured_probes(black_box, A, calls=4, key=("other",)))


def test_captured_probes_of_code_that_draws_globally_or_fails_late():
    def black_box(A):
        y = A @ torch.randn(N, 1, dtype=A.dtype)
        raise ArithmeticError(f"after the product {y.shape}")

    found = capture.captured_probes(black_box, A, calls=3, key=("test",))
    assert len(found.unique()) == 3 * N


def test_an_estimator_that_fails_early_or_changes_its_block_is_refused():
    with pytest.raises(ValueError, match="Call 0 of the estimator failed: raised KeyError"):
        capture.captured_probes(lambda A: {}["no"], A, calls=2, key=())
    sizes = iter([1, 2])
    with pytest.raises(ValueError, match="blocks of unequal shapes"):
        capture.captured_probes(lambda A: A @ normal(N, next(sizes)), A, calls=2, key=())
    with pytest.raises(ValueError, match="does not multiply A by its probes"):
        capture.captured_probes(lambda A: A.trace(), A, calls=1, key=())


def test_batches_keep_their_leading_dimensions():
    recorder = recording_tensor(normal(3, N, N, seed=4))
    recorder @ rademacher(N, 2, generator=generator(), batch_shape=(3,))
    assert first_block(recorder.record).shape == (3, N, 2)
    assert (recorder[0] @ X).shape == (N, 2)
    assert len(recorder.record) == 2
