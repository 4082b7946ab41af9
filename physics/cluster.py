"""Run tasks on a Dask cluster: submit as workers become free, return results as they finish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from physics.errors import PhysicsError

CONNECT_S = 10.0
# Tasks in flight per worker: enough that none waits, few enough that finished results do not pile up.
TASKS_A_THREAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(PhysicsError, RuntimeError):
    """No cluster can be reached, or the connection was lost."""


def on_cluster(
    scheduler: str, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    """Run ``work(item)`` for each of ``items`` on the cluster; yield results in the order of completion.

    A task whose worker dies is given to another worker.

    Args:
        scheduler: Address of a Dask scheduler, tcp://HOST:PORT.
        work: Function of a module that is installed on the workers.

    Raises:
        ClusterError: The cluster cannot be reached or was lost. Errors of ``work`` are passed on.
    """
    try:
        from distributed import Client, as_completed
        from distributed.client import FutureCancelledError
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise ClusterError("--scheduler needs Dask; pip install -e '.[cluster]'") from None
    # Silence Dask's tracebacks about a lost scheduler; the error below says it in one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{scheduler}: no Dask scheduler answers ({_first_line(error)}); start one with `dask scheduler`"
        ) from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ClusterError(
                f"{scheduler}: has no workers; start some with `dask worker {scheduler} --nthreads 1`"
            )
        waiting = iter(items)
        running: dict[Any, Item] = {}

        def give() -> Any:
            """Submit the next item; return None if there is none."""
            for item in waiting:
                future = client.submit(work, item, pure=False)
                running[future] = item
                return future
            return None

        first = [future for future in (give() for _ in range(TASKS_A_THREAD * threads)) if future]
        done = as_completed(first, loop=client.loop)
        try:
            for future in done:
                result = future.result()
                item = running.pop(future)
                future.release()
                if more := give():
                    done.add(more)
                yield item, result
        except (CommClosedError, FutureCancelledError, KilledWorker) as error:
            raise ClusterError(
                f"{scheduler}: went away, or lost its workers ({_first_line(error)})"
            ) from None
        except ImportError as error:
            raise ClusterError(
                f"{scheduler}: its workers lack {error.name}; install there what is here"
            ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
