"""A loss that is not finite: every rank says the same about where it came from."""

import numpy as np
import pytest
from parallel_cases import executor, images

from minidnn.comm import threads
from minidnn.parallel.nonfinite import NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def complaint(comm, strategy, weight=None, pixel=0.0):
    """What a rank says when a weight that one rank alone may hold, or a pixel, is not a number."""
    # no sum of gradients is under way when the loss is looked at: nothing is left behind where the error is caught
    running = executor(comm, "plain", strategy, 17, {"bucket_mib": 0})
    if weight in running.replica.parameters and comm.rank == comm.size - 1:
        running.replica.parameters[weight].data.reshape(-1)[0] = np.nan
    x, labels = images(17)
    x = x[0].copy()
    x[0, 0, 0, 0] += pixel
    start, stop = running.plan.input_rows(comm.rank)
    with pytest.raises(NonFiniteError) as error:
        running.step(x[start:stop] if start < stop else None, labels[0])
    return str(error.value)


@pytest.mark.parametrize("strategy", ["data", "layer_split", "owt", "tensor"])
def test_the_layer_is_named_on_every_rank(strategy):
    said = threads.run(3, complaint, strategy, "fc8.W")
    assert len(set(said)) == 1 and "weights of layer 'fc8'" in said[0] and said[0].startswith("step 0: ")
    said = threads.run(3, complaint, strategy, None, np.nan)
    assert len(set(said)) == 1 and "output of layer 'conv1'" in said[0]
