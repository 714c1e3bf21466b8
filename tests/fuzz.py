"""Inputs that nobody would give on purpose, thousands of them, each from a seed of its own.

    python tests/fuzz.py 3000 [FIRST_SEED]

Whatever comes in, a command ends with exit code 0, or with 2 and one line; it raises nothing else, does not hang, and
writes nothing but what it was asked for. A short form of this is in `test_fuzz.py`.
"""

import contextlib
import io
import json
import os
import random
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from report_traces import write_trace

from minidnn import cli
from minidnn.comm import threads
from minidnn.console import run_program
from minidnn.data import open_dataset
from minidnn.train import parse, parser, train

LIMIT = 120  # seconds for one input
ABSURD = (
    "", "-1", "0", "1e308", "nan", "-inf", "2147483648", "99999999999999999999", "9" * 5000, "--", "-",
    "x" * 5000, "\n", "a\x1bb", "caf\udce9", "$\\frac{", "{}", "{layer}", "%s", "1,1", "²", "٣", "None",
    "ring", "owt", "/proc/x", "/proc/x.png", "/dev/full", "/dev/null", ".", "/", "~nouser/x", "a.txt",
    "a" * 300 + ".png", "data=2", "data=" + "9" * 5000, "fc*: o=ranks", "fc*: ranks@" + "9" * 5000,
)  # fmt: skip
TINY = (
    "--strategy data --width 0.03 --image 27 --images 8 --validation 4 --batch 4 --steps 1 --epochs 1 --quiet"
)


class Fault(AssertionError):
    """An input that did not end as it should."""


def ends_well(program, *args) -> int:
    """Run a program that prints and exits; its exit code, 0 or 2 with one line."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                program(*args)
                code = 0
            except SystemExit as end:
                code = end.code
    except BaseException as error:
        raise Fault(f"{type(error).__name__}: {str(error)[:300]}") from error
    finally:
        signal.alarm(0)
    lines = err.getvalue().splitlines()
    if code not in (0, None, 2) or (code == 2 and (len(lines) != 1 or not lines[0].startswith("error: "))):
        raise Fault(f"exit code {code}, {err.getvalue()[:500]!r}")
    return code or 0


class TooLong(BaseException):
    """Not for a program to catch."""


def _too_long(*_) -> None:
    raise TooLong(f"not over after {LIMIT} s")


# -- every option of every command ---------------------------------------------------------------------------


def commands(folder: Path) -> dict[str, list[str]]:
    """For each command what it needs beside the option that is tried."""
    small = "--width 0.03 --image 56".split()
    trace, other = (str(folder / name) for name in ("trace", "other"))
    return {
        "plan": [],
        "summary": [],
        "gradcheck": ["relu"],
        "collective": ["ring"],
        "data tiny-imagenet": ["--url", "http://127.0.0.1:1/x.zip", "--out", "out"],
        "data info": [trace],
        "trace": [trace, "-o", "out"],
        "compare": [trace, other],
        "profile": [*small, "--steps", "1", "--batch", "1"],
        "graph": [*small, "-o", "out/graph.svg"],
    }


def options(folder: Path) -> list[list[str]]:
    """Command lines: each option of each command, as its parser lists them, with each absurd value."""
    found = []
    for command, base in commands(folder).items():
        first, *rest = command.split()
        p = _sub(cli._parser(), first)
        p = _sub(p, rest[0]) if rest else p
        for action in p._actions:
            if action.nargs == 0 or action.dest in ("help", "data_command"):
                continue
            for value in ABSURD:
                given = [f"{action.option_strings[-1]}={value}"] if action.option_strings else ["--", value]
                known = base if action.option_strings else [x for x in base if x not in base[:1]]
                found.append([*command.split(), *known, *given])
    return found


def _sub(p, name):
    return next(a for a in p._actions if isinstance(a.choices, dict)).choices[name]


def training_options() -> list[list[str]]:
    """The same for the training programs."""
    flags = [a.option_strings[-1] for a in parser("", "data")._actions if a.nargs != 0 and a.dest != "help"]
    return [[*TINY.split(), f"{flag}={value}"] for flag in flags for value in ABSURD]


def train_program(flags: list[str]) -> None:
    def program() -> None:
        threads.run(1, lambda comm: train(comm, parse(parser("", "data"), flags)))

    run_program(program)


# -- files ---------------------------------------------------------------------------------------------------


def bend(rng: random.Random, data: bytes) -> bytes:
    """Bytes of a file with something done to them."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, how = rng.randrange(len(data) + 1), rng.randrange(6)
        if how == 0:
            data[at : at + rng.choice((1, 2, 4))] = rng.randbytes(rng.choice((1, 2, 4)))
        elif how == 1:
            data[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(data))))
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + rng.randrange(64)]
        elif how == 4:
            data[at:at] = data[: rng.randrange(64)]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


