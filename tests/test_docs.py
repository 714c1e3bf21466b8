"""The examples of docs/architecture.md, run: what somebody writes himself takes part in every strategy."""

import re
from pathlib import Path

import numpy as np
import pytest
from parallel_cases import LIMIT, SEED, one_process, optimiser
from test_parallel_faults import SHAPE

from minidnn.comm import threads
from minidnn.parallel import Executor, Options, gather_state, make_strategy, replicas_equal

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "architecture.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT[TEXT.index("## Extending") :], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names():
    """What the examples define, run one after the other."""
    found = {}
    for example in EXAMPLES:
        exec(compile(example, "docs/architecture.md", "exec"), found)
    return found


def data(batch=16):
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *SHAPE)), rng.integers(0, 5, batch)


@pytest.mark.parametrize("strategy", ["data", "owt", "3d", "by hand"])
def test_an_own_block_trains_under_every_strategy(names, strategy):
    x, labels = data()
    losses, state = one_process(names["model"](), x, labels)

    def main(comm):
        model, options = names["model"](), Options(dtype="float64")
        if strategy == "by hand":
            made = names["columns"](model, SHAPE, comm.size, names["options"])
        else:
            made = make_strategy(strategy, model, SHAPE, comm.size, options)
        running = Executor(model, SHAPE, made, comm, len(x), SEED, optimiser)
        start, stop = running.plan.input_rows(comm.rank)
        found = [running.step(x[start:stop] if start < stop else None, labels).loss for _ in losses]
        return found, gather_state(running), replicas_equal(running)

    for found, whole, same in threads.run(8 if strategy in ("3d", "by hand") else 2, main):
        np.testing.assert_allclose(found, losses, rtol=0, atol=LIMIT)
        assert same
        for name in whole or ():
            np.testing.assert_allclose(whole[name], state[name], rtol=0, atol=LIMIT)


def test_an_own_block_is_fifteen_lines_or_so(names):
    classes = EXAMPLES[0][EXAMPLES[0].index("class Swish") : EXAMPLES[0].index("def model")]
    assert len([line for line in classes.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_files_that_the_pages_name_are_there(page):
    root = DOCS.parent
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (DOCS / link).exists(), link
    for name in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|md))?)`", page.read_text()):
        assert (root / name).exists() or (root / "minidnn" / name).exists(), name
