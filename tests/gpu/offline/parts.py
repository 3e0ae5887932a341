"""The six parts by number, in order of worth: name, share of the time, module. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`share`: the most of the whole time that it may take; what a part leaves over is the next ones'."""

    name: str
    module: str
    share: float


PLANS: dict[int, Plan] = {
    1: Plan("environment and doctor", "environment", 0.20),
    2: Plan("training, resume, optimizers and paging", "training", 0.25),
    3: Plan("memory, predicted against measured", "memory", 0.40),
    4: Plan("speed against other programs", "speed", 0.30),
    5: Plan("the tests that need a GPU", "confirmations", 0.40),
    6: Plan("NVML and CUPTI against the allocator", "driver", 0.25),
}
