"""Worker processes of the gate: estimators may hang, crash or raise, and the others go on.

A worker judges one estimator after the other. The parent kills one whose estimator has used up its
time, notices one that died, and starts another for what is left. Foreign code is imported in the
workers only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from specbp.methods import METHODS
from specbp.testing import outcome
from specbp.testing.outcome import Check, broken
from verification import baseline, checks
from verification.checks import foreign
from verification.checks.settings import Settings
from verification.resolve import PREFIX, RATCHET, Request, ResolveError, resolve
from verification.terminable import terminable

STARTUP_LIMIT = 300.0  # seconds until a worker has imported everything
LAST_WORDS = 5.0  # seconds that a process which closed its pipe has to end by itself
PARTS = {"unit": ("DP",), "pull-request": ("DP", "S"), "nightly": ("DP", "S")}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
READY, FOUND, DONE, REFUSED = "ready", "found", "done", "refused"


class WorkerError(RuntimeError):
    """The gate itself failed: no worker could be started."""


@dataclass(frozen=True)
class Judged:
    """What was found about one estimator.

    Attributes:
        name: As it was named, without "method:".
        checks: In the order in which they were made.
        seconds: Wall seconds.
        gated: False for a method that is shown and not judged.
    """

    name: str
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0
    gated: bool = True

    @property
    def verdict(self) -> str:
        """The worst verdict of all checks."""
        return outcome.worst(self.checks, gated=self.gated)


def judge(request: Request, tier: str, settings: Settings) -> Iterator[list[Check]]:
    """Checks of one estimator, tier by tier, in this process and without a time limit.

    Raises:
        ResolveError: If the request names nothing that can be judged.
    """
    if request.name == RATCHET:
        yield baseline.check()
        return
    subject = resolve(request)
    if isinstance(subject, foreign.BlackBox):
        yield foreign.run(subject, settings)
        return
    for part in PARTS[tier]:
        yield checks.run(subject, part, settings)


@dataclass
class _Worker:
    """A process, and what it is doing."""

    process: Any
    connection: Connection
    deadline: float
    index: int | None = None
    started: float = 0.0
    found: list[Check] = field(default_factory=list)

    def kill(self) -> None:
        """End the process and what it started; nothing it does can prevent that."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Its own group, if it got as far as making one: until then it is in ours.
            if os.getpgid(self.process.pid) == self.process.pid:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


