"""AlexNet by layer split: consecutive layers on each rank, activations up the ranks, gradients down.

    mpirun -n 2 python examples/alexnet_layer_split.py --micro-batches 4 --schedule 1f1b

With one micro-batch only one rank works at a time.  With more, the ranks work on different ones, and the
idle share of the time falls to (p - 1)/(m + p - 1) for p equal stages and m micro-batches.

  --schedule naive|gpipe|1f1b|zb-h1   the order of forwards and backwards
  --stages conv3,fc6                  the layers that begin the second and third rank's stage, of three
  --balance measured                  cut where measured, not estimated, costs balance
"""

from minidnn.train import run

if __name__ == "__main__":
    run(__doc__, strategy="layer_split")
