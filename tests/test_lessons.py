"""The numbered lessons of examples/: each is run as a reader runs it, its numbers are computed here anew."""

import functools
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "examples").glob("0*.py"))
SECONDS = 120  # on a machine that is busy; a lesson takes about one


def start(lesson: str, *options: str, path: tuple = ()) -> subprocess.CompletedProcess:
    (script,) = [p for p in LESSONS if p.name.startswith(lesson)]
    paths = [*map(str, path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)


@functools.cache
def output(lesson: str) -> str:
    done = start(lesson)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def numbers(line: str) -> list[float]:
    return [
        float(word)
        for word in line.replace(",", " ").split()
        if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word)
    ]


def table(text: str, after: str, rows: int) -> list[list[float]]:
    """The numbers of the lines that follow the first one with `after` in it."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if after in line) + 1
    return [numbers(line) for line in lines[first : first + rows]]


def same(printed, expected, digits: int) -> None:
    np.testing.assert_allclose(printed, expected, rtol=0, atol=0.51 * 10**-digits)


def test_the_six_lessons_are_there_and_short():
    assert [p.name[:2] for p in LESSONS] == ["01", "02", "03", "04", "05", "06"]
    for lesson in LESSONS:
        text = lesson.read_text()
        assert 40 <= len(text.splitlines()) <= 110, lesson
        assert f"    python examples/{lesson.name}\n" in text


@pytest.mark.parametrize("lesson", ["01", "02"])
def test_plot_writes_a_picture(lesson, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "picture.png"
    done = start(lesson, "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    assert done.stdout == output(lesson) + f"\nwrote {picture}\n"
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 900 and height >= 300
    pixels = image.imread(picture)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20  # not blank


@pytest.mark.parametrize("lesson", ["01", "02"])
def test_matplotlib_is_needed_for_the_picture_only(lesson, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')\n")
    assert start(lesson, path=(tmp_path,)).returncode == 0
    done = start(lesson, "--plot", str(tmp_path / "picture.png"), path=(tmp_path,))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert 'pip install "minidnn[plot]"' in done.stderr


@pytest.mark.parametrize(("file", "word"), [("no/such/folder.png", "No such file"), ("picture.xyz", "xyz")])
def test_a_picture_that_cannot_be_written(file, word, tmp_path):
    pytest.importorskip("matplotlib")
    done = start("01", "--plot", str(tmp_path / file))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and word in done.stderr


# ---- 1: linear regression


@pytest.mark.parametrize("rate", [0.1, 0.6, 0.7])
def test_descent_on_the_parabola(rate):
    printed = table(output("01"), f"learning rate {rate}:", 8)[1:]  # below the heading
    steps = np.arange(7)
    w = 2 - 2 * (1 - 3 * rate) ** steps
    expected = np.stack([steps, w, 1.5 * (w - 2) ** 2 + 0.25, 3 * (w - 2), 3 * (w - 2)], axis=1)
    same(printed, expected, 4)


def test_the_parabola_is_the_error_of_the_four_points():
    points = ((-1, -2), (0, 1), (1, 2), (2, 4))
    for w in (-1.0, 0.0, 2.5):
        assert sum((y - w * x) ** 2 for x, y in points) / 4 == pytest.approx(1.5 * (w - 2) ** 2 + 0.25)


def test_weight_and_bias():
    printed = {int(row[0]): row[1:] for row in table(output("01"), "weight      bias", 7)}
    w = b = 0.0
    for step in range(51):
        residuals = [(w * x + b - y, x) for x, y in ((-1, -2), (0, 1), (1, 2), (2, 4))]
        if step in printed:
            same(printed.pop(step), [w, b, sum(r * r for r, _ in residuals) / 4], 4)
        w -= 0.3 * sum(2 * r * x for r, x in residuals) / 4
        b -= 0.3 * sum(2 * r for r, _ in residuals) / 4
    assert not printed
    assert "least squares: weight 1.9000, bias 0.3000" in output("01")  # 9.5 / 5 and 1.25 - 1.9 / 2


# ---- 2: logistic regression


def test_costs():
    for h, *printed in table(output("02"), "cost y=1", 5):
        same(printed, [math.log(h / (1 - h)), -math.log(h), -math.log(1 - h), math.log(1 - h)], 3)


def test_first_gradient():
    # every h is 1/2: mean of (1/2 - y), and of (1/2 - y) x, which is (21 / 2 - (3 + 5 + 6)) / 6 = -7 / 12
    text = output("02")
    assert f"J = ln 2 = {math.log(2):.6f}" in text
    same(numbers(next(line for line in text.splitlines() if "dJ/dalpha" in line)), [0, 0], 6)
    same(numbers(next(line for line in text.splitlines() if "dJ/dbeta" in line)), [-7 / 12, -7 / 12], 6)


def test_the_minimum():
    """Newton's method on beta alone: by symmetry alpha = -3.5 beta."""
    samples = [(x - 3.5, y) for x, y in zip(range(1, 7), (0, 0, 1, 0, 1, 1), strict=True)]
    beta = 0.0
    for _ in range(20):
        h = [1 / (1 + math.exp(-beta * x)) for x, _ in samples]
        slope = sum((p - y) * x for p, (x, y) in zip(h, samples, strict=True))
        beta -= slope / sum(p * (1 - p) * x * x for p, (x, _) in zip(h, samples, strict=True))
    J = -sum(math.log(p if y else 1 - p) for p, (_, y) in zip(h, samples, strict=True)) / 6
    same(table(output("02"), "-alpha / beta", 5)[-1], [1000, -3.5 * beta, beta, J, 3.5], 4)
    line = next(line for line in output("02").splitlines() if line.startswith("h  "))
    same(numbers(line), h, 4)
    assert "accuracy 0.6667" in output("02")


