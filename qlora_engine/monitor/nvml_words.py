"""What NVML's error codes and throttle bits mean, in words. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unavailable:
    """A figure that cannot be read, and why. `code` is NVML's, None when the reason is not NVML's."""

    reason: str
    code: int | None = None


TOO_OLD_CODES = frozenset({13, 25, 26})
"""Function not found, structure version not known, deprecated: ask the older or newer call instead."""

RESTART_CODES = frozenset({1, 15, 16, 28, 999})
"""Uninitialized, GPU lost, reset required, GPU not found, unknown: starting NVML anew may mend them."""

_REASONS = {
    1: "NVML was not started in this process",
    2: "the driver refused the question",
    3: "this GPU does not tell it",
    4: "no permission to read it",
    6: "the driver knows no such thing",
    7: "the driver's answer was longer than it said",
    8: "the GPU's power cables are not connected",
    9: "the NVIDIA driver is not loaded",
    10: "the driver did not answer in time",
    11: "the GPU has an interrupt problem",
    12: "no NVIDIA driver is installed",
    13: "this driver is too old to tell it",
    14: "the GPU's own settings memory is corrupted",
    15: "the GPU is lost: it has fallen off the bus or its driver has crashed",
    16: "the GPU needs a reset",
    17: "the operating system does not let the driver be asked",
    18: "the NVIDIA driver was updated; restart the computer to use it",
    19: "the GPU is in use",
    20: "there is not enough memory to ask the driver",
    21: "the driver has no data yet",
    25: "this driver is too old to tell it",
    26: "this driver no longer tells it",
    27: "the driver is not ready",
    28: "the GPU is no longer there",
    999: "the driver reported an unknown error",
}

_THROTTLES = (
    (0x4, "power limit"),
    (0x8, "hardware slowdown"),
    (0x10, "synchronised with another GPU"),
    (0x20, "too warm (driver)"),
    (0x40, "too warm (hardware)"),
    (0x80, "power brake"),
    (0x2, "clocks set by a user"),
    (0x100, "display clocks"),
    (0x1, "idle"),
)


def unavailable(error: BaseException) -> Unavailable:
    """Why a call failed. A missing attribute means that another package named `pynvml` hides nvidia-ml-py."""
    code = getattr(error, "value", None)
    if isinstance(code, int):
        return of_code(code, error)
    if (
        type(error).__name__ == "NVMLLibraryMismatchError"
    ):  # how nvidia-ml-py words a missing function of a list
        return of_code(13)
    if isinstance(error, AttributeError):
        return Unavailable("the installed pynvml is an old package that hides nvidia-ml-py", 13)
    if isinstance(error, ImportError):
        return Unavailable("the package nvidia-ml-py is not installed")
    return Unavailable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def of_code(code: int, error: BaseException | None = None) -> Unavailable:
    known = _REASONS.get(code)
    if known is None:
        said = _said(error)
        known = f"NVML error {code}: {said}" if said else f"NVML error {code}"
    return Unavailable(known, code)


def throttle_words(bits: int) -> tuple[str, ...]:
    return tuple(words for bit, words in _THROTTLES if int(bits) & bit)


def _said(error: BaseException | None) -> str:
    try:
        return str(error) if error is not None else ""
    except Exception:  # noqa: BLE001 - nvidia-ml-py asks the driver for the text, which may fail as well
        return ""
