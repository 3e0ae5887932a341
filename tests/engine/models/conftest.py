"""A program folder and hub cache of the test's own, and one tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_engine.config import ModelSettings
from qlora_engine.device import DevicePlan, plan_device
from tests.support.tiny import make_tiny


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "llama")


@pytest.fixture(scope="session")
def cpu() -> DevicePlan:
    return plan_device(ModelSettings(device="cpu"))