# ---- 3: backpropagation


LAYERS = [[[1, -1, 0], [0, 1, -1]], [[1, 0], [0, 1], [1, -1]], [[1], [-1]]]


def complex_cost(parameters: list, shift: tuple = (0, 0)) -> complex:
    """The cost of lesson 3; shift: (layer, array added to its z). No backward, of any kind."""
    a, y = np.eye(2), np.array([[1.0], [0.0]])
    for number, (W, b) in enumerate(zip(parameters[:3], parameters[3:], strict=True), 2):
        z = a @ W + b + (shift[1] if number == shift[0] else 0)
        a = 1 / (1 + np.exp(-z))
    return -(y * np.log(a) + (1 - y) * np.log(1 - a)).sum() / 2


def lesson3() -> list[np.ndarray]:
    return [np.array(W, complex) for W in LAYERS] + [np.zeros(n, complex) for n in (3, 2, 1)]


def complex_step(array: np.ndarray, index: tuple, parameters: list) -> float:
    """The derivative to all digits: the imaginary part of the cost, a tiny step off the real axis."""
    array[index] += 1e-30j
    slope = complex_cost(parameters).imag / 1e-30
    array[index] = array[index].real
    return slope


def test_gradients_by_hand_by_tape_and_by_nudging():
    parameters = lesson3()
    lines = [line for line in output("03").splitlines() if re.match(r"[Wb]\(\d\)\[", line)]
    assert len(lines) == 20
    names = iter(lines)
    for number, array in enumerate(parameters):
        for index in np.ndindex(array.shape):
            name = f"{'W' if number < 3 else 'b'}({number % 3 + 1})[{','.join(map(str, index))}]"
            line = next(names)
            assert line.startswith(name)
            hand, tape, difference, nudged = (float(word) for word in line.split()[1:])
            slope = complex_step(array, index, parameters)
            same([hand, tape, nudged], [slope] * 3, 6)
            assert abs(difference) < 1e-15


def test_deltas():
    """delta is the slope of a sample's own cost along its z; the cost is the mean of two."""
    rows = table(output("03"), "layer  sample", 6)
    assert [row[:2] for row in rows] == [[layer, sample] for layer in (2, 3, 4) for sample in (1, 2)]
    for layer, sample, *values in rows:
        units = len(values) // 2
        for unit, delta in enumerate(values[units:]):
            shift = np.zeros((2, units), complex)
            shift[int(sample) - 1, unit] = 1e-30j
            same(delta, 2 * complex_cost(lesson3(), (layer, shift)).imag / 1e-30, 6)
    same([delta - a for _, _, a, delta in rows[-2:]], [-1, 0], 6)  # delta(4) = a(4) - y
    differences = re.findall(r"by hand - by .* at most (\S+)", output("03"))
    assert len(differences) == 4
    assert max(map(float, differences)) < 1e-15


def test_one_step_of_gradient_descent_with_weight_decay():
    parameters = lesson3()
    D = [
        complex_step(parameters[0], index, parameters) + 0.1 * w.real
        for index, w in np.ndenumerate(parameters[0])
    ]
    line = next(line for line in output("03").splitlines() if line.startswith("Part 4"))
    same(numbers(line)[-6:], parameters[0].real.ravel() - D, 6)


# ---- 4: convolution

IMAGE = [[1, 2, 0, 1, 3], [0, 1, 2, 2, 1], [3, 1, 0, 1, 2], [2, 0, 1, 3, 0], [1, 2, 2, 0, 1]]


def correlate(kernel: list[list[float]]) -> list[list[float]]:
    taps = [(i, j, kernel[i][j]) for i in (0, 1) for j in (0, 1)]
    return [[sum(k * IMAGE[r + i][c + j] for i, j, k in taps) for c in range(4)] for r in range(4)]


