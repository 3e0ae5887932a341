"""The services of one window, made together and ended together."""

from __future__ import annotations

from app.services.background import Background
from app.services.engine_thread import EngineFactory, JobRunner, engine_factory
from app.services.history import History
from app.services.machine import Machine
from app.services.quality import QualityCheck
from app.services.queue_outlook import QueueOutlook
from app.services.ready_engine import ReadyEngine
from app.services.rehearser import Rehearser
from app.services.room import Room
from app.services.settings import SettingsFile
from app.services.shown_run import ShownRun
from app.services.time_answer import TimeAnswer
from app.services.trainer import Trainer
from app.services.tryout import Tryout
from app.services.workspace import Workspace
from qlora_engine.monitor.nvml import Nvml
from qlora_engine.spare import Spare

JOBS = ("train", "data", "desk", "model", "chat", "export", "quality", "rehearse")
BEFORE_REHEARSING = ("train", "data", "model", "export", "quality")
"""The jobs that a person waits for: a rehearsal never runs beside them."""


class Studio:
    """`make_engine` is what tests replace; everything else follows the settings."""

    def __init__(
        self, settings: SettingsFile | None = None, make_engine: EngineFactory | None = None
    ) -> None:
        self.settings = settings or SettingsFile()
        self.spare = Spare()
        make = make_engine or engine_factory(self.settings.value.engine, self.spare)
        self._has_own_engine = make_engine is None
        self.background = Background()
        self.jobs = {name: JobRunner(make) for name in JOBS}
        self.ready = ReadyEngine(self.spare, tuple(self.jobs.values()), self.settings, self.background)
        self.workspace = Workspace(
            self.settings, self.background, self.jobs["data"], self.jobs["desk"], self.jobs["model"]
        )
        self.trainer = Trainer(self.jobs["train"])
        self.tryout = Tryout(self.jobs["chat"])
        self.rehearser = Rehearser(
            self.workspace, self.jobs["rehearse"], tuple(self.jobs[name] for name in BEFORE_REHEARSING)
        )
        self.quality = QualityCheck(self.workspace, self.background, self.jobs["quality"], self.jobs["train"])
        self.machine = Machine()
        self.room = Room(self.machine, self.workspace.job)
        self.history = History(self.background)
        self.time = TimeAnswer(self.workspace, self.history, self.background)
        self.outlook = QueueOutlook(self.history, self.background)
        self.shown = ShownRun(self.trainer, self.history, self.background)

    def load(self) -> None:
        """Look at the machine, the models and the runs: everything that the first picture does not need."""
        self.background.submit("gpu", has_gpu, self._set_gpu)
        self.workspace.watch.may_look = True
        self.workspace.load()
        self.history.also_look_in(self.workspace.job.config.output.runs_dir)
        self.history.refresh()
        self.history.watch()
        self.outlook.watch()
        self.machine.start()
        if self._has_own_engine:
            self.ready.begin()

    def _set_gpu(self, has_gpu: bool) -> None:
        self.workspace.job.set_gpu(has_gpu)
        self.machine.set_gpu(has_gpu)

    def set_engine(self, mode: str) -> None:
        """`process` or `inline`, for jobs that start from now on."""
        self.settings.change(engine=mode)
        for job in self.jobs.values():
            job.make_engine = engine_factory(mode, self.spare)
        self.ready.look()

    def close(self) -> None:
        """End everything; a job that does not listen is killed."""
        self.workspace.close()
        self.machine.stop()
        for service in (
            self.trainer,
            self.history,
            self.outlook,
            self.time,
            self.shown,
            self.machine,
            self.room,
            self.rehearser,
            self.quality,
        ):
            service.blockSignals(True)
        self.rehearser.close()
        for job in self.jobs.values():
            job.shut_down()
        self.background.close()
        self.ready.close()


def has_gpu() -> bool:
    """True when an NVIDIA driver answers and names a GPU."""
    nvml = Nvml()
    try:
        count = nvml.device_count() if nvml.start() else 0
        return isinstance(count, int) and count > 0
    finally:
        nvml.stop()
