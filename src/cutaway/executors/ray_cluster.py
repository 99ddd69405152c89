"""The executor on a Ray cluster: actors that load the model once. Only chunks of text and receipts pass through Ray.

Shards go from the workers to the folder that all of them see. Without an address a cluster of this machine is started, and
ended with the run.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from cutaway.errors import ClusterUnreachable, ConfigError, PackageNeeded
from cutaway.executors.driving import Died, Done, Job, SetAside, drive

logger = logging.getLogger(__name__)

REACH = 5.0  # seconds in which the head of a cluster must answer
QUIET = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Args:
        address: of a running cluster (`auto`, `host:port`, `ray://host:port`); None: one of this machine is started.
        workers: how many actors; None: one for each processor that the cluster has.
        cpus: processors that each of them takes.

    Raises:
        PackageNeeded: Ray is not installed.
        ClusterUnreachable: nothing answers at the address.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1.0
    leader: ClassVar[bool] = True
    travels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"ray with {self.workers} workers: there must be one at least")

    def __str__(self) -> str:
        return f"Ray at {self.address or 'this machine'}"

    def run(self, job: Job, units: Iterable[Any], done: Done) -> list[SetAside]:
        """See `Executor.run`."""
        with connected(self.address, self.workers) as ray:
            count = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / self.cpus))
            logger.info("%s", line(ray, count))
            return drive(_Actors(ray, job, self.cpus), count, units, done)


def imported() -> Any:
    """The package.

    Raises:
        PackageNeeded: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PackageNeeded("executor=ray needs the package ray: pip install 'cutaway[ray]'") from error
    return ray


@contextmanager
def connected(address: str | None, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster; one that was connected before stays so.

    Raises:
        ClusterUnreachable: nothing answers.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        _answers(address)
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": workers or os.cpu_count()}
        address = "local"
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        why = str(error).strip().split("\n")[0]
        raise ClusterUnreachable(f"no Ray cluster answers at {address!r} ({why}); `ray status` says what runs where") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Whether something listens at `host:port`: Ray itself waits for minutes before it says that nothing does.

    Raises:
        ClusterUnreachable: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except OSError as error:
        raise ClusterUnreachable(f"no Ray cluster answers at {address!r} ({error}); `ray status` says what runs where") from error


def line(ray: Any, workers: int) -> str:
    """What runs where, in one line."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    hosts = ", ".join(sorted({str(node["NodeManagerHostname"]) for node in nodes}))
    seen = (
        f"dashboard http://{url}" if (url := _dashboard(ray)) else f"no dashboard, head {ray.get_runtime_context().gcs_address}"
    )
    return f"Ray: {workers} worker{'s' * (workers != 1)} on {len(nodes)} node{'s' * (len(nodes) != 1)} ({hosts}); {seen}"


def _dashboard(ray: Any) -> str:
    return str((getattr(getattr(ray, "_private", None), "worker", None) and ray._private.worker.get_dashboard_url()) or "")


class Worker:
    """What an actor runs."""

    def __init__(self, job: Job):
        self.job, self.compute = job, None

    def work(self, unit: Any) -> Any:
        """A chunk's receipt."""
        if self.compute is None:
            self.compute = self.job.start()  # type: ignore[assignment]
        return self.compute(unit)  # type: ignore[misc]


class _Actors:
    def __init__(self, ray: Any, job: Job, cpus: float):
        self.ray, self.job = ray, job
        self.kind = ray.remote(num_cpus=cpus, max_restarts=0)(Worker)

    def open(self) -> Any:
        return self.kind.remote(self.job)

    def submit(self, lane: Any, unit: Any) -> Any:
        return lane.work.remote(unit)

    def wait(self, tickets: list[Any]) -> list[Any]:
        done, _ = self.ray.wait(tickets, num_returns=1)
        return list(done)

    def outcome(self, ticket: Any) -> tuple[Any, BaseException | None]:
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            return self.ray.get(ticket), None
        except RayActorError as error:
            return None, Died(f"its worker ended ({str(error).strip().splitlines()[0]})")
        except RayTaskError as error:
            return None, error.cause if isinstance(error.cause, Exception) else error
        except RayError as error:
            return None, error

    def close(self, lane: Any) -> None:
        self.ray.kill(lane)
