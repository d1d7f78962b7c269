"""The parameters of f: what gradients are taken with respect to, and copies that f sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


def copied(params: Any) -> Any:
    """The tree with a leaf of its own for every tensor that requires a gradient.

    A tensor that stands in the tree twice, or one that is the result of another, then has the
    gradient of its own place, and autograd adds them up.

    Raises:
        TypeError: If a module stands where its tensors should.
    """
    for leaf in pytree.tree_leaves(params):
        if isinstance(leaf, nn.Module):
            msg = (
                f"params are tensors, in lists and dictionaries; got a {type(leaf).__name__}: pass "
                "dict(module.named_parameters()), for torch.func.functional_call inside f."
            )
            raise TypeError(msg)
    return pytree.tree_map(_copy, params)


def sources(
    leaves: Sequence[Tensor], params: Any, copies: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that gradients are for, and those that f sees: the copies, and what else it uses."""
    pairs = [
        (source, copy)
        for source, copy in zip(pytree.tree_leaves(params), pytree.tree_leaves(copies), strict=True)
        if isinstance(source, Tensor) and source.requires_grad
    ]
    known = {id(copy) for _, copy in pairs}
    pairs += [(leaf, leaf) for leaf in leaves if id(leaf) not in known]
    return [source for source, _ in pairs], [copy for _, copy in pairs]


def _copy(t: Any) -> Any:
    return t.detach().requires_grad_() if isinstance(t, Tensor) and t.requires_grad else t