class Pool:
    """Hands requests to worker processes and replaces those that hang or die."""

    def __init__(
        self, requests: Sequence[Request], tier: str, settings: Settings, time_limit: float
    ):
        self.requests, self.tier, self.settings = requests, tier, settings
        self.time_limit = time_limit
        self.workers: list[_Worker] = []
        # What takes longest is started first, and does not run alone at the end.
        self.waiting = sorted(range(len(requests)), key=lambda i: _rank(requests[i]))

    def results(self, count: int) -> Iterator[tuple[int, Judged]]:
        """(index, what was found) of each request, in the order in which they are done.

        Raises:
            ResolveError: If a request names nothing that can be judged.
            WorkerError: If a worker cannot be started.
        """
        left = len(self.requests)
        with terminable():
            try:
                while left:
                    while len(self.workers) < min(count, left):
                        self._start()
                    for worker in self._events():
                        done = self._advance(worker)
                        if done is not None:
                            left -= 1
                            yield done
            finally:
                for worker in self.workers:
                    worker.kill()

    def _start(self) -> None:
        # Forked workers would inherit torch's thread pool in an undefined state.
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.tier, self.settings))
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours, time.monotonic() + STARTUP_LIMIT))

    def _events(self) -> list[_Worker]:
        """Workers that sent something, died, or have used up their time."""
        pause = min(w.deadline for w in self.workers) - time.monotonic()
        watched = [(w.connection, w.process.sentinel) for w in self.workers]
        wait([one for both in watched for one in both], max(pause, 0))
        now = time.monotonic()
        return [w for w in self.workers if w.connection.poll() or _is_dead(w) or w.deadline <= now]

    def _advance(self, worker: _Worker) -> tuple[int, Judged] | None:
        """Take one message, or bury the worker; returns what is finished by that."""
        if not worker.connection.poll():
            late = f"no result after {self.time_limit:g} s: --time-limit gives it longer"
            return self._bury(worker, _last_words(worker) if _is_dead(worker) else late)
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker, _last_words(worker))
        if kind == REFUSED:
            raise ResolveError(content)
        if kind == FOUND:
            worker.found += content
            return None
        finished = self._finished(worker, content) if kind == DONE else None
        if finished is not None and _is_foreign(self.requests[finished[0]]):
            # It may have changed anything in its process: matrices, torch's defaults.
            self.workers.remove(worker)
            worker.kill()
        else:
            self._assign(worker)
        return finished

    def _assign(self, worker: _Worker) -> None:
        """Give a worker that is free the next request, or let it go."""
        if not self.waiting:
            self.workers.remove(worker)
            worker.kill()
            return
        worker.index, worker.found = self.waiting.pop(0), []
        worker.started = time.monotonic()
        worker.deadline = worker.started + self.time_limit
        # A worker that has died since is seen by the next wait.
        with contextlib.suppress(BrokenPipeError):
            worker.connection.send(self.requests[worker.index])

    def _finished(self, worker: _Worker, gated: bool) -> tuple[int, Judged]:
        assert worker.index is not None
        seconds = time.monotonic() - worker.started
        name = short(self.requests[worker.index])
        return worker.index, Judged(name, tuple(worker.found), seconds, gated)

    def _bury(self, worker: _Worker, reason: str) -> tuple[int, Judged]:
        self.workers.remove(worker)
        worker.kill()
        if worker.index is None:
            raise WorkerError(f"A worker of the gate could not start: {reason}.")
        worker.found.append(broken("D0 result", "the estimator gives a result in time", reason))
        return self._finished(worker, gated=True)


def _work(connection: Connection, tier: str, settings: Settings) -> None:
    """A worker: judges the requests that come, until it is killed."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that what an estimator starts ends with it
    os.dup2(2, 1)  # what estimators print must not mix with the result on standard output
    _die_with_parent()
    torch.set_num_threads(1)
    with threadpool_limits(1), contextlib.suppress(EOFError, BrokenPipeError):
        connection.send((READY, None))
        while True:
            _answer(connection, connection.recv(), tier, settings)


def _answer(connection: Connection, request: Request, tier: str, settings: Settings) -> None:
    try:
        for found in judge(request, tier, settings):
            connection.send((FOUND, found))
    except ResolveError as error:
        connection.send((REFUSED, str(error)))
        return
    except BaseException as error:  # sys.exit in an estimator is no reason to lose the others
        reason = f"raised {type(error).__name__}: {error}"
        connection.send((FOUND, [broken("D0 result", "the checks can be carried out", reason)]))
    row = METHODS.get(short(request))
    connection.send((DONE, row is None or row.claims.gated))


def _die_with_parent() -> None:
    if sys.platform == "linux":  # also where the estimator never lets another thread run
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    Thread(target=_outlive, daemon=True).start()


def _outlive() -> None:
    """End this process and what it started as soon as the parent has ended."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)


def _is_foreign(request: Request) -> bool:
    return request.name != RATCHET and not request.name.startswith(PREFIX)


def _is_dead(worker: _Worker) -> bool:
    return worker.process.exitcode is not None


def _last_words(worker: _Worker) -> str:
    worker.process.join(LAST_WORDS)
    code = worker.process.exitcode
    if code is None:
        return "the process closed its connection"
    return f"the process died: {_cause(code)}"


def _cause(code: int) -> str:
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def _rank(request: Request) -> int:
    row = METHODS.get(short(request))
    order = ("krylov", "quadrature", "tr p(A)", "adaptive", "model", "tr A", "exact")
    return order.index(row.claims.expectation) if row else 0


def short(request: Request) -> str:
    """Name of what is judged, as it is shown."""
    return request.name.removeprefix(PREFIX)
