"""The stand-in driver, compiled once, and waiting for what threads do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.support import fake_nvml
from tests.support.fake_nvml import FakeDriver


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return FakeDriver(fake_nvml.compiled(tmp_path_factory.mktemp("driver")))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return FakeDriver(fake_nvml.compiled(tmp_path_factory.mktemp("old-driver"), "-DOLD_DRIVER"))


@pytest.fixture
def driver(library: FakeDriver) -> Iterator[FakeDriver]:
    """nvidia-ml-py talks to the stand-in; one healthy GPU."""
    with fake_nvml.bound(library) as bound:
        yield bound
    assert library.misuses == 0, "a handle of an earlier start was used"


@pytest.fixture
def old_driver(old_library: FakeDriver) -> Iterator[FakeDriver]:
    """A driver without the calls that came after 2020."""
    with fake_nvml.bound(old_library) as bound:
        yield bound


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for `condition`, and tell how long it took; fails when it never comes."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never came"
        time.sleep(0.005)
    return time.monotonic() - began
