"""ONNX's own node cases: what its reference gives for each operator, against minidnn's operations.

    pytest -s tests/test_onnx.py

prints how many passed, failed, and are not expressible: minidnn has no such operator, option or dtype.
"""

import warnings

import numpy as np
import pytest
from onnx_nodes import OPERATORS, NotExpressible, need

onnx = pytest.importorskip("onnx", reason="ONNX is not installed: pip install onnx")

DTYPES = {np.dtype(t) for t in (np.float32, np.float64, np.int32, np.int64, bool)}


def values(attribute):
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def array(x):
    """A case's value; sequences, optionals and strings are nothing that minidnn has."""
    x = onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x
    need(isinstance(x, (np.ndarray, np.generic)))
    return np.asarray(x)


def run(graph, inputs):
    """The outputs of a graph, node by node."""
    known = dict(zip((i.name for i in graph.input), map(array, inputs), strict=False))
    known |= {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        need(node.op_type in OPERATORS)
        arguments = [known[name] if name else None for name in node.input]
        floats = {a.dtype for a in arguments if a is not None and a.dtype.kind == "f"}
        need(all(a is None or a.dtype in DTYPES for a in arguments))
        need(len(floats) < 2 or node.op_type == "CastLike")
        if node.op_type == "Pow":
            need(len({a.dtype for a in arguments}) == 1)
        options = {a.name: values(a) for a in node.attribute} | {"outputs": len(node.output)}
        outputs = OPERATORS[node.op_type](options, *arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, y in zip(node.output, outputs, strict=False):
            known[name] = np.asarray(y.numpy() if hasattr(y, "numpy") else y)
    need(all(o.name in known for o in graph.output))
    return [known[o.name] for o in graph.output]


@pytest.mark.filterwarnings("ignore")
def test_node_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    passed, failed, others = [], {}, []
    for case in cases:
        try:
            need(case.model is not None and case.data_sets)
            for inputs, expected in case.data_sets:
                got = run(case.model.graph, inputs)
                for a, b in zip(got, map(array, expected), strict=True):
                    np.testing.assert_allclose(a, b, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 2e-6))
                    assert a.dtype == b.dtype, (a.dtype, b.dtype)
            passed.append(case.name)
        except NotExpressible:
            others.append(case.name)
        except Exception as error:
            failed[case.name] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"\nONNX node cases: {len(passed)} passed, {len(failed)} failed, {len(others)} not expressible")
    assert failed == {}
    assert len(passed) > 300
