"""What Ray is asked for, on a stand-in for it: a cluster of its own or the one that is named, and nothing of the caller's is ended."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from refusal import naming

from runtime.cluster.ray_session import session
from runtime.core.errors import UsageError, UserError

ROOT = str(Path(__file__).resolve().parents[3])
VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AUTH_MODE", "PYTHONPATH")


class Ray(ModuleType):
    """running: whether it is connected; asked: options of each `init`; error: what that raises."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.running, self.asked, self.error = False, [], None

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options) -> None:
        self.asked.append(options)
        if self.error:
            raise self.error
        self.running = True

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture
def ray(monkeypatch) -> Ray:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    ray = Ray()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def common(path: str = ROOT) -> dict:
    """Ray's own log and what its workers print stay off the terminal, and the workers find these packages."""
    return {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}


@pytest.mark.parametrize(("workers", "cpus"), [(0, 2), (1, 2), (2, 3), (8, 9)])
def test_a_cluster_of_this_process_has_a_cpu_a_worker_and_one_more(ray, workers, cpus):
    with session(None, workers) as got:
        assert got is ray and ray.running
    assert ray.asked == [common() | {"num_cpus": cpus, "include_dashboard": False}]
    assert not ray.running
    assert [os.environ.get(name) for name in VARIABLES[:3]] == ["0", "0", "disabled"]


def test_a_cluster_that_is_named_keeps_its_size_and_its_tokens(ray, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with session("host:6379", 4):
        pass
    assert ray.asked == [common(f"{ROOT}{os.pathsep}/mine") | {"address": "host:6379"}]
    assert "RAY_AUTH_MODE" not in os.environ and os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_it_is_left_where_the_work_fails_and_the_caller_s_own_is_left_alone(ray):
    with pytest.raises(ValueError, match="the work"), session(None, 1):
        raise ValueError("the work")
    assert not ray.running
    ray.running, ray.asked = True, []
    with session(None, 1) as got:
        assert got is ray
    assert ray.running and not ray.asked


@pytest.mark.parametrize("error", [ConnectionError("nobody answers"), ValueError("nobody answers")])
def test_a_cluster_that_does_not_answer_is_said(ray, error):
    ray.error = error
    with pytest.raises(UsageError, match="host:6379"), session("host:6379", 1):
        pass


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=naming('"ray"', "st-gridpool[ray]")), session(None, 1):
        pass
