"""Where managed memory is: known without pressure, estimated under it against the baseline, unknown with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine.monitor import residency
from qlora_engine.monitor.residency import FLOOR_BYTES, ResidencyMeter, gpu_of_run, same_uuid
from tests.engine.monitor.samples import GIB, MIB, gpu, gpu_sample

CONTEXT = GIB // 2


class Card:
    """A 24 GiB GPU of which torch reserves some and managed pages take what is left; the rest of them is on the CPU."""

    def __init__(self, **gpu_changes: Any) -> None:
        self.meter = ResidencyMeter("linux")
        self.changes = gpu_changes
        self.clock = 1000.0

    def look(
        self, reserved: int, managed: int, *, others: int = 0, on_gpu: int | None = None, **paged: Any
    ) -> Any:
        """The "paged" block after a sample; `on_gpu` is the truth, what fits when not given."""
        total = 24 * GIB
        fits = max(0, total - reserved - others - CONTEXT)
        resident = min(managed, fits) if on_gpu is None else on_gpu
        used = reserved + others + CONTEXT + resident
        self.clock += 0.25
        device = gpu(
            used_bytes=used, free_bytes=total - used, own_bytes=reserved + CONTEXT - 100 * MIB, others_bytes=others,
            unaccounted_bytes=100 * MIB + resident, unaccounted_spread_bytes=0,
        ) | self.changes  # fmt: skip
        sample = gpu_sample(time=self.clock, gpus=[device], paged={"managed_bytes": managed, **paged})
        sample["torch"]["reserved_bytes"] = reserved
        self.truth = managed - resident
        self.meter.complete(sample)
        return sample["paged"]


def test_nothing_managed_is_nothing_paged() -> None:
    found = Card().look(10 * GIB, 0)
    assert (found["on_gpu_bytes"], found["on_cpu_bytes"], found["residency_kind"]) == (0, 0, "accounted")


def test_without_pressure_the_answer_is_zero_and_says_why() -> None:
    card = Card()
    card.look(10 * GIB, 0)
    found = card.look(10 * GIB, 2 * GIB)
    assert (found["on_gpu_bytes"], found["on_cpu_bytes"], found["uncertainty_bytes"]) == (2 * GIB, 0, 0)
    assert found["residency_kind"] == "accounted"
    assert found["residency_reason"] == "the GPU always had at least 11.50 GiB free, so nothing had to move"


@pytest.mark.parametrize("reserved_gib", [20, 21.5, 22, 23, 23.5])
def test_under_pressure_it_is_estimated_within_its_uncertainty(reserved_gib: float) -> None:
    card = Card()
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB)
    reserved = int(reserved_gib * GIB)
    card.look(reserved, 2 * GIB)
    found = card.look(reserved, 2 * GIB)
    assert abs(found["on_cpu_bytes"] - card.truth) <= found["uncertainty_bytes"]
    assert found["on_gpu_bytes"] + found["on_cpu_bytes"] == 2 * GIB
    is_tight = 24 - reserved_gib - 2 - 0.5 < 1
    assert found["residency_kind"] == ("estimated" if is_tight else "accounted")
    if is_tight:
        assert found["uncertainty_bytes"] == FLOOR_BYTES


def test_pages_that_move_are_seen_in_one_sample_with_their_rate() -> None:
    card = Card()
    card.look(21 * GIB, 0)
    card.look(21 * GIB, 2 * GIB)
    gone = card.look(21 * GIB, 2 * GIB, on_gpu=GIB)
    assert gone["on_cpu_bytes"] == GIB
    assert gone["to_cpu_bytes_per_second"] == 4 * GIB  # in a quarter of a second
    assert gone["to_gpu_bytes_per_second"] == 0
    back = card.look(21 * GIB, 2 * GIB, on_gpu=2 * GIB)
    assert (back["on_cpu_bytes"], back["to_gpu_bytes_per_second"]) == (0, 4 * GIB)
    still = card.look(21 * GIB, 2 * GIB, on_gpu=2 * GIB - MIB)
    assert (still["to_cpu_bytes_per_second"], still["to_gpu_bytes_per_second"]) == (0, 0)


def test_other_programs_are_told_apart() -> None:
    card = Card()
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB, others=11 * GIB)
    found = card.look(10 * GIB, 2 * GIB, others=12 * GIB)
    assert card.truth == GIB // 2
    assert abs(found["on_cpu_bytes"] - card.truth) <= found["uncertainty_bytes"]


@pytest.mark.parametrize("reason", ["not read yet", "the driver is not answering"])
def test_a_process_list_that_is_late_is_no_baseline(reason: str) -> None:
    card = Card(
        others_bytes=None, own_bytes=None, unaccounted_bytes=None, unavailable={"others_bytes": reason}
    )
    card.look(10 * GIB, 0, others=3 * GIB)
    card.changes = {}
    card.look(20 * GIB, 2 * GIB, others=3 * GIB)
    found = card.look(20 * GIB, 2 * GIB, others=3 * GIB)
    assert found["on_cpu_bytes"] is None
    assert "before the optimizer's first step" in found["residency_reason"]


def test_a_checkpoint_moves_pages_and_is_measured() -> None:
    card = Card()
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB)
    found = card.look(10 * GIB, 2 * GIB, on_gpu=0, was_read_by_cpu=True)
    assert (found["on_cpu_bytes"], found["residency_kind"]) == (2 * GIB, "estimated")
    found = card.look(10 * GIB, 2 * GIB, was_read_by_cpu=False)
    assert (found["on_cpu_bytes"], found["residency_kind"]) == (0, "accounted")


def test_a_resumed_run_has_its_baseline_while_all_is_on_the_cpu() -> None:
    card = Card()
    found = card.look(10 * GIB, 2 * GIB, on_gpu=0, was_restored=True)
    assert (found["on_cpu_bytes"], found["residency_kind"]) == (2 * GIB, "accounted")
    card.look(22 * GIB, 2 * GIB)
    found = card.look(22 * GIB, 2 * GIB)
    assert card.truth == GIB // 2
    assert found["residency_kind"] == "estimated"
    assert abs(found["on_cpu_bytes"] - card.truth) <= found["uncertainty_bytes"]


def test_a_driver_that_does_not_count_managed_memory_is_noticed() -> None:
    card = Card()
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB, on_gpu=0)
    found = card.look(23 * GIB, 2 * GIB, on_gpu=0)
    assert found["on_cpu_bytes"] is None
    assert found["residency_reason"] == "this driver does not count managed memory as used"


def test_without_a_baseline_nothing_is_claimed() -> None:
    found = Card().look(23 * GIB, 2 * GIB)
    assert found["on_cpu_bytes"] is None
    assert found["residency_kind"] is None
    assert "before the optimizer's first step" in found["residency_reason"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"memory_source": "host"}, "this GPU shares the computer's memory: there is nowhere to move to"),
        ({"free_bytes": None, "unavailable": {"free_bytes": "the GPU is lost"}}, "the GPU is lost"),
        ({"uuid": "GPU-another"}, "which GPU the run uses cannot be told"),
    ],
)
def test_what_cannot_be_known_says_why(changes: dict[str, Any], reason: str) -> None:
    found = Card(**changes).look(10 * GIB, 2 * GIB)
    assert (found["on_gpu_bytes"], found["residency_reason"]) == (None, reason)
    assert found["to_cpu_bytes_per_second"] is None


@pytest.mark.parametrize(
    "hidden",
    [
        {"own_bytes": 0, "others_bytes": 0, "unaccounted_bytes": 15 * GIB},  # a container: an empty list
        {  # MIG: no memory by process
            "own_bytes": None,
            "others_bytes": None,
            "unaccounted_bytes": None,
            "unavailable": {"others_bytes": "the driver does not tell memory by process here"},
        },
    ],
)
def test_where_the_driver_does_not_list_us_torch_tells_our_part(hidden: dict[str, Any]) -> None:
    card = Card(**hidden)
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB)
    card.look(22 * GIB, 2 * GIB)
    found = card.look(22 * GIB, 2 * GIB)
    assert card.truth == GIB // 2
    assert abs(found["on_cpu_bytes"] - card.truth) <= found["uncertainty_bytes"]


def test_in_a_container_with_the_hosts_numbers_the_list_itself_is_used() -> None:
    card = Card(own_bytes=None, others_bytes=None)
    card.look(10 * GIB, 0)
    card.look(10 * GIB, 2 * GIB)
    found = card.look(22 * GIB, 2 * GIB)
    assert found["residency_kind"] == "estimated"
    assert abs(found["on_cpu_bytes"] - card.truth) <= found["uncertainty_bytes"]


def test_windows_cannot_page_and_names_what_it_does_instead() -> None:
    meter = ResidencyMeter("win32")
    sample = gpu_sample(paged={"managed_bytes": GIB})
    sample["torch"]["reserved_bytes"] = 20 * GIB  # of 18 in use on the device
    meter.complete(sample)
    assert sample["paged"]["on_cpu_bytes"] == 0
    assert "Windows" in sample["paged"]["residency_reason"]
    assert sample["torch"]["spilled_bytes"] == 2 * GIB
    sample = gpu_sample()
    meter.complete(sample)
    assert sample["torch"]["spilled_bytes"] == 0


def test_where_paging_protects_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(residency, "TEGRA", tmp_path / "nv_tegra_release")
    monkeypatch.setattr(residency.machine, "release", lambda: "6.8.0-generic")
    monkeypatch.setattr(residency.sys, "platform", "linux")
    assert residency.why_never_paged() is None
    (tmp_path / "nv_tegra_release").touch()
    assert residency.why_never_paged() == residency.NEVER_ON_JETSON
    monkeypatch.setattr(residency.machine, "release", lambda: "5.15.153.1-Microsoft-standard-WSL2")
    assert residency.why_never_paged() == residency.NEVER_UNDER_WSL
    assert residency._platform() == "win32"
    monkeypatch.setattr(residency.sys, "platform", "win32")
    assert residency.why_never_paged() == residency.NEVER_ON_WINDOWS


def test_what_the_engine_found_is_not_found_again() -> None:
    sample = gpu_sample()
    before = dict(sample["paged"])
    ResidencyMeter("linux").complete(sample)
    assert sample["paged"] == before


def test_the_gpu_is_found_by_uuid_not_by_its_place() -> None:
    sample = gpu_sample(3)
    sample["torch"]["gpu_uuid"] = "0000-2"
    found = gpu_of_run(sample)
    assert found is not None
    assert found["index"] == 2
    sample["torch"] = None
    found = gpu_of_run(sample)  # the only one with memory of the run
    assert found is not None
    assert found["index"] == 0
    assert same_uuid("MIG-ABC", "abc")
    assert not same_uuid(None, "abc")
