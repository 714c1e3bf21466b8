"""AlexNet by One Weird Trick, every message accounted for.

    mpirun -n 2 python examples/alexnet_owt.py

The convolutions of AlexNet hold 4 % of its weights and do 92 % of its arithmetic; the fully connected
layers are the other way round.  So (Krizhevsky 2014, arXiv 1404.5997) split the convolutions by *samples*
and the fully connected layers by *features*: then neither the large weights nor their gradients ever
travel.  What travels instead, and this program prints and counts it to the byte:

  forward    all_gather      each rank's image features, once through the convolutions: every rank gets all
  backward   reduce_scatter  the gradients of those features: each rank's share is summed and comes home
  between    all_gather      fc6's half of the features for fc7, fc7's for fc8, fc8's logits for the loss
  at the end all_reduce      the gradients of the convolutions: their small weights are on every rank

It trains on drawn shapes, so nothing is downloaded; two ranks on two cores take half a minute and reach
90 % and more on the validation images.  Worth trying next:

  --check --dtype float64 --steps 3 --epochs 1    the same training in one process beside it, compared
  --data dogs-vs-cats.zip --image 128             real photographs, from the zip
  --scheme b --fc-update each                     the paper's pipelined variants
  --trace out --explain                           one step in words, a timeline, a report
  --mesh data=2,stage=2,model=2                   on 8 ranks: pipelined, with two data-parallel halves
  --split "conv*: h=model; fc*: o=model" --mesh model=2    the rows of the images in place of samples
"""

from itertools import groupby

from minidnn.launch import launch
from minidnn.train import Session, Trainer, parse, parser


def main(comm):
    # Every rank runs this same program; `comm.rank` tells them apart.  Bad input ends all of them.
    args = parse(parser(__doc__, strategy="owt"))
    session = Session(comm, args)
    say = session.say  # prints on rank 0 only
    say(session.describe())

    # How each layer is split is all there is to a strategy: which letters of its dimensions (n: samples,
    # o: output features, h: height, ...) go over which axes of the mesh of ranks.
    say(f"mesh {session.strategy.mesh}")
    for split, layers in groupby(session.strategy.splits.items(), lambda item: str(item[1])):
        say(f"{split or 'whole':>20}: {', '.join(name for name, _ in layers)}")

    # From the splits the planner works out which communication layers go between, and with them
    # every message of a step.  Nothing has been sent yet.
    plan = session.executor.plan
    if not args.quiet:
        say(plan, "\n")

    with Trainer(session) as trainer:  # progress bar, validation, and the tables at the end
        for epoch in range(args.epochs):
            for batch in trainer.batches(epoch):  # this rank's share of the images, the whole batch's labels
                # Forward on this rank's images, exchange, forward on this rank's features; the loss; the
                # same way back with the adjoint messages; gradients summed while backward still runs; update.
                result = session.executor.step(batch.images, batch.labels)
                trainer.record(batch, result)
            trainer.validate(epoch)
    # At the end of the block: where the time went, and the ledger of all messages against the plan; with
    # --check the last line compares losses and weights with those of one process.


if __name__ == "__main__":
    launch(main)
