"""Work beside the caller that nobody waits for at the end: a line may be silent for minutes, and who interrupts a
transfer wants to go."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Daemons:
    """Some threads that take calls in turn. They end with :meth:`abandon`, or with the process, whatever they do."""

    def __init__(self, count: int, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_abandoned = False
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, call: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> Future[_T]:
        """Have a call made; what it gives, or raises."""
        future: Future[_T] = Future()

        def made() -> None:
            try:
                future.set_result(call(*arguments, **options))
            except BaseException as problem:  # whoever waits for it is told
                future.set_exception(problem)

        self._calls.put(made)
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._is_abandoned:
            call()

    def abandon(self) -> None:
        """No more calls are made; nobody is waited for."""
        self._is_abandoned = True
        for _ in range(self._count):
            self._calls.put(None)
