"""The table of methods and of what each claims: tests, verification and README iterate over it.

One more estimator is one function `(operator, probes, **config) -> Estimate` and one row here, or
in `joint_methods` if its probes act together.
"""

from __future__ import annotations

from specbp import costs, direct, gradients, logdets, trace
from specbp.claims import Claims, Method
from specbp.joint_methods import JOINT_METHODS

__all__ = ["METHODS", "Claims", "Method"]

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="qr",
            estimate=direct.qr_logdet,
            on="J",
            estimand="logdet",
            summary="exact: n batched JVPs and QR of J",
            source="Golub & Van Loan 2013, 5.2",
            claims=Claims("exact", matvecs=lambda n, _m, _c: n / 2, gradient="exact"),
        ),
        Method(
            name="cholesky",
            estimate=direct.cholesky_logdet,
            on="dense A",
            estimand="logdet",
            summary="exact, for an explicit matrix",
            source="Golub & Van Loan 2013, 4.2",
            claims=Claims("exact", matvecs=lambda _n, _m, _c: 0, gradient="exact"),
        ),
        Method(
            name="eigenvalues",
            estimate=direct.eigenvalue_logdet,
            on="dense A",
            estimand="logdet",
            summary="exact, for an explicit matrix; tells indefinite from singular",
            source="Golub & Van Loan 2013, 8",
            claims=Claims("exact", matvecs=lambda _n, _m, _c: 0, gradient="exact"),
        ),
        Method(
            name="golub_kahan",
            estimate=logdets.golub_kahan_logdet,
            on="J",
            estimand="logdet",
            summary="Golub–Kahan quadrature on J; the default for JᵀJ, sound in float32",
            source="Golub & Kahan 1965",
            claims=Claims(
                "quadrature", matvecs=costs.steps, bracket=("lower", "upper"), gradient="frechet"
            ),
            config={"num_steps": 20},
            needs=("lower",),
        ),
        Method(
            name="slq",
            estimate=logdets.slq_logdet,
            on="A",
            estimand="logdet",
            summary="stochastic Lanczos quadrature, Gauss–Radau bracket",
            source="Ubaru, Chen & Saad 2017",
            claims=Claims(
                "quadrature", matvecs=costs.steps, bracket=("lower", "upper"), gradient="frechet"
            ),
            config={"num_steps": 20},
            needs=("lower",),
        ),
        Method(
            name="chebyshev",
            estimate=logdets.chebyshev_logdet,
            on="A",
            estimand="logdet",
            summary="Chebyshev expansion on a known interval, two moments a product",
            source="Han, Malioutov & Shin 2015",
            claims=Claims(
                "tr p(A)",
                matvecs=costs.half_degree,
                bracket=("lower", "upper"),
                gradient="derivative",
            ),
            config={"degree": 40},
            needs=("interval",),
        ),
        Method(
            name="taylor",
            estimate=logdets.taylor_logdet,
            on="A",
            estimand="logdet",
            summary="Taylor series at a known upper bound; over-estimates",
            source="Boutsidis et al. 2017",
            claims=Claims(
                "tr p(A)", matvecs=costs.half_degree, bracket=("upper",), gradient="derivative"
            ),
            config={"degree": 40},
            needs=("upper",),
        ),
        Method(
            name="algorithm1",
            estimate=logdets.algorithm1_logdet,
            on="A",
            estimand="logdet",
            summary="Algorithm 1 of the paper, safe form: proves its interval or raises it",
            source="Ramesh & LeCun 2018",
            claims=Claims(
                "adaptive", matvecs=costs.algorithm1, additive=False, gradient="derivative"
            ),
            config={"degree": 40, "power_steps": 10},
            needs=("lower",),
        ),
        Method(
            name="algorithm1_plain",
            estimate=logdets.algorithm1_logdet,
            on="A",
            estimand="logdet",
            summary="Algorithm 1 as printed: explodes when the power method stops short",
            source="Ramesh & LeCun 2018",
            claims=Claims(
                "adaptive",
                matvecs=costs.algorithm1,
                additive=False,
                gradient="derivative",
                gated=False,
            ),
            config={"degree": 40, "power_steps": 10, "safe": False},
            needs=("lower",),
        ),
        Method(
            name="backprop",
            estimate=gradients.backprop_logdet,
            on="A",
            estimand="logdet",
            summary="the paper's gradient, kept as a baseline: reverse mode through the recurrence",
            source="Ramesh & LeCun 2018",
            claims=Claims("tr p(A)", matvecs=costs.degree, gradient="derivative"),
            config={"degree": 40},
            needs=("interval",),
        ),
        Method(
            name="solve",
            estimate=gradients.solve_logdet,
            on="A",
            estimand="logdet",
            summary="the value of `slq`, with the gradient of one solve for each probe",
            source="Gardner et al. 2018",
            claims=Claims("quadrature", matvecs=costs.steps, gradient="solve"),
            config={"num_steps": 20, "rtol": 1e-10},
        ),
        Method(
            name="hutchinson",
            estimate=trace.hutchinson_trace,
            on="A",
            estimand="trace",
            summary="tr A from one product a probe",
            source="Hutchinson 1990",
            claims=Claims("tr A", matvecs=lambda _n, m, _c: m, gradient="derivative"),
        ),
        *JOINT_METHODS,
    )
}
