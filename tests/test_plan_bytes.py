"""Bytes of a step by closed form, derived from the sizes of the layers alone, against the plan's messages.

The network is the single tower of One Weird Trick (Krizhevsky 2014), 224 x 224 pixels, at 128 images a
worker in float32.  Its sizes are written out here once more, so that nothing is taken from the model.
"""

import pytest

from minidnn import nn
from minidnn.parallel import Options, make_plan, make_strategy

MIB = 1 << 20
WORKER_BATCH, ITEM = 128, 4

# kernel x kernel x in x out weights and out biases of the convolutions; in x out and out of the linear layers
CONV = [(11, 3, 64), (5, 64, 192), (3, 192, 384), (3, 384, 256), (3, 256, 256)]
LINEAR = [(6 * 6 * 256, 4096), (4096, 4096), (4096, 1000)]
CONV_WEIGHTS = sum(k * k * i * o for k, i, o in CONV)
CONV_BIASES = sum(o for _, _, o in CONV)
LINEAR_WEIGHTS, LINEAR_BIASES = sum(i * o for i, o in LINEAR), sum(o for _, o in LINEAR)
FEATURES, HIDDEN, CLASSES = 6 * 6 * 256, 4096, 1000

WORKERS = (2, 4, 8)


def all_reduce(elements, workers):
    """MiB that a worker sends to sum `elements` by a ring: 2 (K - 1)/K of them."""
    return 2 * (workers - 1) / workers * elements * ITEM / MIB


def exchange(rows, features, workers):
    """MiB that a worker sends so that all get a (rows, features) array of which each has a K-th: that, K - 1 times."""
    return (workers - 1) * rows * features / workers * ITEM / MIB


@pytest.fixture(scope="module", params=WORKERS)
def workers(request):
    return request.param


def sent(strategy, workers, **options):
    """MiB that a rank sends in a step, the mean of all, by what they are for; without the metrics' few bytes."""
    model, options = nn.alexnet(variant="owt"), Options(**options)
    shape, batch = (224, 224, 3), WORKER_BATCH * workers
    plan = make_plan(model, shape, make_strategy(strategy, model, shape, workers, options), batch)
    kinds = {"conv gradients": 0, "fc gradients": 0, "conv activations": 0, "fc exchange": 0, "logits": 0}
    for rank in range(workers):
        for m in plan.messages(rank):
            if m.kind == "send" and m.phase != "metrics":
                kinds[_kind(m)] += m.bytes / MIB / workers
    return kinds


def _kind(message):
    if message.phase == "gradient sync":
        return "conv gradients" if message.layer.startswith("conv") else "fc gradients"
    return {"fc6": "conv activations", "loss": "logits"}.get(message.layer, "fc exchange")


def test_the_network_is_the_one_that_is_derived_from():
    sizes = {name: p.size for name, p in nn.alexnet(variant="owt").named_parameters()}
    assert sum(n for name, n in sizes.items() if name.startswith("conv")) == CONV_WEIGHTS + CONV_BIASES
    assert sum(sizes.values()) == CONV_WEIGHTS + CONV_BIASES + LINEAR_WEIGHTS + LINEAR_BIASES == 61_100_840


def test_data_parallel(workers):
    """233.0 / 349.6 / 407.8 MiB for the weights, as is well known; the biases add 0.02 % to that."""
    weights = all_reduce(CONV_WEIGHTS + LINEAR_WEIGHTS, workers)
    assert round(weights, 1) == {2: 233.0, 4: 349.6, 8: 407.8}[workers]
    derived = weights + all_reduce(CONV_BIASES + LINEAR_BIASES, workers)
    kinds = sent("data", workers)
    assert sum(kinds.values()) == pytest.approx(derived, rel=1e-9)
    assert kinds["conv activations"] == kinds["fc exchange"] == kinds["logits"] == 0


def owt(workers):
    """The four parts of One Weird Trick's bytes, MiB a worker."""
    rows = WORKER_BATCH * workers
    return {
        "conv gradients": all_reduce(CONV_WEIGHTS + CONV_BIASES, workers),
        "fc gradients": 0,
        "conv activations": 2 * exchange(rows, FEATURES, workers),  # there, and their gradients back
        "fc exchange": 2 * 2 * exchange(rows, HIDDEN, workers),  # fc6 to fc7 and fc7 to fc8, there and back
        "logits": exchange(rows, CLASSES, workers),  # there only: every worker knows the whole loss
    }


@pytest.mark.parametrize("scheme", ["a", "b", "c"])
def test_one_weird_trick(workers, scheme):
    """26.9 / 66.6 / 138.9 MiB, at 8 workers 16.5 + 63.0 + 56.0 + 3.4, whichever the scheme."""
    derived = owt(workers)
    assert round(sum(derived.values()), 1) == {2: 26.9, 4: 66.6, 8: 138.9}[workers]
    if workers == 8:
        rounded = [round(mib, 1) for mib in derived.values() if mib]
        assert rounded == [16.5, 63.0, 56.0, 3.4]
    assert sent("owt", workers, scheme=scheme) == pytest.approx(derived, rel=1e-9)


