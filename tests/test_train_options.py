"""The options of the training programs: flags, TOML files, and what is wrong with them in one line."""

import pytest
from parallel_cases import MODELS, SHAPE

from minidnn.comm import threads
from minidnn.errors import InputError
from minidnn.parallel import Mesh, Options
from minidnn.parallel.costs import estimated_costs, measured_costs
from minidnn.train import Session, parse, parser
from minidnn.train.options import parallel_options
from minidnn.train.planning import plan_of, planned_model, without_effect


def parsed(*flags, strategy="data"):
    return parse(parser("", strategy), list(flags))


def notes_of(*flags, strategy="data", ranks=2):
    args = parsed(*flags, strategy=strategy)
    return without_effect(args, *planned_model(args), ranks)


def config(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return str(path)


# -- flags -------------------------------------------------------------------------------------------------


def test_defaults():
    args = parsed()
    assert (args.model, args.strategy, args.epochs, args.steps, args.batch) == (
        "alexnet",
        "data",
        10,
        None,
        None,
    )
    assert (args.momentum, args.decay) == (0.9, 1e-6)  # the thesis's
    assert 0 < args.lr < 0.1
    assert parallel_options(args) == Options()


def test_check_alone_is_short():
    """In float32 a long comparison says little; whoever asks for more gets it."""
    assert (parsed("--check").steps, parsed("--check").epochs) == (3, 1)
    assert (parsed("--check", "--steps", "9").steps, parsed("--check", "--steps", "9").epochs) == (9, 10)
    assert parsed("--check", "--epochs", "2").epochs == 2


def test_flags_reach_the_planner():
    flags = "--scheme c --fc-update each --fc-pairs --micro-batches 3 --schedule gpipe --stages 3,7 --dp 2"
    flags += " --buckets 0 --sharded-momentum --local-batch-norm --all-reduce tree --dtype float64"
    options = parallel_options(parsed(*flags.split()))
    assert options == Options(
        dtype="float64",
        all_reduce="tree",
        bucket_mib=0.0,
        sharded_momentum=True,
        sync_batch_norm=False,
        micro_batches=3,
        schedule="gpipe",
        stages=(3, 7),
        scheme="c",
        fc_update="each",
        fc_pairs=True,
        dp=2,
    )
    flags = ("--mesh", "data=2,stage=2,model=2", "--split", "conv*: n=data; fc*: o=model")
    options = parallel_options(parsed(*flags))
    assert options.mesh == Mesh(data=2, stage=2, model=2) and options.split == "conv*: n=data; fc*: o=model"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch 8 --batch-per-rank 4", "--batch and --batch-per-rank exclude each other"),
        ("--batch 0", "--batch 0: expected 1 or more"),
        ("--batch-per-rank -2", "--batch-per-rank -2: expected 1 or more"),
        ("--epochs 0", "--epochs 0: expected 1 or more"),
        ("--steps 0", "--steps 0"),
        ("--images 0", "--images 0"),
        ("--image 0", "--image 0"),
        ("--validation -1", "--validation -1: expected a number from 0 up"),
        ("--seed -1", "--seed -1"),
        ("--lr -0.1", "--lr -0.1"),
        ("--lr nan", "--lr nan"),
        ("--buckets inf", "--buckets inf"),
        ("--momentum 1", "--momentum 1.0: expected a number from 0 up and below 1"),
        ("--dropout 1.5", "--dropout 1.5"),
        ("--balance guessed", "--balance guessed: expected one of estimated, measured"),
        ("--device tpu", "--device tpu: expected one of cpu, gpu"),
        ("--lr fast", "--lr: invalid float value: 'fast'"),
        ("--learning-rate 1", "unrecognized arguments: --learning-rate 1 (see --help)"),
        ("images.zip", "unrecognized arguments: images.zip"),
        ("--batch", "--batch: expected one argument"),
    ],
)
def test_bad_flags(flags, words):
    with pytest.raises(InputError) as raised:
        parsed(*flags.split())
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_no_strategy():
    with pytest.raises(
        InputError, match="--strategy is missing: expected one of sequential, data, layer_split, owt"
    ):
        parsed(strategy=None)


def test_stages_are_names_or_numbers():
    assert parallel_options(parsed("--stages", "5, fc6")).stages == (5, "fc6")


