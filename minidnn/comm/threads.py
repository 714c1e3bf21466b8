"""Ranks as threads of one process: for tests, notebooks and teaching.

Messages are matched by (sender, receiver, tag) in the order in which they were posted, as in MPI, so
results do not depend on how the threads are scheduled.  A deadlock is found at the moment it arises,
without a timeout: a message is matched when its second half is posted, so a rank that waits can only be
woken by one that does not, and when every rank that has not finished waits, none of them ever will.  All of
them then get a :class:`DeadlockError` that says who waits for whom, and for what.

>>> from minidnn.comm import threads, collectives
>>> threads.run(3, lambda comm: collectives.all_reduce(comm, np.array([1.0, comm.rank])))
[array([3., 3.]), array([3., 3.]), array([3., 3.])]
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from minidnn.backend import array_module

from .communicator import CommunicationError, Communicator, DeadlockError, Engine, ProtocolError
from .ledger import Ledger


class Stopped(BaseException):
    """Ends a rank because another one failed; never the reason of a failure itself."""


class Request:
    """One half of a message."""

    __slots__ = ("array", "done", "error", "key", "kind", "note")

    def __init__(self, kind, array, key):
        self.kind, self.array, self.key = kind, array, key
        self.done, self.error, self.note = False, None, None

    def __str__(self):
        _, source, dest, tag = self.key
        verb = f"to send to rank {dest}" if self.kind == "send" else f"to receive from rank {source}"
        return f"{verb}: {self.array.nbytes} bytes, tag {tag}" + (f" ({self.note})" if self.note else "")


class Hub:
    """What the threads share: messages not yet matched, and who waits for what."""

    def __init__(self, size: int, rendezvous: bool = False):
        self.size, self.rendezvous = size, rendezvous
        self.lock = threading.Lock()
        self.conditions = [threading.Condition(self.lock) for _ in range(size)]
        self.receives: dict[tuple, deque[Request]] = {}
        self.sends: dict[tuple, deque[Request]] = {}
        self.waiting: list[Sequence | None] = [None] * size
        self.finished = [False] * size
        self.failure: BaseException | None = None

    def post(self, request: Request) -> Request:
        """Match with the other half if that is there, else queue; the thread that matches copies."""
        own, other = (self.sends, self.receives) if request.kind == "send" else (self.receives, self.sends)
        buffered = request.kind == "send" and not self.rendezvous
        if buffered and request.key not in self.receives:  # the caller may go on, and even change its array
            request.array = request.array.copy()
        with self.lock:
            if self.failure is not None:
                raise Stopped
            queue = other.get(request.key)
            if queue is None:
                own.setdefault(request.key, deque()).append(request)
                request.done = buffered
                return request
            partner = queue.popleft()
            if not queue:
                del other[request.key]
        send, receive = (request, partner) if request.kind == "send" else (partner, request)
        if send.array.size != receive.array.size or send.array.dtype != receive.array.dtype:
            receive.error = send  # put into words later, when both notes are there
        else:
            array_module(receive.array).copyto(receive.array, send.array)
        with self.lock:
            send.done = receive.done = True
            self.conditions[send.key[1]].notify()
            self.conditions[receive.key[2]].notify()
        return request

    def wait_any(self, rank: int, groups: Sequence[Sequence[Request]]) -> list[int]:
        with self.lock:
            while True:
                if self.failure is not None:
                    raise Stopped
                ready = [i for i, group in enumerate(groups) if all(request.done for request in group)]
                if ready:
                    self.waiting[rank] = None
                    break
                self.waiting[rank] = groups
                self.look_for_deadlock()
                if self.failure is None:
                    self.conditions[rank].wait()
        for i in ready:
            self.check(groups[i])
        return ready

    def check(self, requests) -> None:
        for request in (request for request in requests if request.error is not None):
            mine, theirs, (_, source, dest, _) = request.array, request.error.array, request.key
            raise ProtocolError(
                f"rank {dest} receives {mine.size} {mine.dtype} from rank {source} ({request.note}), "
                f"which sent {theirs.size} {theirs.dtype} ({request.error.note})"
            )

    def look_for_deadlock(self) -> None:
        """With the lock held: fail if every rank that has not finished waits for what cannot come."""
        stuck = []
        for rank, groups in enumerate(self.waiting):
            if self.finished[rank]:
                continue
            if groups is None or any(all(request.done for request in group) for group in groups):
                return
            open_requests = [next(r for r in group if not r.done) for group in groups]
            stuck.append(f"rank {rank} waits " + "; and ".join(map(str, open_requests)))
        if not stuck:
            return
        stuck += [f"rank {rank} has finished" for rank in range(self.size) if self.finished[rank]]
        stuck += self.left_over()
        self.fail(DeadlockError("deadlock: every rank waits for another\n  " + "\n  ".join(stuck)))

    def left_over(self) -> list[str]:
        """Messages that were sent and that nobody received, in words."""
        requests = [request for queue in self.sends.values() for request in queue]
        return [f"never received from rank {request.key[1]}: {request}" for request in requests]

    def fail(self, error: BaseException) -> None:
        """With the lock held: the first failure wins, and everybody who waits is woken to end."""
        if self.failure is None:
            self.failure = error
        for condition in self.conditions:
            condition.notify_all()

    def finish(self, rank: int, error: BaseException | None) -> None:
        with self.lock:
            self.finished[rank] = True
            if error is not None:
                self.fail(error)
            elif self.failure is None and all(self.finished):
                if left := self.left_over():
                    self.fail(ProtocolError("messages were sent and not received\n  " + "\n  ".join(left)))
            elif self.failure is None:
                self.look_for_deadlock()


class ThreadCommunicator(Communicator):
    """A group of ranks of a :class:`Hub`."""

    def __init__(self, hub: Hub, rank: int, ranks, nodes, context=(), engine: Engine | None = None):
        super().__init__(rank, ranks, nodes, engine)
        self.hub, self.context = hub, context

    def _isend(self, array, dest, tag):
        key = (self.context, self.ranks[self.rank], self.ranks[dest], tag)
        return self.hub.post(Request("send", array, key))

    def _irecv(self, array, source, tag):
        key = (self.context, self.ranks[source], self.ranks[self.rank], tag)
        return self.hub.post(Request("recv", array, key))

    def _wait_any(self, groups):
        return self.hub.wait_any(self.ranks[self.rank], groups)

    def _test(self, requests):
        if self.hub.failure is not None:
            raise Stopped
        if not all(request.done for request in requests):
            return False
        self.hub.check(requests)
        return True

    def abort(self, code=1):
        with self.hub.lock:
            self.hub.fail(CommunicationError(f"rank {self.ranks[self.rank]} ended the run with code {code}"))
        raise Stopped

    def _part(self, color, members, sequence):
        if color is None:
            return None
        ranks, nodes = [self.ranks[m] for m in members], [self.nodes[m] for m in members]
        context = (*self.context, sequence, color)
        return ThreadCommunicator(self.hub, members.index(self.rank), ranks, nodes, context, self.engine)


def world_of(hub: Hub, rank: int, nodes: Sequence[int] | None = None) -> ThreadCommunicator:
    """The communicator of all ranks of a hub, as the given rank sees it."""
    comm = ThreadCommunicator(hub, rank, range(hub.size), (0,) * hub.size if nodes is None else nodes)
    comm.ledger = Ledger(rank, hub.size)
    return comm


def run(
    size: int,
    main: Callable,
    *args,
    timeout: float | None = None,
    rendezvous: bool = False,
    debug: bool = False,
    nodes: Sequence[int] | None = None,
) -> list:
    """Run ``main(comm, *args)`` on ``size`` ranks and return their results in order of rank.

    What a rank raises first is raised here, and ends the others; so do a :class:`DeadlockError` when all that have
    not finished wait, and a :class:`ProtocolError` for a message that does not fit or was never received.

    Parameters
    ----------
    timeout : float, optional
        Seconds after which ranks that still compute are given up, with a :class:`TimeoutError` that says
        where each of them is.  Deadlocks do not need it.
    rendezvous : bool
        A send is complete only when it has been received, as MPI may do with any message; otherwise sends are
        buffered, as MPI may do too.  A correct program runs either way.
    debug : bool
        Compare headers before every collective and message.
    nodes : sequence of int, optional
        The node of each rank, for "hierarchical" (default: one node).
    """
    hub, results = Hub(size, rendezvous), [None] * size

    def body(rank):
        comm = world_of(hub, rank, nodes)
        comm.debug = debug
        error = None
        try:
            results[rank] = main(comm, *args)
        except Stopped:
            pass
        except BaseException as raised:
            raised.add_note(f"(raised on rank {rank} of {size})")
            error = raised
        finally:
            hub.finish(rank, error)

    ranks = [threading.Thread(target=body, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    for thread in ranks:
        thread.start()
    deadline = None if timeout is None else monotonic() + timeout
    for thread in ranks:
        thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
        if thread.is_alive():
            frames = sys._current_frames()
            places = [
                f"{other.name}:\n" + "".join(traceback.format_stack(frames[other.ident])[-3:])
                for other in ranks
                if other.is_alive() and other.ident in frames
            ]
            with hub.lock:
                hub.fail(TimeoutError(f"not finished after {timeout} s\n" + "".join(places)))
            break
    if hub.failure is not None:
        raise hub.failure
    return results
