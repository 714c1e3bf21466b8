"""What goes through the transport of a communicator, counted there: for tests to compare the ledger with."""

from minidnn.comm.communicator import CONTROL


class Transport:
    """Counts from now on: messages sent, bytes sent, messages received, bytes received; and control messages sent."""

    def __init__(self, comm):
        self.counts, self.control = [0, 0, 0, 0], 0
        comm._isend, comm._irecv = self._counting(comm._isend, 0), self._counting(comm._irecv, 2)

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