def test_convolution_of_the_figure():
    text = output("04")
    assert table(text, "The image", 5) == IMAGE
    assert table(text, "The kernel", 2) == [[1, 2], [3, 4]]
    whole = correlate([[1, 2], [3, 4]])
    same(table(text, "The output of Fig. 2.11", 4), np.array(whole) / 4, 2)
    assert table(text, "not divided", 4) == whole
    assert table(text, "convolution of mathematics", 4) == correlate([[4, 3], [2, 1]])
    same(table(text, "a kernel of ones", 4), np.array(correlate([[1, 1], [1, 1]])) / 4, 2)
    assert "window (0, 0): 1*1 + 2*2 + 0*3 + 1*4 = 9, / 4 = 2.25" in text
    differences = re.findall(r"^difference .*: (\S+)$", text, re.MULTILINE)
    assert [float(d) for d in differences] == [0, 0]


def test_gradient_of_the_kernel():
    corners = [[sum(sum(row[j : j + 4]) for row in IMAGE[i : i + 4]) for j in (0, 1)] for i in (0, 1)]
    assert table(output("04"), "Part 2", 2) == corners == [[20, 20], [21, 19]]


def test_output_sizes():
    rows = table(output("04"), "Part 3", 11)[1:]
    for W, F, P, S, formula, side, *_ in rows:
        same(formula, (W - F + 2 * P) / S + 1, 2)
        assert side == len(range(-int(P), int(W + P - F) + 1, int(S)))  # places at which the window fits
    assert [7, 3, 0, 1, 5, 5] in rows and [5, 2, 0, 1, 4, 4] == rows[0][:6]


# ---- 5: the ring


def contributions(rank: int, chunk: int, step: int, p: int) -> set[int]:
    """Chunk c sets out from rank c, is complete at rank c - 1 after p - 1 steps, and goes round once more."""
    if step >= p - 1 and (rank - (chunk - 1)) % p <= step - (p - 1):
        return set(range(p))
    travelled = (rank - chunk) % p
    return {(chunk + k) % p for k in range(travelled + 1)} if travelled <= step else {rank}


def test_who_holds_which_partial_sum():
    lines = output("05").splitlines()
    for step in range(7):
        first = next(i for i, line in enumerate(lines) if line.startswith(f"step {step}:")) + 1
        for rank, line in enumerate(lines[first : first + 4]):
            start, *cells = re.split(r"[:|]", line)
            assert start.split() == ["rank", str(rank)] and len(cells) == 4
            for chunk, cell in enumerate(cells):
                inside = contributions(rank, chunk, step, 4)
                value = (chunk + 1) * sum(10**r for r in inside)
                assert cell.split() == [str(value)] * 2 + ["{" + "".join(map(str, sorted(inside))) + "}"]
    assert "step 7" not in output("05")


def test_messages_and_bytes_of_the_ring():
    rows = table(output("05"), "messages  2 (p-1)", 5)
    assert [row[0] for row in rows] == [2, 3, 4, 5, 8]
    for p, messages, formula, sent, bound, simple in rows:
        assert messages == formula == 2 * (p - 1)
        assert sent == bound == 2 * (p - 1) / p * 840 * 8
        assert simple == (p - 1) * 840 * 8
    # a rank sends every chunk twice, but its right neighbour's and the one after that only once
    sizes = (3, 3, 2, 2)
    uneven = tuple(8 * (20 - sizes[(r + 1) % 4] - sizes[(r + 2) % 4]) for r in range(4))
    assert f"bytes {uneven}, mean 120" in output("05")


# ---- 6: adjoints


def test_both_readings():
    x0, x1 = 1, 2
    y = x0 + x1
    each, once = 2 * y + 5, 2 * y  # dL/dx of y^2 + 5 y, and of y^2
    text = output("06")
    rows = dict(zip(("all_reduce", "reduce_from"), table(text, "reading 1", 2), strict=True))
    assert rows == {"all_reduce": [each] * 4, "reduce_from": [2 * y, 5, each, each]}
    rows = dict(zip(("all_reduce", "reduce_from"), table(text, "reading 2: one L", 2), strict=True))
    assert rows == {"all_reduce": [2 * once] * 2 + [once] * 2, "reduce_from": [once] * 4}


def test_split_layer():
    x, w0, w1 = 2, 3, 4
    y = x * (w0 + w1)
    dx, dw, parts = 2 * y * (w0 + w1), 2 * y * x, [2 * y * w0, 2 * y * w1]
    rows = table(output("06"), "L = (w_0 x + w_1 x)^2, gradient of x", 3)
    assert rows == [[dx] * 4, [*parts, dx, dx], [2 * dx, 2 * dx, dx, dx]]
    rows = table(output("06"), "L = (w_0 x + w_1 x)^2, gradient of w_r", 3)
    assert rows == [[dw] * 4, [dw] * 4, [2 * dw, 2 * dw, dw, dw]]


def test_verdicts():
    verdicts = re.findall(r"^  (\S.*\S) .* (right|WRONG)$", output("06"), re.MULTILINE)
    words = [word for _, word in verdicts]
    assert words == ["right", "WRONG", "WRONG", "right", "right", "WRONG", "WRONG", "right", "right", "WRONG"]
