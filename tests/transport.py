"""What goes through the transport of a communicator, counted there: for tests to compare the ledger with."""

from minidnn.comm.communicator import CONTROL


class Transport:
    """Counts from now on, of a communicator and those split from it from now on.

    ``totals``: messages sent, bytes sent, messages received, bytes received; and control messages sent.  What an
    all_reduce of the transport's own ("mpi") sends does not come by here.
    """

    def __init__(self, comm):
        self.counts, self.control = [0, 0, 0, 0], 0
        self._watch(comm)

    def _watch(self, comm):
        if comm is not None:
            comm._isend, comm._irecv = self._counting(comm._isend, 0), self._counting(comm._irecv, 2)
            part = comm._part
            comm._part = lambda *args: self._watch(part(*args))
        return comm

    def _counting(self, post, column):
        def counted(array, peer, tag):
            if tag >= CONTROL:
                self.control += column == 0
            else:
                self.counts[column] += 1
                self.counts[column + 1] += array.nbytes
            return post(array, peer, tag)

        return counted

    def totals(self):
        return tuple(self.counts)
