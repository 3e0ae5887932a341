"""What only an NVIDIA GPU can confirm about memory: managed bytes, where they are, and NVML against torch and nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.gpu.scenarios import GIB, HZ, MIB, in_own_process

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


def test_managed_bytes_are_bitsandbytes_own_and_paged_again_after_a_resume() -> None:
    found = in_own_process("count_managed")
    assert found["paged"] == found["pageable"] == found["managed"] == found["expected"]
    assert found["resumed"] == found["added"] == found["expected"]


def test_nvml_sees_what_torch_reserves() -> None:
    found = in_own_process("grow_torch")
    assert found["torch"] >= found["held"]
    assert found["nvml"] == pytest.approx(found["torch"], rel=0.01, abs=64 * MIB)
    # In some containers the driver lists no process of ours, or hides their memory.
    if found["own"]:
        assert found["reserved"] <= found["own"] <= found["reserved"] + 3 * GIB
    else:
        assert found["own"] == 0 or found["why_no_own"]


def test_the_figures_agree_with_nvidia_smi() -> None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        pytest.skip("there is no nvidia-smi here to compare with")
    from qlora_engine import monitor

    query = "--query-gpu=uuid,memory.total,memory.used,memory.reserved,power.limit"
    (sample,) = monitor.stream(seconds=0.1, hz=HZ)
    shown = subprocess.run(
        [tool, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    by_uuid = {gpu["uuid"]: gpu for gpu in sample["gpus"] if gpu["mig_index"] is None}
    for line in shown.strip().splitlines():
        uuid, total, used, reserved, limit = (field.strip() for field in line.split(","))
        gpu = by_uuid[uuid]
        assert gpu["total_bytes"] == pytest.approx(int(total) * MIB, rel=0.01)
        assert gpu["used_bytes"] == pytest.approx(int(used) * MIB, rel=0.01, abs=16 * MIB)
        if reserved.isdigit():
            assert gpu["reserved_bytes"] == pytest.approx(int(reserved) * MIB, rel=0.01, abs=2 * MIB)
        if gpu["power_limit_watts"] is not None:
            assert gpu["power_limit_watts"] == pytest.approx(float(limit), rel=0.01)


def test_pages_touched_by_the_cpu_are_seen_in_the_next_sample() -> None:
    found = in_own_process("touch_from_cpu")
    assert found["filled"]["on_gpu_bytes"] == GIB
    assert found["filled"]["residency_kind"] == "accounted"
    touched = found["touched"]
    if (
        touched["on_cpu_bytes"] is None
    ):  # a driver that leaves managed pages out of its count must be found out
        assert touched["residency_reason"] == "this driver does not count managed memory as used"
        return
    assert found["measured"]["on_cpu_bytes"] <= found["measured"]["uncertainty_bytes"]
    assert touched["residency_kind"] == "estimated"
    assert abs(touched["on_cpu_bytes"] - GIB // 2) <= touched["uncertainty_bytes"]
    assert touched["to_cpu_bytes_per_second"] > 0
    assert found["back"]["on_cpu_bytes"] <= found["back"]["uncertainty_bytes"]


def test_cupti_counts_what_moves() -> None:
    """Needs the extra `gpu`. The driver moves whole blocks of up to 2 MiB, and may fetch ahead."""
    found = in_own_process("count_moves")
    if found["why_not"] is not None:
        pytest.skip(f"page moves cannot be counted here: {found['why_not']}")
    half = 128 * MIB
    assert half <= found["to_cpu"] <= half + 8 * MIB
    assert found["cpu_faults"] > 0
    assert half <= found["to_gpu"] <= half + 8 * MIB
    assert found["lost"] == 0
    assert found["block"]["moving_kind"] == "measured"


def test_a_run_with_page_moves_counted_trains_as_one_without() -> None:
    """The switch is only a look: the losses are the same, and the trace has the counted rates."""
    off, on = in_own_process("train_plain"), in_own_process("train_counted")
    assert off["losses"] == on["losses"]
    assert on["reasons"] or on["counted"] > 0


def test_pages_sent_to_the_computer_are_estimated_within_tolerance() -> None:
    """Half a GiB of a paged state; the driver is asked to move it, nothing is squeezed out by filling the card."""
    found = in_own_process("page_out")
    if "why_not" in found:
        pytest.skip(found["why_not"])
    assert found["driver"] == "moved"
    assert found["is_same"]
    assert found["filled"]["managed_bytes"] == found["sent_bytes"] == 512 * MIB
    out = found["out"]
    if out["on_cpu_bytes"] is None:
        assert out["residency_reason"] == "this driver does not count managed memory as used"
        return
    assert out["residency_kind"] == "estimated"
    assert out["on_gpu_bytes"] + out["on_cpu_bytes"] == found["sent_bytes"]
    assert abs(out["on_cpu_bytes"] - found["sent_bytes"]) <= out["uncertainty_bytes"]
    assert found["back"]["on_cpu_bytes"] <= found["back"]["uncertainty_bytes"]
