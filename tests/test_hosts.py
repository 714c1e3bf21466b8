"""Two hosts on one machine: network namespaces with a link of 1 Gbit/s, MPI over TCP.

The interfaces' own byte counters must agree with the ledger. Skipped where the namespaces cannot be made.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mpi import MPIRUN, needs_mpich

ROOT = Path(__file__).parents[1]
TOOLS = ROOT.parent / "shared" / "tools" / "hosts"


@pytest.fixture(scope="module")
def hosts():
    if not (TOOLS / "hosts").exists():
        pytest.skip("the tool that makes hosts is not here")
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    _hosts("down", check=False)  # what a killed run left behind
    made = _hosts("up", "1gbit", check=False)
    if made.returncode or "h1" not in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout:
        _hosts("down", check=False)
        pytest.skip(f"no network namespaces on this machine: {made.stderr.strip()[:200]}")
    yield
    _hosts("down", check=False)


def _hosts(verb, *rate, check=True):
    try:
        return subprocess.run(
            [TOOLS / "hosts", verb, "2", *rate], capture_output=True, text=True, timeout=30, check=check
        )
    except FileNotFoundError as error:  # no iproute2
        pytest.skip(str(error))


def _sent(host):
    text = subprocess.run(
        ["ip", "netns", "exec", host, "cat", "/proc/net/dev"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    ).stdout
    return int(re.search(r"eth0:\s*(.*)", text).group(1).split()[8])


@needs_mpich
@pytest.mark.parametrize("example", ["alexnet_data.py", "alexnet_owt.py", "alexnet_layer_split.py"])
def test_interfaces_count_what_the_ledger_counts(hosts, example):
    before = [_sent("h0"), _sent("h1")]
    command = [MPIRUN, "-launcher", "ssh", "-launcher-exec", TOOLS / "nsh", "-localhost", "10.77.0.254"]
    command += [
        "-hosts",
        "10.77.0.1,10.77.0.2",
        "-n",
        "2",
        "-ppn",
        "1",
        sys.executable,
        ROOT / "examples" / example,
    ]
    command += "--width 0.25 --epochs 1 --steps 3 --images 64 --quiet --validation 0".split()
    network = {
        "MPICH_CH4_NETMOD": "ofi",
        "FI_PROVIDER": "tcp",
        "FI_TCP_IFACE": "eth0",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **network},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 2 hosts" in done.stdout
    per_step = re.search(r"^all +\S+ +(\S+) (\S+) +\S+ \S+ +equal$", done.stdout, re.MULTILINE)
    unit = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[per_step.group(2)]
    ledger = 3 * float(per_step.group(1)) * unit
    sent = _sent("h0") + _sent("h1") - sum(before)
    # the table's rounding, headers of the protocols, set-up and the weights' digests
    assert 0.98 * ledger < sent < 1.05 * ledger + 200_000
