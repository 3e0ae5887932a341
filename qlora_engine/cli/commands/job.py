"""`qlora init` writes a job file, `qlora check` prints every problem of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.doctor import driver
from qlora_engine.cli.findings import with_rows
from qlora_engine.counting import counted
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from qlora_engine.config import Issue, TrainingConfig

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set one option, for example --set lora.rank=8. May be repeated.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--preset", default="balanced", show_default=True, help="Where the values start from.")
@click.option(
    "--cpu/--gpu", "is_cpu", default=None, help="Choose what is fastest there. [default: as this machine is]"
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@set_option
@output.json_option
def init(
    file: Path, preset: str, is_cpu: bool | None, force: bool, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Write a job file with every option, its meaning and its value."""
    from qlora_engine import config_io

    if is_cpu is None:
        is_cpu = driver()[0] is None
    config = config_io.with_overrides(config_io.load_preset(preset, is_cpu=is_cpu), list(overrides))
    if file.exists() and not force:
        raise EngineError("job.exists", f"{file} exists already", "choose another name, or add --force")
    try:
        config_io.save(config, file, is_commented=True)
    except OSError as error:
        raise EngineError(
            "job.not_writable",
            f"{file} cannot be written: {error.strerror or error}",
            "choose another place for the job file",
        ) from error
    if as_json:
        device = "cpu" if is_cpu else "gpu"
        written = {
            "path": file.resolve(),
            "preset": preset,
            "for": device,
            "config": config_io.to_dict(config),
        }
        output.print_json(written)
        return
    output.say(f"Wrote {file} for a machine {'without' if is_cpu else 'with'} an NVIDIA GPU. Edit it, then:")
    for command in ("check", "train"):
        output.say(f"  {output.program()} {command} {file}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@output.json_option
def check(file: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Print every problem of a job file and of its data at once."""
    from qlora_engine import config_io

    findings: list[Mapping[str, Any]] = []
    problems: list[Issue] = []
    try:
        config = config_io.with_overrides(config_io.load(file), list(overrides))
        problems = model_problems(config)
        findings = data_findings(config)
    except config_io.ConfigError as error:
        problems = error.issues
    blocking = [finding for finding in findings if finding["grade"] == "blocks"]
    if as_json:
        found = [{"path": problem.path, "message": problem.message} for problem in problems]
        found += [{"path": "data", "message": finding["text"]} for finding in blocking]
        output.print_json({"path": file, "is_valid": not found, "problems": found, "findings": findings})
    elif problems or blocking:
        _print_problems(
            file, [str(problem) for problem in problems] + [with_rows(finding) for finding in blocking]
        )
    else:
        for finding in findings:
            output.say(f"data: {with_rows(finding)}")
        output.say(f"{file}: no problems")
    return 2 if problems or blocking else 0


def model_problems(config: TrainingConfig) -> list[Issue]:
    """What the start would say of how the weights are stored, where the model is on this disk."""
    from qlora_engine.config import Issue
    from qlora_engine.models import catalog, packing

    try:
        found = catalog.resolve(config.model.name, config.model.revision, True)
        if found.path is not None and found.needs is None:
            packing.packing_of_folder(found.path)
    except EngineError as error:
        if error.code == "model.already_quantized":
            return [Issue("model.name", f"{error.message}; hint: {error.hint}")]
    return []


def data_findings(config: TrainingConfig) -> list[Mapping[str, Any]]:
    """What the start would find in the data: with the model's tokenizer where the model is on this disk, else what can
    be said without."""
    from qlora_engine import config_io
    from qlora_engine.jobs import DataReportJob
    from qlora_engine.models import catalog

    try:
        is_here = catalog.resolve(config.model.name, config.model.revision, True).needs is None
    except EngineError:
        is_here = False
    try:
        if is_here:
            with progress.view(is_quiet=True) as view:
                end = driving.run_job(DataReportJob(config_io.to_dict(config), show_rows=0), view.show)
            return list(end.result["report"]["findings"])
        return _read_findings(config)
    except EngineError as error:
        return [{"grade": "blocks", "code": error.code, "text": error.message, "count": 0, "rows": [], "repair": None,
                 "repair_text": error.hint}]  # fmt: skip


def _read_findings(config: TrainingConfig) -> list[Mapping[str, Any]]:
    from qlora_engine.data import reading_check
    from qlora_engine.data.sources import store

    is_near = config.data.path == store.STARTER or store.is_local(config.data.path)
    return list(reading_check.check(config.data)) if is_near else []


def _print_problems(file: Path, problems: Sequence[str]) -> None:
    for problem in problems:
        output.note(f"{file}: {problem}")
    words = counted(len(problems), "problem") if len(problems) > 1 else "a problem"
    output.note(f"error: {file} has {words}; hint: correct the named settings")
