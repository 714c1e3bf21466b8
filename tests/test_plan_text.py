"""What `print(plan)` and `minidnn plan` show, and what a rank must hold, against the plan itself and a run of it."""

import re

import pytest
from golden_plans import CASES, RANKS, plan_of
from parallel_cases import executor, feed
from test_parallel_equality import BASIC, VARIANTS, batch_for, model_for

from minidnn import cli
from minidnn.comm import threads
from minidnn.parallel.memory import rank_memory
from minidnn.report.plan_compare import CAUSES, gradient_bound, sent_by_cause


def command(capsys, *flags):
    """Run `minidnn plan`; returns the exit code, what it printed, and its complaint."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *(" ".join(flags)).split()])
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


def sections(text):
    """The text of each rank."""
    return re.split(r"^rank (?=\d+:)", text, flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_every_rank_layer_and_message_is_listed(name, ranks):
    plan = plan_of(name, ranks)
    text = str(plan)
    assert f"{ranks} ranks" in text.splitlines()[0] and "130 parameters" in text.splitlines()[0]
    for rank, section in enumerate(sections(text)):
        layers, messages = section.split("messages of one step: ")
        rows = {
            line.split()[0]: line for line in layers.splitlines()[3:] if line and not line.startswith(" ")
        }
        held = {}
        for p in plan.held[rank]:
            layer = p.name.rpartition(".")[0]
            held[layer] = held.get(layer, 0) + p.size
        for layer, size in held.items():
            assert re.search(rf" {size} ", rows[layer]), rows[layer]
        sent = [m for m in plan.messages(rank) if m.kind == "send"]
        assert messages.startswith(f"{len(sent)} sent, ")
        for m in sent:
            assert re.search(
                rf"^{m.phase} +{re.escape(m.layer)} .*{m.op} {m.algorithm}", messages, re.MULTILINE
            )
        listed = re.findall(r"send (?:(\d+) x )?\d[\d.]* \w+ to \d", messages)
        assert sum(int(times or 1) for times in listed) == len(sent)
    assert len(sections(text)) == ranks


def test_many_ranks_are_listed_by_number(capsys):
    code, out, _ = command(capsys, "--strategy owt --ranks 64 --batch-per-rank 2 --image 56")
    assert code == 0 and len(sections(out)) == 1 and "(63 more ranks; ask for them by number)" in out
    code, out, _ = command(capsys, "--strategy owt --ranks 64 --batch-per-rank 2 --rank 63 --rank 7")
    assert [section.split(":")[0] for section in sections(out)] == ["63", "7"]


def test_one_rank_sends_nothing(capsys):
    code, out, _ = command(capsys, "--strategy sequential --ranks 1")
    assert code == 0 and "messages of one step: 0 sent" in out and "(none)" in out


def test_the_command_of_the_issue(capsys):
    flags = "--model alexnet --image 227 --classes 1000 --strategy owt --ranks 8 --batch-per-rank 128"
    code, out, _ = command(capsys, flags)
    assert code == 0 and "61,100,840 parameters" in out and len(sections(out)) == 8
    assert all("138.9 MiB" in section for section in sections(out))


def test_comparison(capsys):
    """The byte table of One Weird Trick and data parallelism; where each number comes from is in test_plan_bytes."""
    flags = "--image 224 --variant owt --classes 1000 --strategy data,owt,hybrid --ranks 2,4,8 --batch-per-rank 128"
    code, out, _ = command(capsys, flags, "--compare")
    assert code == 0
    rows = {tuple(row[:2]): row for row in (re.split("  +", line.strip()) for line in out.splitlines())}
    for ranks, data, owt in ((2, "233.1", "26.9"), (4, "349.6", "66.6"), (8, "407.9", "138.9")):
        assert data in rows["data", str(ranks)] and owt in rows["owt", str(ranks)]
    assert {"16.5 (14)", "63.0 (14)", "56.0 (28)", "3.4 (7)"} <= set(rows["owt", "8"])
    assert ("hybrid", "data=2,model=2") in rows and ("hybrid", "data=2,model=4") in rows


def test_comparison_of_variants(capsys):
    """Column/row pairs exchange half the bytes between the linear layers, but sum the gradients of fc8: fewer bytes
    than columns all through from 8 workers on. Factors: a row of x and one of gy a sample, from K - 1 workers."""
    flags = "--image 224 --variant owt --classes 1000 --strategy owt,owt:pairs,data:factors --ranks 4,8"
    code, out, _ = command(capsys, flags, "--batch-per-rank 128 --compare")
    assert code == 0
    rows = {tuple(row[:2]): row for row in (re.split("  +", line.strip()) for line in out.splitlines())}
    sent = {key: float(row[-4]) for key, row in rows.items() if key[0].startswith(("owt", "data:"))}
    assert sent["owt", "4"] < sent["owt:pairs", "4"] and sent["owt", "8"] > sent["owt:pairs", "8"]
    assert "28.0 (14)" in rows["owt:pairs", "8"]  # 8 workers: 7/8 of 1,024 rows of 4,096 floats, twice
    convolutions_and_biases = 2 * 7 / 8 * (2_469_696 + 4096 + 4096 + 1000) * 4 / 2**20
    factors = 7 * 128 * (9216 + 4096 + 4096 + 4096 + 4096 + 1000) * 4 / 2**20
    assert sent["data:factors", "8"] == pytest.approx(convolutions_and_biases + factors, abs=0.1)
    code, _, err = command(capsys, "--strategy owt:d --compare")
    assert code == 2 and "--strategy owt:d: expected one of pairs" in err


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", CASES)
def test_causes_cover_all_bytes_but_the_metrics(name, ranks):
    plan = plan_of(name, ranks)
    for rank in range(ranks):
        causes = {why: n_bytes for why, (_, n_bytes) in sent_by_cause(plan, rank).items()}
        assert sum(causes.values()) == plan.bytes_sent(rank)
        metrics = sum(m.bytes for m in plan.messages(rank) if m.kind == "send" and m.phase == "metrics")
        assert causes.pop("", 0) == metrics
        assert set(causes) <= set(CAUSES)
        own = [m for m in plan.messages(rank) if m.kind == "send"]
        assert sum(messages for messages, _ in sent_by_cause(plan, rank).values()) == len(own)
    synced = [sent_by_cause(plan, rank).get("gradient sync", (0, 0)) for rank in range(ranks)]
    total = sum(n_bytes for _, n_bytes in synced)
    bound = sum(gradient_bound(plan, rank) for rank in range(ranks))
    assert total >= bound - ranks  # the bound holds for the ranks together; it is rounded for each


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--strategy owl", "unknown strategy 'owl': expected one of sequential, data"),
        ("--strategy data,owt", "unknown strategy 'data,owt'"),
        ("--model resnet", "--model resnet: expected alexnet or lenet"),
        ("--variant 2013", "unknown AlexNet variant '2013'"),
        ("--ranks two", "--ranks two: expected a number from 1 up"),
        ("--ranks 0", "--ranks 0"),
        ("--ranks 2,4", "--ranks 2,4: expected a number from 1 up (several only with --compare)"),
        ("--rank 2", "--rank 2: the plan has ranks 0 to 1"),
        ("--image 8", "images of 8x8 are too small, use at least 11x11"),
        ("--classes 0", "--classes 0: expected 1 or more"),
        ("--batch 1", "a batch of 1 cannot be split over 2 ranks"),
        ("--batch 0", "--batch 0: expected 1 or more"),
        ("--batch-per-rank -1", "--batch-per-rank -1: expected 1 or more"),
        ("--batch 8 --batch-per-rank 4", "exclude each other"),
        ("--nodes 3", "--nodes 3: expected 1 to 2, the number of ranks"),
        ("--width nan", "--width nan: expected a number above 0"),
        ("--buckets nan", "--buckets nan: expected a number from 0 up"),
        (
            "--stages 1,2 --strategy layer_split",
            "--stages 1,2: expected 1 layers in rising order",
        ),
    ],
)
def test_bad_input(capsys, flags, words):
    code, out, err = command(capsys, flags)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(
    "name", [*BASIC, "data, sharded momentum in tiny buckets", "owt a, sharded momentum"]
)
def test_memory_is_what_a_run_holds(name):
    """Weights, their gradients, and the momenta that the optimiser has after a step, to the byte."""
    strategy, options = (BASIC | VARIANTS)[name]

    def main(comm):
        running = executor(comm, model_for(name, "all"), strategy, batch_for(name, 3), options)
        feed(running, 0, batch_for(name, 3))
        weights = running.weights().values()
        momenta = running.optimiser.state_dict()["velocity"].values()
        held = sum(w.nbytes for w in weights), sum(v.nbytes for v in momenta)
        return rank_memory(running.plan, comm.rank), held

    for memory, (weights, momenta) in threads.run(3, main):
        assert (memory.parameters, memory.gradients, memory.momenta) == (weights, weights, momenta)
        assert memory.total == sum((memory.parameters, memory.gradients, memory.momenta, memory.activations))


def test_memory_of_activations():
    """GPipe keeps every micro-batch, 1F1B at most as many as there are stages behind."""
    plans = {}
    for schedule in ("gpipe", "1f1b", "naive"):
        options = {"micro_batches": 4, "schedule": schedule}
        plans[schedule] = threads.run(
            2, lambda comm, o=options: executor(comm, "plain", "layer_split", 16, o).plan
        )[0]
    kept = {name: rank_memory(plan, 0).activations for name, plan in plans.items()}
    assert kept["gpipe"] == 4 * kept["naive"] and kept["1f1b"] == 2 * kept["naive"]
    outputs = [layer.out_shape for layer in plans["naive"].stages[0].layers]
    elements = 0
    for shape in outputs:
        size = 1
        for n in shape:
            size *= n
        elements += size
    assert kept["naive"] == 4 * elements * 8  # a micro-batch of 4, float64
