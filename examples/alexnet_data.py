"""AlexNet by data parallelism: every rank holds the whole network and works on its part of the batch.

    mpirun -n 2 python examples/alexnet_data.py

After backward the ranks hold different gradients; they are summed, so that all ranks make the same step
and stay equal bit for bit.  That sum is all the communication there is, but it is as large as the network:
compare the closing table's bytes with those of alexnet_owt.py.

  --buckets 0            the naive form: one all_reduce per parameter, after backward
  --buckets 25           (default) sums of 25 MiB, each started while backward still runs
  --all-reduce tree      another algorithm: doubling, halving, tree, direct, hierarchical, mpi, auto
  --sharded-momentum     reduce_scatter, each rank updates its share, all_gather
  --fc-gradients factors gather what the fully connected gradients are products of: far fewer bytes
"""

from minidnn.train import run

if __name__ == "__main__":
    run(__doc__, strategy="data")
