"""Keeps quality reports in the program's own folder, so that what was measured once is shown at once. Torch-free.

A report belongs to the hashes of the model's files, the data as they lie on the disk, the options, and the libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qlora_engine import installed, parsing, paths
from qlora_engine.config import TrainingConfig
from qlora_engine.data.sources import STARTER
from qlora_engine.models import catalog
from qlora_engine.models.fingerprint import fingerprint, known_fingerprint
from qlora_engine.quantization.report import QualityReport, report_from
from qlora_engine.quantization.variants import Options
from qlora_engine.runs.record import write_aside

SCHEMA = 1
LIBRARIES = ("torch", "transformers", "bitsandbytes")


def kept(config: TrainingConfig, options: Options) -> QualityReport | None:
    """The report measured before of this model, data and options; None where there is none.

    Reads no weights: of files that were never hashed there is no report.
    """
    resolved = catalog.resolve(config.model.name, config.model.revision, config.model.offline)
    if resolved.path is None or resolved.needs is not None:
        return None
    hashes = known_fingerprint(resolved.path)
    return None if hashes is None else read(key_of(hashes, config, options))


def key_at(path: Path, config: TrainingConfig, options: Options) -> str:
    """The key of a measurement of the model in `path`; hashes its files where that was not done before."""
    return key_of(fingerprint(path), config, options)


def key_of(hashes: Mapping[str, str], config: TrainingConfig, options: Options) -> str:
    measured = {
        "schema": SCHEMA,
        "model": dict(hashes),
        "device": config.model.device,
        "compute_dtype": config.quantization.compute_dtype,
        "options": replace(options, is_again=False).to_json(),
        "libraries": versions(),
        "data": None,
    }
    if options.has_loss:
        settings = asdict(replace(config.data, packing=False))
        measured["data"] = {
            **settings, "seed": config.training.seed, "files": [_stamp(config.data.path), _stamp(config.data.held_out_path)],
        }  # fmt: skip
    text = json.dumps(measured, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def versions() -> dict[str, str]:
    """Of the libraries whose arithmetic is measured."""
    return {name: installed.version(name) for name in LIBRARIES}


def read(key: str) -> QualityReport | None:
    """The kept report; None where there is none or it cannot be read."""
    try:
        return report_from(parsing.from_json(_file(key).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(key: str, report: QualityReport) -> None:
    """Keep `report`; a folder that cannot be written only costs the time to measure again."""
    try:
        _file(key).parent.mkdir(parents=True, exist_ok=True)
        write_aside(_file(key), json.dumps(report.to_json()).encode())
    except OSError:
        return


def _file(key: str) -> Path:
    return paths.home() / "quality" / f"{key}.json"


def _stamp(path: str | None) -> Any:
    """What tells a changed dataset without reading it: size and time of each of its files."""
    if path is None:
        return None
    where = paths.resources_dir() / STARTER if path == STARTER else Path(path).expanduser()
    files = sorted(p for p in where.rglob("*") if p.is_file()) if where.is_dir() else [where]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
