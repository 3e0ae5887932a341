"""What the window remembers between starts: a small JSON file beside the program's other data."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.runs.record import write_aside


@dataclass(frozen=True)
class Settings:
    """`theme`: system, dark, light or contrast. `engine`: process or inline. `folders`: model folders the person added.
    `job`: the job file being edited, as plain values; None: the starter.
    `had_gpu` is what was found last time, so that the window need not wait for the driver.
    `numbers`: the language that numbers are written in, one of `number_style.LANGUAGES`.
    `keeps_ready`: an engine waits with everything imported while nothing else is done.
    `notifies`: the desktop is told when a run ends while another window is in front.
    `unfinished` is the folder of a run that was going on when the window went, however it went."""

    theme: str = "system"
    engine: str = "process"
    width: int = 1380
    height: int = 880
    is_maximized: bool = False
    folders: tuple[str, ...] = ()
    gpu: str | None = None
    job: dict[str, Any] | None = None
    preset: str = "quick-look"
    had_gpu: bool = False
    unfinished: str | None = None
    notifies: bool = True
    keeps_ready: bool = True
    numbers: str = "system"


class SettingsFile:
    """Reads once, writes whole. A broken file is put aside and the defaults are used."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or paths.home() / "window.json"
        self.value = self._read()

    def change(self, **values: Any) -> None:
        self.value = replace(self.value, **values)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(self._path, json.dumps(asdict(self.value), indent=1).encode("utf-8"))
        except OSError as error:
            logging.getLogger(__name__).warning("the window's settings were not saved: %s", error)

    def _read(self) -> Settings:
        try:
            plain = parsing.from_json(self._path.read_text(encoding="utf-8"))
            known = {f.name: plain[f.name] for f in fields(Settings) if f.name in plain}
            known["folders"] = tuple(known.get("folders", ()))
            return Settings(**known)
        except FileNotFoundError:
            return Settings()
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logging.getLogger(__name__).warning("the window's settings cannot be read: %s", error)
            return Settings()
