"""Why nothing can be tried just now."""

from __future__ import annotations

from app.studio import Studio


def blocked_text(studio: Studio) -> str:
    """A sentence while a run is training, which needs the device to itself; empty when the way is free."""
    is_training = studio.trainer.is_running and studio.trainer.run.state != "paused"
    return "A run is training now; answering would slow both. Stop it or wait." if is_training else ""
