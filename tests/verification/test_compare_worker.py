"""The process that runs one side: what it finds, what it is given, what it gives back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbp import chebyshev_logdet, qr_logdet, slq_logdet
from specbp.methods import METHODS
from verification import compare_worker as worker
from verification.compare import write_inputs
from verification.compare_cells import make_cells

CELL = make_cells(20, spectra=("spike",), sizes=(8,), dtypes=("float32",))[0]


def request(**changed):
    found = {"label": "side", "root": None, "target": None, "config": {}, "on": "A"}
    return found | {"estimand": "logdet", "repeats": 1} | changed


def test_the_table_of_methods_is_the_default():
    assert list(worker.methods(request())) == list(METHODS.values())


def test_a_row_and_a_function_are_found_by_path():
    row = next(
        worker.methods(request(target="specbp.methods:METHODS[slq]", config={"num_steps": 3}))
    )
    assert (row.estimate, row.on, row.config) == (slq_logdet, "A", {"num_steps": 3})
    row = next(worker.methods(request(target="specbp.logdets:chebyshev_logdet", on="J")))
    assert (row.estimate, row.on, row.needs) == (chebyshev_logdet, "J", ["interval"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("specbp.methods:METHODS[nothing]", "has no METHODS"),
        ("specbp.nowhere:f", "No estimator specbp.nowhere:f"),
        ("specbp.estimate:FAILURES", "neither a function"),
    ],
)
def test_what_does_not_exist_is_told(target, message):
    with pytest.raises(worker.UsageError, match=message):
        next(worker.methods(request(target=target)))


def test_the_package_of_another_tree_is_refused(tmp_path):
    with pytest.raises(worker.UsageError, match="not the one of"):
        next(worker.methods(request(root=str(tmp_path))))


def test_methods_without_probes_are_told_from_the_others():
    assert worker.takes_probes(slq_logdet)
    assert not worker.takes_probes(qr_logdet)


@pytest.mark.parametrize("name", ["qr", "golub_kahan", "chebyshev", "hutchinson", "cholesky"])
def test_values_are_those_of_a_direct_call(name, tmp_path):
    path = tmp_path / "inputs.npz"
    write_inputs(path, [CELL])
    a, b = CELL.ends()
    about = {"id": CELL.id, "dtype": CELL.dtype, "lower": a, "upper": b}
    row = METHODS[name]
    with np.load(path) as inputs:
        found = worker.evaluate(row, about, inputs, 0, 1)
    known = {"interval": (a, b), "lower": a, "upper": b}
    config = {k: min(v, 8) if k == "num_steps" else v for k, v in row.config.items()}
    X = (torch.from_numpy(CELL.probes).float(),) if row.uses_probes else ()
    direct = row.estimate(
        CELL.views[row.on].operator, *X, **config, **{key: known[key] for key in row.needs}
    )
    assert np.allclose(found["value"], direct.value.numpy(), rtol=1e-6)
    assert found["value"].shape == ((20,) if row.uses_probes else (1,))
    assert float(found["matvecs"]) == direct.num_matvecs
    assert found["ok"].all()


def test_results_are_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(path, **_):
        path.write_bytes(b"PK")
        raise OSError("no space")

    target = tmp_path / "results.npz"
    with monkeypatch.context() as patch:
        patch.setattr(worker.np, "savez", half)
        with pytest.raises(OSError, match="no space"):
            worker.save(target, {})
    assert not target.exists()
    worker.save(target, {"x": np.ones(2)})
    with np.load(target) as found:
        assert found.files == ["x"]


def test_rows_of_the_table_must_broadcast(tmp_path):
    def estimate(A, X):
        n, m = X.shape
        return float(n * m)

    X = torch.ones(3, 2, 1)
    own = worker.SimpleNamespace(estimate=estimate)
    with pytest.raises(ValueError, match="too many values"):
        worker.called(own, lambda x: estimate(None, x), X, 1)
    own.foreign = True
    assert worker.called(own, lambda x: estimate(None, x), X, 1)["value"].tolist() == [2.0] * 3


RETURNED = {
    "float": lambda x: float(x.mean()),
    "array": lambda x: x.mean(-1).numpy(),
    "list": lambda x: x.mean(-1).tolist(),
    "pair": lambda x: (x.mean(-1), 0 * x.mean(-1) + 0.5),
    "pair of numbers": lambda x: (float(x.mean()), 0.5),
    "(1, 1)": lambda x: x.mean().numpy().reshape(1, 1),
    "object": lambda x: worker.SimpleNamespace(estimate=float(x.mean()), stderr=0.5),
    "fields": lambda x: worker.SimpleNamespace(value=x.mean(-1), se=torch.tensor(0.5)),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_numbers_pairs_and_objects_are_read_as_the_gate_reads_them(kind):
    X = torch.arange(24.0).reshape(3, 4, 2)
    row = worker.SimpleNamespace(estimate=lambda A, X: None, foreign=True)
    found = worker.called(row, lambda x: RETURNED[kind](x.sum(-2)), X, 1)
    assert found["value"].tolist() == [14.0, 46.0, 78.0]
    assert found["ok"].all()
    bars = kind.startswith("pair") or kind in ("object", "fields")
    assert np.array_equal(found["standard_error"], [0.5 if bars else np.nan] * 3, equal_nan=True)


@pytest.mark.parametrize("returned", ["3.0", None, True, {}, 1j, [1.0, 2.0, 3.0], object()])
def test_what_is_no_number_is_kept_as_an_error(returned):
    row = worker.SimpleNamespace(estimate=lambda A, X: None, foreign=True)
    with pytest.raises(TypeError, match="required"):
        worker.called(row, lambda _: returned, torch.ones(5, 4, 2), 1)


def test_an_exception_is_kept_as_text(tmp_path):
    path = tmp_path / "inputs.npz"
    write_inputs(path, [CELL])
    row = next(worker.methods(request(target="specbp.logdets:slq_logdet", config={"num_steps": 0})))
    about = {"id": CELL.id, "dtype": CELL.dtype, "lower": 1.0, "upper": 2.0}
    with np.load(path) as inputs:
        found = worker.evaluate(row, about, inputs, 0, 1)
    assert str(found["error"]).startswith("ValueError: ")