def pictures() -> list[bytes]:
    """One of each kind."""
    from PIL import Image

    found = []
    for mode in ("RGB", "L", "P", "RGBA", "CMYK", "I;16", "I", "F", "1", "LA"):
        for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA"):
            data = io.BytesIO()
            try:
                exif = Image.Exif()
                exif[0x0112] = 6
                more = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
                Image.new(mode, (20, 12)).save(data, kind, **more)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # there is no such picture
            found.append(data.getvalue())
    return found


NAMES = (
    "train/cat.{}.jpg", "train/dog.{}.jpg", "train//cat.{}.jpg", "//x", "a/" * 1200,
    "cat." + "9" * 5000 + ".jpg", "../cat.{}.jpg", "/etc/cat.{}.jpg", "train/", "train", "wnids.txt",
    "train/n1/images/n1_{}.JPEG", "val/", "", "val/images/v.JPEG", "val/val_annotations.txt", "words.txt",
    "train.zip", "__MACOSX/x", "träin/cat.{}.jpg", ".", "train/cat.{}.jpg/", "validation/dog.{}.jpg",
    "validation/cat.{}.jpg", "\\", "a\nb/cat.{}.jpg", "train/cat.²{}.jpg",
)  # fmt: skip


def make_zip(rng: random.Random, path: Path, kinds: list[bytes]) -> None:
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as file:
        whole = rng.random() < 0.5
        for i in range(3 if whole else 0):
            for pet in ("cat", "dog"):
                file.writestr(f"train/{pet}.{i}.jpg", kinds[0])
        for _ in range(rng.randrange(6)):
            name = rng.choice(NAMES).format(rng.randrange(4))
            text = rng.choice((b"n1\nn2\n", b"v.JPEG n1 0 0 1 1\n", "n1\ufeff\n".encode(), b"\x80", b""))
            info = zipfile.ZipInfo(name)
            file.writestr(info, rng.choice((text, rng.choice(kinds))))
    if rng.random() < 0.6:
        path.write_bytes(bend(rng, path.read_bytes()))


def opened(path: Path) -> None:
    def program() -> None:
        open_dataset(path, 8, False, 1)

    run_program(program)


def try_zip(rng: random.Random, folder: Path) -> int:
    path = folder / "in.zip"
    make_zip(rng, path, pictures_once())
    code = ends_well(cli.main, ["data", "info", str(path)])
    return max(code, ends_well(opened, path) if code == 0 else 2)


def try_picture(rng: random.Random, folder: Path) -> int:
    target = folder / "in" / "train"
    target.mkdir(parents=True, exist_ok=True)
    kinds = pictures_once()
    for pet in ("cat", "dog"):
        for i in range(2):
            (target / f"{pet}.{i}.jpg").write_bytes(kinds[0])
    data = rng.choice(kinds)
    (target / "dog.1.jpg").write_bytes(bend(rng, data) if rng.random() < 0.9 else data)
    return ends_well(opened, folder / "in")


_kinds: list[bytes] = []


def pictures_once() -> list[bytes]:
    if not _kinds:
        _kinds.extend(pictures())
    return _kinds


VALUES = (
    None, True, -1, 0, 1, 10**18, 10**400, 1.5, 1e308, -1e308, "", "x", "\n", "\ud800", "$\\frac{",
    "{layer}", "<img>", [], [0], [-1], [[]], {}, {"a": 1}, "send", "recv", "span", "message", "NaN", [None],
    [10**18],
)  # fmt: skip


