"""Micro-batches drawn ahead of their step, in a thread; what is drawn depends on their number alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch


def usual_ahead(given: int | None, device: torch.device) -> int:
    """Number of micro-batches to draw ahead: what is given, or 1 beside a GPU and 0 on a processor.

    There the step uses every core, so that nothing is left to hide reading behind, and a second thread costs:
    torch's operators start a team of OpenMP threads for it, which wait for work by spinning.
    `torch.set_num_threads` in that thread would set the number for every thread begun afterwards.
    """
    return int(device.type != "cpu") if given is None else given


@contextmanager
def drawn_ahead(draw: Callable[[int], Any], first: int, end: int, ahead: int) -> Iterator[Callable[[], Any]]:
    """Gives a function that returns draw(first), draw(first + 1), ... up to draw(end - 1), with at most
    `ahead` of them waiting.

    An exception of `draw` comes out where its result is asked for.
    """
    numbers = iter(range(first, end))
    if not ahead:
        yield lambda: draw(next(numbers))
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as reader:

        def refill() -> None:
            waiting.extend(reader.submit(draw, number) for number in islice(numbers, ahead - len(waiting)))

        def following() -> Any:
            refill()
            found = waiting.popleft().result()
            refill()
            return found

        try:
            yield following
        finally:
            for future in waiting:
                future.cancel()