def test_column_and_row_pairs(workers):
    """38.0 / 76.6 / 134.8 MiB: fc6 and fc7 exchange half as much, but fc8 is summed like a convolution."""
    rows = WORKER_BATCH * workers
    derived = owt(workers) | {
        "fc exchange": 2 * exchange(rows, HIDDEN, workers),
        "logits": 0,
        "fc gradients": all_reduce(HIDDEN * CLASSES + CLASSES, workers),
    }
    assert round(sum(derived.values()), 1) == {2: 38.0, 4: 76.6, 8: 134.8}[workers]
    assert sent("owt", workers, fc_pairs=True) == pytest.approx(derived, rel=1e-9)


def test_where_the_trick_stops_paying():
    """The trick's bytes grow with every worker, those of data parallelism do not: from 26 workers on it sends more."""
    total = {k: sum(owt(k).values()) for k in range(2, 65)}
    crossing = next(k for k in total if total[k] > all_reduce(61_100_840, k))
    assert crossing == 26
    assert sum(sent("owt", crossing).values()) > sum(sent("data", crossing).values())
    assert sum(sent("owt", crossing - 1).values()) < sum(sent("data", crossing - 1).values())


def test_layer_split(workers):
    """Each border is crossed by its features of the whole batch, and by their gradients: no gradient sums."""
    model, options = nn.alexnet(variant="owt"), Options(micro_batches=4)
    shape, batch = (224, 224, 3), WORKER_BATCH * workers
    plan = make_plan(model, shape, make_strategy("layer_split", model, shape, workers, options), batch)
    outputs = {name: out for name, _, _, out in model.shapes(shape)}
    before = dict(zip(model.names[1:], model.names[:-1], strict=True))
    crossing = 0
    for stage in plan.stages[1:]:
        elements = 1
        for n in outputs[before[stage.layers[0].name]]:
            elements *= n
        crossing += 2 * batch * elements * ITEM
    messages = [m for rank in range(workers) for m in plan.messages(rank) if m.kind == "send"]
    assert sum(m.bytes for m in messages if m.phase != "metrics") == crossing
    assert {m.phase for m in messages} == {"forward", "backward", "metrics"}


def test_two_towers():
    """The towers of 2012 meet before conv3, at the linear layers, and on the rank that has the last of them.

    At 227 pixels conv3 reads 13 x 13 x 256 features, the linear layers 9216, 4096 and 4096. Each tower has half
    of them, sends that half and gets as much of the gradient back; fc8 lives on rank 0 alone.
    """
    model, options, batch = nn.alexnet(variant="2012"), Options(), 256
    shape = (227, 227, 3)
    plan = make_plan(model, shape, make_strategy("alexnet2012", model, shape, 2, options), batch)
    both = {"conv3": 13 * 13 * 256, "flatten": FEATURES, "fc7": HIDDEN}
    for rank in (0, 1):
        bytes_sent = {}
        for m in plan.messages(rank):
            if m.kind == "send" and m.phase != "metrics":
                bytes_sent[m.phase, m.layer] = bytes_sent.get((m.phase, m.layer), 0) + m.bytes
        half = {layer: batch * features * ITEM // 2 for layer, features in both.items()}
        wanted = {(phase, layer): n for layer, n in half.items() for phase in ("forward", "backward")}
        wanted["forward" if rank else "backward", "fc8"] = batch * HIDDEN * ITEM // 2
        assert bytes_sent == wanted


@pytest.mark.parametrize("ranks", [2, 4])
def test_halo_of_alexnet(ranks):
    """Rows of the images split over ranks: what the windows of a rank's outputs look at beyond its own rows.

    A layer with a kernel of k rows, stride s and padding p, whose rank has rows [a, b) of its input and [c, d) of its
    output, reads rows cs - p to (d - 1)s - p + k, as far as the image goes. Backward the gradients of these go back.
    """
    model, batch = nn.build("alexnet", image=227, classes=10), 8
    options = Options(batch=batch)
    plan = make_plan(
        model, (227, 227, 3), make_strategy("spatial", model, (227, 227, 3), ranks, options), batch
    )
    sent = sum(m.bytes for r in range(ranks) for m in plan.messages(r) if m.kind == "send" and m.op == "halo")

    def parts(n):
        edges = [sum(n // ranks + (i < n % ranks) for i in range(r)) for r in range(ranks + 1)]
        return list(zip(edges, edges[1:], strict=False))

    expected, images_seen = 0, True
    for _, layer, ((height, *rest), *_), out in (
        (n, x, s, o) for n, x, s, o in model.shapes((227, 227, 3)) if len(s[0]) == 3
    ):
        if not hasattr(layer, "kernel_size"):
            continue
        window = layer.window((height, rest[0]))
        k, s, p = window.kernel[0], window.stride[0], window.padding[0][0]
        for (a, b), (c, d) in zip(parts(height), parts(out[0]), strict=True):
            low, high = max(0, c * s - p), min(height, (d - 1) * s - p + k)
            rows = max(0, a - low) + max(0, high - b) - max(0, a - high) - max(0, low - b)
            # the images are loaded whole, so the first layer asks nobody
            expected += 0 if images_seen else 2 * rows * rest[0] * rest[1] * batch * 4
        images_seen = False
    assert sent == expected > 0
