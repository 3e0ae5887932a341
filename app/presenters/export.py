"""The Export page's state: what is written where, and the proof step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.presenters.in_window import in_window
from app.presenters.words import bytes_text, capital, number_text, percent_text
from qlora_engine import events as ev
from qlora_engine import paths
from qlora_engine.export.journal import kept_at
from qlora_engine.export.source import DTYPES, FORMATS, INTO, MERGED

DETAILS = {
    "adapter": "Small. Loads with PEFT on top of the base model.",
    "merged": "The adapter added to the base weights, stored in 16 bits. Loads with plain transformers.",
    "bnb4": "A quarter of the size. Loads with plain transformers and bitsandbytes. Rounds what was trained; the proof says by how much.",
    "gguf": "One file with weights, tokenizer and chat template. Loads with llama.cpp and programs built on it.",
    "gguf-lora": "Small. llama.cpp puts it on a GGUF file of the base model (--lora).",
    "ollama": "A GGUF file with a Modelfile: template, stop words and context length. \u201collama create\u201d takes it.",
}
DTYPE_TITLES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "f16": "F16, 16-bit float",
    "f32": "F32, 32-bit float",
    "q8_0": "Q8_0, 8 bits",
    "q5_1": "Q5_1, 5 bits",
    "q5_0": "Q5_0, 5 bits",
    "q4_1": "Q4_1, 4 bits",
    "q4_0": "Q4_0, 4 bits",
}
INTO_TITLES = {
    "original": "The original weights",
    "dequantized": "The dequantized 4-bit weights",
    "measured": "The better one, measured on held-out rows",
}
SIDE_WORDS = {
    "live": "4-bit with adapter, as trained",
    "original": "into the original",
    "dequantized": "into the dequantized",
}


@dataclass(frozen=True)
class CheckLine:
    name: str
    detail: str
    mark: str
    tone: str


class ExportFold:
    """One export as it was told. `state`: idle, running, done, failed, stopped."""

    def __init__(self) -> None:
        self.state = "idle"
        self.subject = ""
        """What is, or was, exported: the form may show another choice by now."""
        self.phase_text = ""
        self.share: float | None = None
        self.checks: list[CheckLine] = []
        self.result: Mapping[str, Any] = {}
        self.error_text = ""
        self.error_hint = ""
        self.notes: list[tuple[str, str]] = []
        self.is_pushing = False
        self.push_text = ""

    def begin(self, subject: str = "") -> None:
        self.__init__()  # type: ignore[misc]
        self.subject = subject
        self.state, self.phase_text = "running", "Starting the engine"

    def begin_push(self) -> None:
        """An upload of what was just exported; its proof stays in sight."""
        self.state, self.phase_text, self.share = "running", "Starting the engine", None
        self.is_pushing, self.push_text, self.notes = True, "", []

    @property
    def outcome_text(self) -> str:
        if self.state != "done":
            return ""
        size = bytes_text(self.result.get("bytes"))
        proven = self.result.get("is_proven")
        ending = {True: "and proven", False: "but a check failed: do not rely on it", None: "not checked"}[
            proven
        ]
        return f"Written {ending}: {size} in {self.result.get('path')}"

    @property
    def can_push(self) -> bool:
        """A proven export can be uploaded."""
        return self.state == "done" and self.result.get("is_proven") is True

    @property
    def stopped_text(self) -> str:
        """What a stopped export left to go on with."""
        kept = self.result.get("kept_bytes") if self.state == "stopped" else None
        if kept is None:
            return "Stopped. Nothing was left behind." if self.state == "stopped" else ""
        return f"Stopped. {bytes_text(kept)} are whole and kept: Export goes on from there."

    @property
    def outcome_tone(self) -> str:
        return "good" if self.result.get("is_proven") else "warning"

    @property
    def merges_text(self) -> str:
        """The scores of both merges, where they were measured."""
        merges = self.result.get("merges")
        if not isinstance(merges, Mapping):
            return ""
        lines = [
            f"{words}: held-out loss {number_text(found.get('loss'))}, KL divergence {number_text(found.get('kl'))}, "
            f"same first choice {percent_text(found.get('agreement'))}"
            for side, words in SIDE_WORDS.items()
            if isinstance(found := (merges.get("scores") or {}).get(side), Mapping)
        ]
        why = str(merges.get("why") or "")
        return "\n".join([*(capital(line) for line in lines), *([capital(why)] if why else [])])

    def fold(self, event: ev.Event) -> None:
        match event:
            case ev.PhaseChanged(_, text):
                self.phase_text, self.share = text, None
            case ev.Progressed(_, done, total, _):
                self.share = done / total if total else None
            case ev.CheckFinished(name, passed, detail, _):
                mark, tone = {True: ("\u2713", "good"), False: ("\u2717", "bad"), None: ("\u2013", "")}[
                    passed
                ]
                self.checks.append(CheckLine(capital(name), detail, mark, tone))
            case ev.Noticed(level, _, message, _):
                self.notes.append((capital(message), "warning" if level == "warning" else ""))
            case ev.RunFinished(result) if "repository" in result:
                self.state, self.push_text = "done", f"Uploaded to {result.get('url')}"
            case ev.RunFinished(result):
                self.state, self.result = "done", result
            case ev.RunStopped() if self.is_pushing:
                self.state, self.push_text = (
                    "done",
                    "The upload was stopped; what has arrived is not sent again.",
                )
            case ev.RunFailed(_, message, hint) if self.is_pushing:
                self.state, self.push_text = "done", in_window(f"{capital(message)}. {capital(hint)}")
            case ev.RunStopped(_, _, result):
                self.state, self.result = "stopped", result
            case ev.RunFailed(_, message, hint):
                self.state, self.error_text, self.error_hint = "failed", capital(message), capital(hint)
            case _:
                pass


def kept_text(target: str, run_dir: str, kind: str) -> str:
    """What an earlier export to `target` left; it goes on only if it is the same one."""
    kept = kept_at(Path(target)) if target else None
    if kept is None:
        return ""
    name = run_dir.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    is_same = (kept.key.get("run"), kept.key.get("format")) == (name, kind)
    ending = (
        "with the same options, Export goes on from there"
        if is_same
        else "it is of another run or form, and Export removes it"
    )
    return f"An export to this folder broke off. {bytes_text(kept.nbytes)} of it are whole: {ending}."


def default_target(run_id: str, kind: str) -> Path:
    """A free folder beside the program's other data."""
    base = paths.home() / "exports" / f"{run_id}-{kind}"
    found, number = base, 2
    while found.exists():
        found, number = base.with_name(f"{base.name}-{number}"), number + 1
    return found


def dtypes_of(kind: str) -> tuple[tuple[str, str], ...]:
    """(value, title) of how a format can be stored; the first is the default. Empty for an adapter."""
    return tuple((value, DTYPE_TITLES.get(value, value)) for value in DTYPES.get(kind, ()))


def merges_of(kind: str) -> tuple[tuple[str, str], ...]:
    """(value, title) of what the adapter can be merged into; empty where nothing is merged."""
    if kind not in MERGED:
        return ()
    return (("", "Automatic"), *((value, INTO_TITLES.get(value, value)) for value in INTO))


def formats() -> Mapping[str, tuple[str, str]]:
    """Format -> (title, what it is good for)."""
    return {name: (title, DETAILS.get(name, "")) for name, title in FORMATS.items()}
