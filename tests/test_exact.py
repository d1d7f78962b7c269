from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import specbp.exact
from specbp.exact import dense_jacobian, truth_of_jacobian

EPS = np.finfo(np.float64).eps
SOURCES = sorted(Path(specbp.exact.__file__).parent.glob("*.py"))


def _imports(tree: ast.AST) -> list[tuple[str, bool]]:
    """Names of imported modules and whether the import stands at module level."""
    found = []
    for node in ast.walk(tree):
        top = isinstance(tree, ast.Module) and node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.append((str(node.module), top))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_oracle_imports_nothing_it_judges(path: Path) -> None:
    for name, top in _imports(ast.parse(path.read_text())):
        root = name.split(".")[0]
        assert root != "specbp" or name.startswith("specbp.exact"), name
        assert root != "torch" or (path.name == "jacobians.py" and not top), name


def test_import_check_sees_a_forbidden_import() -> None:
    assert ("specbp.logdet", False) in _imports(ast.parse("def f():\n    import specbp.logdet"))
    assert ("torch", True) in _imports(ast.parse("import torch"))


class Generator(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Parameter(torch.randn(7, 3, generator=generator))
        self.second = torch.nn.Parameter(torch.randn(10, 7, generator=generator))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (self.second @ torch.tanh(self.first @ z.flatten())).reshape(2, 5)

    def exact(self, z: torch.Tensor) -> np.ndarray:
        first, second = (p.detach().double().numpy() for p in (self.first, self.second))
        slope = 1 - np.tanh(first @ z.double().numpy().ravel()) ** 2
        return second @ (slope[:, None] * first)


@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_dense_jacobian_is_float64_and_leaves_the_module_alone(chunk_size: int | None) -> None:
    f, z = Generator(0), torch.tensor([[0.3], [-1.0], [0.5]])
    with torch.no_grad():
        J = dense_jacobian(f, z, chunk_size=chunk_size)
    assert J.shape == (10, 3)
    assert J.dtype == np.float64
    expected = f.exact(z)
    # Two sums of at most 7 products each and a tanh: (7 + 3 + 4) roundings of |second| |first|.
    scale = np.abs(f.second.detach().numpy()) @ np.abs(f.first.detach().numpy())
    assert (np.abs(J - expected) <= 14 * EPS * scale).all()
    assert all(p.dtype == torch.float32 and p.grad is None for p in f.parameters())


def test_dense_jacobian_of_plain_function_feeds_the_truth() -> None:
    W = torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    J = dense_jacobian(lambda z: W @ z, torch.zeros(2))
    assert np.array_equal(J, W.numpy())
    truth = truth_of_jacobian(J)
    assert abs(truth.value - np.log(9.0)) <= truth.u_truth


def test_dense_jacobian_refuses_low_precision() -> None:
    with pytest.raises(TypeError, match="float64"):
        dense_jacobian(lambda z: z.float() ** 2, torch.ones(2))
    with pytest.raises(TypeError, match="tuple"):
        dense_jacobian(lambda z: (z, z), torch.ones(2))
