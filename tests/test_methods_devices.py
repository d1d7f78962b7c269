"""No row leaves anything on another device than that of its operator."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.rows import SMALL, called, each_row, knowledge
from tests.support import f32, f64


class OtherDevice(TorchDispatchMode):
    """Answers the questions a tensor without data cannot: every check passes, every float is 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0
        return func(*args, **(kwargs or {}))


@each_row
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("ends", ["floats", "tensors"])
def test_nothing_is_left_on_another_device(row, dtype, ends):
    """Meta tensors refuse to meet CPU tensors, as those of any other device do."""
    A = torch.empty(3, 6, 6, dtype=dtype, device="meta")
    X = torch.empty(2, 1, 6, 4, dtype=dtype, device="meta")
    low, high = 0.5, 2.0
    if ends == "tensors":
        low = high = torch.empty(3, dtype=f64, device="meta")
    config = {name: SMALL.get(name, value) for name, value in row.config.items()}
    with OtherDevice():
        with pytest.raises(RuntimeError, match="device"):  # the premise of this test
            A + torch.ones(6, 6, dtype=dtype)
        try:
            est = called(row, A, X, {**config, **knowledge(row, low, high)})
        except NotImplementedError:
            pytest.skip("its shapes depend on numbers, and meta tensors have none")
    for name in ("value", "standard_error", "lower", "upper", "status", "samples"):
        assert getattr(est, name).device.type == "meta"
    assert est.value.shape == ((2, 3) if row.uses_probes else (3,))
