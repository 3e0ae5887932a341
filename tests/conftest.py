"""What every test shares: a busy machine is no failure, so no generated example has a deadline of its own."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
