"""Ray for the duration of a job: joins a running cluster or starts one; a cluster that the caller started is left alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.core.errors import UsageError, missing_package

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def session(address: str | None, cpus: int) -> Iterator[Any]:
    """The ray module, connected. UsageError if the cluster at `address` does not respond."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # a cluster of this process alone, on loopback, for which no token exists
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        import ray
    except ImportError:
        raise missing_package("ray", "running on Ray", "ray") from None
    if ray.is_initialized():
        yield ray
        return
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}}
    options: dict[str, Any] = {"address": address} if address else {"num_cpus": max(cpus + 1, 2), "include_dashboard": False}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env=environment, **options)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {address}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()