def bend_json(rng: random.Random, value: object) -> object:
    """A value of JSON with something in it replaced, taken away or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        if rng.random() < 0.15:
            del value[key]
        elif rng.random() < 0.1:
            value[str(rng.choice(VALUES))] = value[key]
        else:
            value[key] = bend_json(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value, at = list(value), rng.randrange(len(value))
        value[at] = bend_json(rng, value[at])
        return value
    return rng.choice(VALUES)


def try_trace(rng: random.Random, folder: Path) -> int:
    trace = folder / "bent"
    trace.mkdir(exist_ok=True)
    whole = folder / "trace"
    for path in [*trace.iterdir()]:
        path.unlink()
    for path in whole.iterdir():
        (trace / path.name).write_bytes(path.read_bytes())
    path = trace / rng.choice(("run.json", "rank0.jsonl", "rank1.jsonl", "rank1.jsonl"))
    how = rng.random()
    if how < 0.15:
        path.write_bytes(bend(rng, path.read_bytes()))
    elif path.name == "run.json":
        path.write_text(json.dumps(bend_json(rng, json.loads(path.read_text()))))
    elif how < 0.25:
        (trace / rng.choice(("rank7.jsonl", "rankx.jsonl", "rank0.jsonl"))).write_bytes(path.read_bytes())
    else:
        lines = path.read_text().splitlines()
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.choice((0, len(lines) - 1, rng.randrange(len(lines)), rng.randrange(len(lines))))
            lines[at] = json.dumps(bend_json(rng, json.loads(lines[at])))
        path.write_text("\n".join(lines) + "\n")
    pictures = [] if rng.random() < 0.1 else ["--no-pictures"]
    first = ends_well(cli.main, ["trace", str(trace), "-o", str(folder / "out"), "--explain", *pictures])
    return max(first, ends_well(cli.main, ["compare", str(whole), str(trace)]))


WORDS = (
    "=", "\n", "[", "]", "{", "}", '"', "'", "#", ".", ",", "true", "nan", "inf", "-", "1e400", "9" * 400,
    "0x7f", "lr", "batch", "stages", "plot", "check", "data", "1979-05-27", "[[a]]", "[" * 2000,
    '"\\u0000"', "é", "8", "0.1",
)  # fmt: skip


def try_toml(rng: random.Random, folder: Path) -> int:
    path = folder / "run.toml"
    if rng.random() < 0.5:
        text = "".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12)))
    else:
        names = [a.dest for a in parser("", "data")._actions]
        value = rng.choice(
            ("1", "-1", "0.5", '"x"', "true", "9" * 400, "[1, 'fc6']", '"\\u0000"', "nan", "inf", "{}")
        )
        text = f"{rng.choice(names)} = {value}"
    path.write_bytes(text.encode() if rng.random() < 0.9 else bend(rng, text.encode()))

    def program() -> None:
        parse(parser("", "data"), ["--config", str(path)])

    return ends_well(run_program, program)


KINDS = {"zip": try_zip, "picture": try_picture, "trace": try_trace, "toml": try_toml}


def prepare(folder: Path) -> None:
    """What the inputs are made of, and the environment: a cache of their own, and a folder to run in."""
    write_trace(folder / "trace", 2, steps=2)
    write_trace(folder / "other", 2, steps=2, strategy="data")
    (folder / "work" / "out").mkdir(parents=True)
    os.environ["MINIDNN_CACHE"] = str(folder / "cache")
    os.chdir(folder / "work")


def outside(folder: Path) -> set[str]:
    """What lies beside the folders that may be written to."""
    mine = ("work", "out", "cache", "bent", "in", "in.zip", "run.toml")
    return {str(p) for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in mine}


def one(kind: str, seed: int, folder: Path) -> int:
    """One input; the exit code. Fault, naming kind and seed, where it did not end well."""
    before = outside(folder)
    try:
        code = KINDS[kind](random.Random(f"{kind} {seed}"), folder)
    except Fault as fault:
        raise Fault(f"{kind}, seed {seed}: {fault}") from fault.__cause__
    if outside(folder) != before:
        raise Fault(f"{kind}, seed {seed}: wrote {outside(folder) ^ before}")
    return code


def main(count: int, first: int) -> int:
    failed, ended = [], {}
    warnings.filterwarnings("ignore", "Duplicate name")  # of zipfile, where these zips are made
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        runs = [("option", lambda argv=argv: ends_well(cli.main, argv), argv) for argv in options(folder)]
        runs += [("training option", lambda f=f: ends_well(train_program, f), f) for f in training_options()]
        files = [(kind, seed) for seed in range(first, first + max(0, count // len(KINDS))) for kind in KINDS]
        runs += [(kind, lambda kind=kind, seed=seed: one(kind, seed, folder), seed) for kind, seed in files]
        for kind, run, what in runs:
            try:
                code = run()
            except Fault as fault:
                failed.append(f"{kind} {str(what)[:300]}: {str(fault)[:400]}")
                print(failed[-1], flush=True)
                code = -1
            ended.setdefault(kind, {}).setdefault(code, 0)
            ended[kind][code] += 1
        os.chdir("/")
    for kind, codes in ended.items():
        print(
            f"{kind:16} {sum(codes.values()):6} inputs, ended with "
            + ", ".join(f"{c}: {n}" for c, n in codes.items())
        )
    print(f"{len(runs)} inputs, files from seed {first}: {len(failed)} did not end well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3000, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    )
