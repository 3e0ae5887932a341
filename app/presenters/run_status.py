"""Where a run stands: what it does now, what was asked of it, and how far that is."""

from __future__ import annotations

from app.presenters.run_words import stopped_text
from app.presenters.words import count_text
from qlora_engine import events as ev

LIVE = ("starting", "running", "paused", "stopping")


class RunStatus:
    """`state`: idle, starting, running, paused, stopping, finished, stopped, failed. `progress` of a phase, 0 to 1."""

    def __init__(self) -> None:
        self.state = "idle"
        self.phase_text = ""
        self.progress: float | None = None
        self.is_pausing = False
        """Asked to pause; the engine does so after the micro-batch that it computes."""

    def begin(self) -> None:
        self.state, self.phase_text = "starting", "Starting the engine"

    def asked_to_pause(self, is_wanted: bool) -> None:
        """What the person wants until the engine tells that it is so."""
        self.is_pausing = is_wanted
        self.phase_text = "Pausing after this micro-batch" if is_wanted else "Training"

    def asked_to_stop(self) -> None:
        self.state, self.phase_text = "stopping", "Stopping after this micro-batch"

    def stand(self, state: str) -> None:
        """Where a run stands that only its folder tells of."""
        texts = {"elsewhere": "Training in another program", "crashed": "Broke off", "finished": "Finished"}
        self.state, self.phase_text = state, texts.get(state, state.capitalize())

    def follow(self, event: ev.Event) -> None:
        match event:
            case ev.RunStarted() if self.state == "starting":
                self.state, self.phase_text = "running", "Preparing"
            case ev.PhaseChanged():
                self._enter(event.text)
            case ev.Progressed():
                self.progress = event.done / event.total if event.total else None
            case ev.StepFinished() if self.state == "running" and not self.is_pausing:
                self.phase_text = "Training"
            case ev.Paused():
                self.is_pausing = False
                self.state, self.phase_text = "paused", f"Paused at step {count_text(event.step)}"
            case ev.Continued():
                self.state, self.phase_text = "running", "Training"
            case ev.RunFinished():
                self._end("finished", "Finished")
            case ev.RunStopped():
                self._end("stopped", stopped_text(event))
            case ev.RunFailed():
                self._end("failed", event.message)

    def _enter(self, text: str) -> None:
        """A phase; what the person asked for is told instead of it."""
        if self.state not in ("stopping", "paused") and not self.is_pausing:
            self.phase_text = text
        self.progress = None

    def _end(self, state: str, text: str) -> None:
        self.state, self.phase_text, self.progress, self.is_pausing = state, text, None, False
