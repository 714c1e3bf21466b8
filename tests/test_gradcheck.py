"""The gradient checker: it passes what is right, fails what is wrong, and its tables say so."""

import numpy as np
import pytest

from minidnn import functional as F
from minidnn.gradcases import Case, normal
from minidnn.gradcheck import (
    CASES,
    GradientError,
    gradcheck,
    gradcheck_report,
    gradcheck_table,
    run_gradcheck_cases,
)
from minidnn.tensor import Function, Tensor


class Cube(Function):
    """y = x^3 with a backward that is off by a given factor in the element of a given index."""

    def __init__(self, factor=1.0, index=...):
        self.factor, self.index = factor, index

    def forward(self, x):
        self.x = x
        return x**3

    def backward(self, gy):
        gx = gy * 3 * self.x**2
        gx[self.index] *= self.factor
        return gx


X = np.random.default_rng(0).uniform(1, 2, (3, 4))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.operation}: {c.label}")
def test_every_operation(case):
    gradcheck(case.function, *case.inputs())


def test_a_right_backward_passes_with_a_small_error():
    assert gradcheck(lambda x: Cube()(x), X) < 1e-8


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.001, 2.0, np.nan, np.inf])
@pytest.mark.parametrize("index", [..., (1, 2)])
def test_a_wrong_backward_fails(factor, index):
    with pytest.raises(GradientError, match="input 0: backward gives .* central differences"):
        gradcheck(lambda x: Cube(factor, index)(x), X)


def test_typical_mistakes_fail():
    class ForgetsToSumTheBroadcast(Function):
        def forward(self, x, b):
            return x + b

        def backward(self, gy):
            return gy, gy[0]

    class TransposesTheWrongMatrix(Function):
        def forward(self, x, W):
            self.x, self.W = x, W
            return x @ W

        def backward(self, gy):
            return gy @ self.W, (self.x.T @ gy).T

    class SoftmaxWithoutItsCoupling(Function):
        def forward(self, x):
            e = np.exp(x)
            self.y = e / e.sum(1, keepdims=True)
            return self.y

        def backward(self, gy):
            return gy * self.y * (1 - self.y)

    class LosesAnInput(Function):
        def forward(self, x, y):
            self.y = y
            return x * y

        def backward(self, gz):
            return gz * self.y, None

    for function, arrays in (
        (ForgetsToSumTheBroadcast, (X, X[0])),
        (TransposesTheWrongMatrix, (X[:, :3], X[:, :3])),
        (SoftmaxWithoutItsCoupling, (X,)),
        (LosesAnInput, (X, X)),
    ):
        with pytest.raises(GradientError):
            gradcheck(lambda *ts, function=function: function()(*ts), *arrays)


def test_inputs_of_any_kind_are_checked_in_float64():
    assert gradcheck(lambda x, y: x * y, Tensor(X.astype(np.float32)), [[2.0] * 4] * 3) < 1e-8


def test_several_outputs_and_what_is_no_tensor():
    assert gradcheck(lambda x: (x * x, F.exp(x), X, None), X) > 0
    with pytest.raises(GradientError):
        gradcheck(lambda x: (x * x, Cube(0.5)(x)), X)


def test_an_input_without_influence_has_gradient_zero():
    assert gradcheck(lambda x, y: x * x + y.detach() * 0, X, X) < 1e-8


def test_the_table_lists_every_element():
    table = gradcheck_table(lambda x: Cube(1.5, (1, 2))(x), X)
    assert [row[0] for row in table.rows] == [(i, j) for i in range(3) for j in range(4)]
    for index, analytic, numeric, error in table.rows:
        assert numeric == pytest.approx(3 * X[index] ** 2, rel=1e-8)
        if index == (1, 2):
            assert analytic == pytest.approx(4.5 * X[index] ** 2)
            assert error == table.error == pytest.approx(1 / 3, rel=1e-6)
        else:
            assert error < 1e-8
    lines = str(table).splitlines()
    assert len(lines) == 13 and lines[0].split() == ["index", "analytic", "numeric", "relative", "error"]
    assert lines[7].split()[:2] == ["1,", "2"]


def test_the_table_for_another_input_and_through_a_projection():
    W = np.random.default_rng(1).standard_normal((4, 2))
    table = gradcheck_table(F.linear, X, W, wrt=1)
    np.testing.assert_allclose([row[1] for row in table.rows], np.repeat(X.sum(0), 2), rtol=1e-12)
    assert gradcheck_table(F.softmax, X, seed=3).error < 1e-5
    flat = gradcheck_table(F.softmax, X)  # rows of a softmax add up to 1: the sum has no gradient
    assert max(abs(row[1]) for row in flat.rows) < 1e-12


def test_the_report_passes_for_every_operation():
    text, ok = gradcheck_report()
    assert ok
    lines = text.splitlines()
    assert len(lines) == len(CASES) + 2 and lines[-1].endswith("ok")
    assert {line.split()[0] for line in lines[1:-1]} == set(F.__all__)


def test_the_report_of_some_operations():
    text, ok = gradcheck_report(["relu", "tanh"])
    assert ok and len(text.splitlines()) == 2 + 4
    with pytest.raises(ValueError, match="unknown operation 'cube'; known are abs, add, astype"):
        gradcheck_report(["cube"])


def test_the_report_names_what_is_wrong():
    cases = [
        Case("cube", "right", lambda x: Cube()(x), ((2, 3),), (normal,)),
        Case("cube", "wrong", lambda x: Cube(1.01)(x), ((2, 3),), (normal,)),
        Case("cube", "nan", lambda x: Cube(np.nan)(x), ((2, 3),), (normal,)),
        Case("cube", "raises", lambda x: x.reshape(5), ((2, 3),), (normal,)),
    ]
    assert [r.ok for r in run_gradcheck_cases(cases)] == [True, False, False, False]
    text, ok = gradcheck_report(cases=cases)
    assert not ok
    right, wrong, nan, raises, summary = text.splitlines()[1:]
    assert "WRONG" not in right and wrong.endswith("WRONG") and nan.endswith("WRONG")
    assert "WRONG ValueError" in raises
    assert summary.endswith("3 WRONG")