def test_options_that_have_no_effect_are_named():
    notes = notes_of("--conv-lr-scale", "4", "--dp", "2", "--micro-batches", "2")
    assert sorted(note.split()[1] for note in notes) == ["--conv-lr-scale", "--dp"]
    assert any(
        "--conv-lr-scale has no effect with --strategy data, only with owt, hybrid" in n for n in notes
    )
    assert any("--dp has no effect with --strategy data, only with hybrid, 3d" in n for n in notes)
    assert notes_of("--scheme", "b", "--fc-update", "each", strategy="owt") == []
    assert len(notes_of("--micro-batches", "4", strategy="owt")) == 1


def test_whether_an_option_has_an_effect_follows_from_the_plan():
    """On one rank nothing is summed; on a mesh with stages the schedule of any strategy counts."""
    assert len(notes_of("--buckets", "1", ranks=1)) == 1 and notes_of("--buckets", "1") == []
    assert notes_of("--fc-gradients", "factors") == [] and len(
        notes_of("--fc-gradients", "factors", strategy="owt")
    )
    assert len(notes_of("--schedule", "gpipe", "--micro-batches", "2")) == 1
    assert notes_of("--schedule", "gpipe", "--micro-batches", "2", "--mesh", "data=1,stage=2") == []
    assert (
        len(notes_of("--local-batch-norm")) == 1 and notes_of("--local-batch-norm", "--norm", "batch") == []
    )
    split = "--split", "conv*: n=ranks; fc*: o=ranks"
    assert notes_of("--scheme", "b", *split) == ["note: --scheme has no effect with --split on 2 ranks"]


@pytest.mark.parametrize(
    ("flags", "note"),
    [
        ("--data pets.zip --classes 3", "--classes has no effect with --data"),
        ("--data pets.zip --images 3", "--images has no effect with --data"),
        ("--trace-steps 3", "--trace-steps has no effect without --trace"),
        ("--overwrite", "--overwrite has no effect without --trace"),
        ("--model lenet --width 2", "--width has no effect with --model lenet"),
    ],
)
def test_options_that_other_options_make_useless_are_named(flags, note):
    args = parsed(*flags.split())
    (line,) = without_effect(args, *planned_model(parsed("--model", args.model)), 2)
    assert line.startswith(f"note: {note}")
    assert notes_of("--trace", "out", "--trace-steps", "3", "--classes", "3") == []


def test_empty_names_are_refused():
    for option in ("--plot", "--trace", "--data", "--config"):
        with pytest.raises(InputError, match=f"{option} '': expected the name of a file or folder"):
            parsed(option, "")


def test_the_variant_is_the_one_that_the_strategy_is_for():
    assert parsed().variant == "thesis" and parsed(strategy="alexnet2012").variant == "2012"
    assert parsed("--variant", "owt", strategy="alexnet2012").variant == "owt"
    assert parsed("--image", "227").variant == "owt" and parsed("--image", "199").variant == "thesis"


@pytest.mark.parametrize("flags", ["--all-reduce rings", "--scheme d", "--fc-update never", "--dtype half"])
def test_choices_list_what_is_known(flags):
    with pytest.raises(InputError, match=f"{flags}: expected one of "):
        parallel_options(parsed(*flags.split()))


@pytest.mark.parametrize(
    "flags",
    [
        "--image 227 --width 0.05 --strategy owt",
        "--image 70 --width 0.05 --classes 3 --strategy alexnet2012",
        "--width 0.05 --norm batch --batch-per-rank 4 --mesh data=2,stage=2 --micro-batches 2 --strategy layer_split",
        "--model lenet --image 28 --classes 3 --split conv*:n=ranks;fc*:o=ranks --sharded-momentum --buckets 1",
        "--width 0.05 --strategy spatial --dtype float64 --all-reduce tree",
    ],
)
def test_planning_and_training_with_the_same_flags_are_the_same_step(flags):
    """Model, classes, image, batch and every message: what `minidnn plan` prints is what a run of it prints."""
    ranks = 4 if "stage" in flags else 2
    args = parsed(*flags.split(), "--images", "32", "--validation", "0", strategy=None)

    def main(comm):
        return Session(comm, args).executor.plan

    trained, planned = threads.run(ranks, main)[0], plan_of(args, ranks, 1)
    assert str(trained) == str(planned)
    for rank in range(ranks):
        assert trained.messages(rank) == planned.messages(rank)


