r"""The statistical kit: is a stochastic estimator of a trace or a log-determinant right?

For estimators of this package and of others. One line in any test asks one question, and takes the
strongest route to the answer that is open: all outcomes of the probes where they are few, designs
of probes with exact moments, and sampling with a stated false-alarm rate and power elsewhere.

A stranger's estimator, as a function of the matrix and of the probes that the kit supplies:

>>> import torch
>>> from specbp.testing import assert_calibrated, assert_unbiased, assert_variance
>>> def my_trace(A, probes):
...     samples = (probes * (A @ probes)).sum(0)
...     return samples.mean(), samples.std() / len(samples) ** 0.5
>>> A = torch.tensor([[3.0, 1, 0, 0], [1, 3, 1, 0], [0, 1, 3, 1], [0, 0, 1, 3]]).double()
>>> check = assert_unbiased(my_trace, A, 12.0, num_probes=2)
>>> check.verdict, check.message  # all 64 outcomes of two sign vectors: nothing is left to chance
('PASS', 'exact over 64 evaluations: error 0, limit 2.53e-13')
>>> assert_variance(my_trace, A, form=A, num_probes=2).statistic  # 2 ‖A − diag A‖² / 2
6.0
>>> round(assert_calibrated(my_trace, A, num_probes=2).statistic, 12)  # E[se²] / Var
1.0

A mistake is an AssertionError that says what was found, and what it looks like:

>>> def forgot_to_divide(A, probes):
...     return (probes * (A @ probes)).sum()
>>> assert_unbiased(forgot_to_divide, A, 12.0, num_probes=2)
Traceback (most recent call last):
    ...
AssertionError: FAIL D2 mean: the expectation of the estimate is the expected value
  found     exact over 64 evaluations: error 12, limit 5.06e-13
  measured  24
  reference 12
  gap       +12 (+1 of it)
  sample    64 evaluations
  likely    the sum over 2 probes is not divided by their number
  to do     ...

A black box that draws its own probes is judged by its outputs, and its probes are caught by a
matrix that records what it is multiplied by:

>>> from specbp.testing import assert_reproducible, captured_probes, recognise_law
>>> A = torch.eye(40).double() + 0.1
>>> def black_box(A):
...     return my_trace(A, torch.randint(0, 2, (40, 4)).double() * 2 - 1)
>>> assert_unbiased(black_box, A, 44.0, law=None).verdict
'PASS'
>>> recognise_law(captured_probes(black_box, A, calls=50, key=("doc",)).mT.reshape(-1, 40))
'rademacher'
>>> assert_reproducible(black_box, A).verdict
'PASS'
"""

from __future__ import annotations

from specbp.testing.assertions import (
    assert_calibrated,
    assert_gradient,
    assert_reproducible,
    assert_unbiased,
    assert_variance,
)
from specbp.testing.blackbox import Outcome, call, isolated_rng
from specbp.testing.capture import (
    RecordingOperator,
    RecordingTensor,
    captured_probes,
    first_block,
    recording_tensor,
)
from specbp.testing.designs import (
    Design,
    all_signs,
    haar_basis,
    hadamard_basis,
    identity_basis,
    orthogonal_array,
    sign_multisets,
    sign_tuples,
    sphere_design,
)
from specbp.testing.laws import law_checks, recognise_law
from specbp.testing.outcome import Check, Level
from specbp.testing.repeats import duplicate_checks, reproducibility_checks

__all__ = [
    "Check",
    "Design",
    "Level",
    "Outcome",
    "RecordingOperator",
    "RecordingTensor",
    "all_signs",
    "assert_calibrated",
    "assert_gradient",
    "assert_reproducible",
    "assert_unbiased",
    "assert_variance",
    "call",
    "captured_probes",
    "duplicate_checks",
    "first_block",
    "haar_basis",
    "hadamard_basis",
    "identity_basis",
    "isolated_rng",
    "law_checks",
    "orthogonal_array",
    "recognise_law",
    "recording_tensor",
    "reproducibility_checks",
    "sign_multisets",
    "sign_tuples",
    "sphere_design",
]
