"""The threads that share a kernel's work: every item done, errors raised, BLAS left as it was."""

import itertools
import os
import subprocess
import sys
import threading

import pytest

from minidnn.backend import openblas, workers


@pytest.fixture
def three_threads():
    workers.set_threads(3)
    yield
    workers.set_threads(None)


def test_each_keeps_the_order_of_items(three_threads):
    assert workers.each(lambda i: i * i, range(100)) == [i * i for i in range(100)]
    assert workers.each(lambda i: i, []) == []


def test_an_exception_is_raised_in_the_caller_after_all_items(three_threads):
    done = []

    def item(i):
        if i == 3:
            raise RuntimeError("item 3")
        done.append(i)

    with pytest.raises(RuntimeError, match="item 3"):
        workers.each(item, range(10))
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert workers.each(lambda i: i, range(4)) == [0, 1, 2, 3]


def test_nested_and_concurrent_use_cannot_deadlock(three_threads):
    def outer(i):
        return sum(workers.each(lambda j: i * j, range(5)))

    results = {}
    callers = [
        threading.Thread(target=lambda k=k: results.update({k: workers.each(outer, range(20))}))
        for k in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert results == {k: [10 * i for i in range(20)] for k in range(4)}


def test_products_inside_are_single_threaded_and_then_as_before(three_threads):
    before = openblas.get_threads()
    if before is None:
        pytest.skip("this NumPy's BLAS cannot be told its number of threads")
    barrier = threading.Barrier(3)  # all three inside at once

    def look(_):
        barrier.wait(30)
        return openblas.get_threads()

    assert workers.each(look, range(3)) == [1, 1, 1]
    assert openblas.get_threads() == before


def test_threads_follow_blas():
    if openblas.get_threads() is None:
        pytest.skip("this NumPy's BLAS cannot be told its number of threads")
    assert workers.threads() == openblas.get_threads()
    with pytest.raises(ValueError, match="at least one"):
        workers.set_threads(0)


def test_spans_cover_a_range_in_equal_parts(three_threads):
    for n, largest, least in itertools.product((0, 1, 2, 7, 100), (None, 1, 4, 1000), (1, 5)):
        parts = workers.spans(n, largest, least)
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1
        if largest and n >= least * 3:
            assert max(sizes) <= max(largest, least) or min(sizes) >= least


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_its_own_threads():
    code = """
import os
from minidnn.backend import workers
workers.set_threads(2)
assert workers.each(lambda i: i, range(4)) == [0, 1, 2, 3]
child = os.fork()
if child == 0:
    os._exit(0 if workers.each(lambda i: i + 1, range(4)) == [1, 2, 3, 4] else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
