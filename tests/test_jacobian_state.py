"""Products leave everything as they found it, and notice when somebody else did not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from specbp.jacobian import Jacobian, products
from specbp.jacobian.products import METHODS
from specbp.models.two_dim import BottleneckResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def net() -> nn.Module:
    return BottleneckResNet(4, 6, 2, generator=seeded()).double()


def square(x: Tensor) -> Tensor:
    return x**2


@pytest.mark.parametrize("method", METHODS)
def test_no_trace_is_left(method):
    f, z = net(), randn(3, 4).requires_grad_()
    before = copy.deepcopy(f.state_dict())
    modes = torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state()
    J = Jacobian(f, z, method=method)
    for _ in range(3):
        for result in (J @ randn(4, 2), J.mT @ randn(4, 2), J.dense(), J.value):
            assert not result.requires_grad
            assert result.grad_fn is None
    assert z.grad is None
    assert all(p.grad is None and p.requires_grad for p in f.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), f.state_dict().values(), strict=True)
    )
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == modes[:2]
    assert torch.equal(torch.random.get_rng_state(), modes[2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu")],
    ids=["no_grad", "inference_mode", "enable_grad", "autocast"],
)
def test_the_mode_of_the_caller_does_not_matter(mode, method):
    f, z = net().float(), randn(3, 4).float()  # float32, as autocast leaves float64 alone
    outside = Jacobian(f, z, method=method)
    dense = outside.dense()
    blocks = [randn(4, m).float() for m in (1, 3)]
    expected = [(dense @ X, dense.mT @ X) for X in blocks]
    with mode():
        inside = Jacobian(f, z, method=method)
        for J in (inside, outside):
            for X, (image, preimage) in zip(blocks, expected, strict=True):
                for _ in range(3):
                    torch.testing.assert_close(J @ X, image)
                    torch.testing.assert_close(J.mT @ X, preimage)
    torch.testing.assert_close(inside.dense(), dense)


def test_z_is_copied():
    z = randn(3, 4)
    J = Jacobian(square, z)
    z.zero_()
    torch.testing.assert_close(J @ randn(4, 1), 2 * randn(3, 4)[..., None] * randn(4, 1))


@pytest.mark.parametrize("method", METHODS)
def test_changed_parameters_are_noticed(method):
    f = net()
    J = Jacobian(f, randn(3, 4), method=method)
    _ = J @ randn(4, 2)
    with torch.no_grad():
        f.blocks[0].linear2.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"'blocks.0.linear2.weight' of f was modified in place"):
        J @ randn(4, 2)


@pytest.mark.parametrize("m", [1, 3])
def test_changed_constants_of_a_plain_function_are_noticed_on_the_tape(m):
    W = randn(4, 4)
    J = Jacobian(lambda x: torch.tanh(x @ W), randn(3, 4), method="tape")
    _ = J @ randn(4, m)
    W.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place after the Jacobian was built"):
        J @ randn(4, m)


@pytest.mark.parametrize("small", [2**40, 0])
def test_changed_constants_are_not_hidden_by_another_strategy(small, monkeypatch):
    """Where one strategy notices, the next would go on with the new values."""
    monkeypatch.setattr(products, "SMALL_BYTES", small)
    W = randn(4, 4)
    J = Jacobian(lambda x: torch.tanh(torch.tanh(x @ W) @ W), randn(3, 4))
    _ = J @ randn(4, 3)
    W.mul_(2)
    with pytest.raises(RuntimeError, match="modified (in place|by an inplace operation)"):
        J @ randn(4, 3 if small else 5)


def test_layers_that_update_themselves_are_noticed():
    """Spectral normalisation iterates at every evaluation in training mode."""
    linear = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.float64)
    linear.weight.data, linear.bias.data = randn(4, 4), randn(4)
    f = nn.utils.parametrizations.spectral_norm(linear)
    J = Jacobian(f, randn(3, 4), check=False)
    _ = J @ randn(4, 2)
    with pytest.raises(RuntimeError, match=r"modified in place .* call \.eval\(\)"):
        J @ randn(4, 2)
    J = Jacobian(f.eval(), randn(3, 4))
    expected = f.weight.detach()
    for _ in range(3):
        torch.testing.assert_close(J @ randn(4, 2), (expected @ randn(4, 2)).expand(3, 4, 2))
