"""A tape repeats what it recorded, keeps what it needs, and refuses what it cannot repeat."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from specbp.jacobian.tape import NotRecordableError, Tape


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W = randn(4, 4, seed=7)


def in_place(x: Tensor) -> Tensor:
    """Writes into what it made itself, directly and through a view."""
    y = x * 2
    y.add_(x @ W)
    y[:, 0].mul_(3)
    return y + y[:, 1:2]


def filled(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape)
    y[:, :2] = x[:, 2:]
    return y


LINEAR = {
    "constants": lambda x: torch.where(W > 0, x @ W, -x),
    "lists": lambda x: torch.cat([x, 0 * W, x @ W], -1) @ torch.cat([W, W, W]),
    "tuples": lambda x: x.split(2, -1)[1] + x.chunk(2, -1)[0],
    "in place": in_place,
    "filled": filled,
    "itself": lambda x: x.view(4, 4),
    "transposed": lambda x: x.mT,
}


@pytest.mark.parametrize("name", LINEAR)
def test_replay_repeats_the_recording(name):
    f = LINEAR[name]
    with torch.no_grad():
        tape, y = Tape.record(f, randn(4, 4))
        assert torch.equal(y, f(randn(4, 4)))
        for seed in range(3):
            x = randn(4, 4, seed=seed)
            assert torch.equal(tape(x), f(x))
            assert torch.equal(tape(x.mT), f(x.mT.contiguous()))
            assert torch.equal(x, randn(4, 4, seed=seed))
            batch = torch.stack([x, x + 1])
            torch.testing.assert_close(torch.func.vmap(tape)(batch), torch.func.vmap(f)(batch))


def test_a_result_without_x_is_fixed():
    tape, y = Tape.record(lambda x: torch.zeros(3) + W[0, :3], randn(4))
    assert torch.equal(tape(randn(4, seed=1)), y)
    tape(randn(4)).zero_()
    assert torch.equal(tape(randn(4)), W[0, :3])


def test_what_the_result_does_not_need_is_dropped():
    def f(x: Tensor) -> Tensor:
        _ = (x @ W).exp()
        return (x.view(4, 4).expand(4, 4) + W.exp().sin() * 0) * 2

    tape, _ = Tape.record(f, randn(4, 4))
    assert [step.op for step in tape.steps] == [torch.add, torch.mul]
    assert len(tape.constants) == 1


def test_the_double_backward_of_a_convolution_loses_its_weight_gradient():
    """It computes one whether or not anybody asks: half the time of a product."""
    weight = randn(3, 2, 3, 3)
    u = randn(1, 3, 5, 5).requires_grad_()
    z = randn(1, 2, 5, 5).requires_grad_()
    y = torch.nn.functional.conv2d(z, weight, padding=1)
    (image,) = torch.autograd.grad(y, z, u, create_graph=True)
    calls = []

    def jvp(x: Tensor) -> Tensor:
        calls.append(torch.autograd.grad(image, u, x, retain_graph=True)[0])
        return calls[-1]

    with torch.no_grad():
        tape, _ = Tape.record(jvp, torch.zeros_like(z))
        x = randn(*z.shape, seed=3)
        assert sum("convolution" in str(step.op) for step in tape.steps) == 1
        torch.testing.assert_close(tape(x), torch.nn.functional.conv2d(x, weight, padding=1))
    assert len(calls) == 1


def test_intermediate_results_are_freed():
    """While recording and while replaying: at most the running sum and its two operands live."""
    live: list[int] = []
    seen: list[weakref.ref] = []

    def f(x: Tensor) -> Tensor:
        for _ in range(20):
            x = x + x.sin()
            seen.append(weakref.ref(x))
            live.append(sum(ref() is not None for ref in seen))
        return x

    with torch.no_grad():
        tape, _ = Tape.record(f, randn(3))
    assert max(live) <= 2
    registers = [None] * tape._registers
    registers[0] = randn(3)
    occupied = []
    for step in tape.steps:
        step.run(registers)
        occupied.append(sum(r is not None for r in registers))
    assert max(occupied) <= 2


def test_a_tape_holds_no_result():
    with torch.no_grad():
        x = randn(3)
        tape, y = Tape.record(lambda x: x.sin().cos(), x)
        refs = weakref.ref(x), weakref.ref(y)
        del x, y
        gc.collect()
        assert [ref() for ref in refs] == [None, None]
        assert tape(randn(3)).shape == (3,)


@pytest.mark.parametrize(
    ("f", "operation"),
    [
        (lambda x: x * float(x[0, 0]), "aten._local_scalar_dense"),
        (lambda x: x if x.sum() > 0 else -x, "aten._local_scalar_dense|aten.is_nonzero"),
        (lambda x: x.mul_(2), "aten.mul_"),
        (lambda x: W.clone().copy_(x), "aten.copy_"),
        (lambda x: torch.add(x, x, out=torch.empty(0, dtype=x.dtype)), "aten.add.out"),
    ],
)
def test_what_cannot_be_repeated_is_refused(f, operation):
    with (
        torch.no_grad(),
        pytest.raises(NotRecordableError, match=f"({operation}).* cannot be recorded"),
    ):
        Tape.record(f, randn(4, 4))


def test_memory_shared_behind_the_recorder_is_refused():
    """A tensor that aliases a dependent one without having been derived from it."""

    def f(x: Tensor) -> Tensor:
        y = x.sin()
        return y * torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), 0, (4,))

    with torch.no_grad(), pytest.raises(NotRecordableError, match=r"aten.mul"):
        Tape.record(f, randn(4))


def test_overwritten_constants_are_noticed():
    scratch = randn(4)

    def f(x: Tensor) -> Tensor:
        y = x * scratch
        scratch.add_(1)
        return y

    with torch.no_grad(), pytest.raises(NotRecordableError, match="overwritten"):
        Tape.record(f, randn(4))
    with torch.no_grad():
        tape, _ = Tape.record(lambda x: x * scratch, randn(4))
    assert not tape.is_stale()
    scratch.zero_()
    assert tape.is_stale()