# -- TOML --------------------------------------------------------------------------------------------------


def test_a_file_gives_defaults_and_flags_override_it(tmp_path):
    path = config(
        tmp_path,
        """
        # as on the command line, without the dashes in front
        strategy = "owt"
        batch-per-rank = 8
        fc_pairs = true
        lr = 1
        data = "pets.zip"
        """,
    )
    args = parsed("--config", path, "--lr", "0.5", strategy="data")
    assert (args.strategy, args.batch_per_rank, args.fc_pairs, args.data) == ("owt", 8, True, "pets.zip")
    assert args.lr == 0.5
    lr = parsed("--config", path).lr
    assert lr == 1.0 and isinstance(lr, float)
    assert parsed("--config", path, strategy=None).strategy == "owt"
    assert parsed("--config", config(tmp_path, 'stages = [5, "fc6"]')).stages == "5,fc6"
    args = parsed("--config", config(tmp_path, 'mesh = "data=2,model=2"\nsplit = "*: n=data"'), strategy=None)
    assert parallel_options(args).mesh == Mesh(data=2, model=2) and args.split == "*: n=data"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch = ", "not TOML"),
        ("batch 8", "not TOML"),
        ("batsh = 8", "unknown option 'batsh'; known: all-reduce, "),
        ("config = 'more.toml'", "unknown option 'config'"),
        ("help = true", "unknown option 'help'"),
        ("batch = '8'", "batch = '8': expected a whole number"),
        ("batch = 8.5", "batch = 8.5: expected a whole number"),
        ("batch = true", "batch = True: expected a whole number"),
        ("lr = 'fast'", "lr = 'fast': expected a number"),
        ("lr = false", "lr = False: expected a number"),
        ("model = 5", "model = 5: expected a text"),
        ("model = true", "model = True: expected a text"),
        ("check = 1", "check = 1: expected true or false"),
        ("check = 'yes'", "check = 'yes': expected true or false"),
        ("[training]\nlr = 0.1", "unknown option 'training'"),
        ("[lr]\nvalue = 0.1", "lr = {'value': 0.1}: expected a number"),
        ("batch = 0", "--batch 0: expected 1 or more"),
    ],
)
def test_bad_files(tmp_path, text, words):
    path = config(tmp_path, text)
    with pytest.raises(InputError) as raised:
        parsed("--config", path)
    assert words in str(raised.value)
    assert path in str(raised.value) or words.startswith("--")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"--config .*gone\.toml: No such file"):
        parsed("--config", str(tmp_path / "gone.toml"))
    with pytest.raises(InputError, match=r"--config .*: Is a directory"):
        parsed("--config", str(tmp_path))


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match="--config .*: not TOML"):
        parsed("--config", str(path))


# -- the layer costs that --balance measured goes by ---------------------------------------------------------


@pytest.mark.parametrize("model", ["batch and groups", "skips"])
def test_measured_costs(model):
    """Seconds of each layer, those with several inputs and those that know of the step among them."""
    net = MODELS[model]()
    costs = measured_costs(net, SHAPE, batch=4, micro_batches=2)
    assert len(costs) == len(net.names) and all(0 < cost < 10 for cost in costs)


def test_estimated_costs_count_the_update():
    """A large layer after the convolutions weighs by its weights in a small batch, by its products in a large one."""
    net = MODELS["plain"]()
    conv2, fc6 = net.names.index("conv2"), net.names.index("fc6")
    small, large = (estimated_costs(net, SHAPE, batch) for batch in (1, 100))
    weights = 32 * 10 + 10
    assert (
        small[fc6] == 2 * 15 * weights + 320 + 50 * weights + 1
    )  # reading them takes longer than the products
    assert large[fc6] == 3 * 100 * 320 + 50 * weights + 1
    assert small[conv2] / small[fc6] < large[conv2] / large[fc6]
    assert estimated_costs(net, SHAPE, 4, 4)[fc6] == 4 * (small[fc6] - 50 * weights - 1) + 50 * weights + 1
