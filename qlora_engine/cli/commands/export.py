"""`qlora export`: a run's result in another form, with proof."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.push import push_folder
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFinished
from qlora_engine.export.source import DTYPES, FORMATS, INTO
from qlora_engine.jobs import ExportJob


@click.command()
@click.argument("run")
@click.option("--as", "format_", type=click.Choice(list(FORMATS)), required=True, help="What to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder that is new or empty.")
@click.option(
    "--dtype",
    type=click.Choice(sorted({kind for kinds in DTYPES.values() for kind in kinds})),
    help="How weights are stored: bf16, fp16 or fp32 for merged and bnb4; f16, q8_0 or another for gguf and ollama; f32 or "
    "f16 for gguf-lora.",
)
@click.option(
    "--into",
    type=click.Choice(INTO),
    help="The weights the adapter is added to; `measured` scores both merges on held-out rows and takes the better.",
)
@click.option("--verify/--no-verify", default=True, show_default=True, help="Load it again and compare.")
@click.option(
    "--push", "repository", metavar="OWNER/NAME", help="Upload it to the hub once it is proven; private."
)
@click.option("--public", is_flag=True, help="With --push: let everybody see it.")
@output.json_option
def export(
    run: str,
    format_: str,
    out: Path,
    dtype: str | None,
    into: str | None,
    verify: bool,
    repository: str | None,
    public: bool,
    as_json: bool,
) -> None:
    """Write what a run learned in another form. Then load it again and prove that it is the same model.

    A large export that was stopped, or ran out of disk, goes on when the same command is given again."""
    chosen = {name: value for name, value in (("dtype", dtype), ("into", into)) if value is not None}
    result = export_run(run, format_, out, {"verify": verify, **chosen}, is_quiet=as_json)
    if not as_json:
        for line in _merges(result.get("merges")):
            output.say(line)
        output.say(f"Wrote {result['path']} ({output.size(result.get('bytes'))}){_proof(result)}")
    if repository is not None and result.get("is_proven"):
        result["push"] = push_folder(Path(result["path"]), repository, is_public=public, is_quiet=as_json)
    if as_json:
        output.print_json(result)
    require_proof(result)
    if repository is not None:
        require_pushed(result)


def export_run(
    run: str, format_: str, out: Path, options: dict[str, Any], *, is_quiet: bool
) -> dict[str, Any]:
    """Carry the export out and give its result back: {"path", "checks", "bytes"}.

    Raises:
        EngineError: no such run, no room, or it failed.
    """
    from qlora_engine.runs.record import RunFolder

    folder = RunFolder.open(run)
    job = ExportJob(str(folder.path), format_, str(out.expanduser().resolve()), options)
    with progress.view(is_quiet=is_quiet) as shown:
        end = driving.run_job(job, shown.show, on_stop="Stopping the export")
    if not isinstance(end, RunFinished):
        if end.is_resumable:
            output.note(f"Stopped: {end.reason}")
        raise click.Abort
    return {"run": folder.run_id, "format": format_, **end.result}


def require_proof(result: dict[str, Any]) -> None:
    """Let an export pass that was proven, or not checked.

    Raises:
        EngineError: a check found that it is not the trained model.
    """
    failed = [check["name"] for check in result.get("checks") or () if check["passed"] is False]
    if failed:
        raise EngineError(
            "export.not_proven",
            f"{result['path']} was written, but it is not the trained model: failed: {', '.join(failed)}",
            f"do not use it; {Path(result['path']) / 'proof.json'} has the numbers",
            is_input_error=False,
        )


def require_pushed(result: dict[str, Any]) -> None:
    """Say where an export was uploaded to.

    Raises:
        EngineError: it was not, because nothing was proven.
    """
    if "push" not in result:
        raise EngineError(
            "push.unproven", f"{result['path']} was written and not uploaded: nothing was proven",
            f"look at it, and then: qlora push {result['path']} OWNER/NAME --unproven", is_input_error=False,
        )  # fmt: skip
    output.note(f"Uploaded to {result['push']['url']}")


def _proof(result: dict[str, Any]) -> str:
    """Whether it is the same model, in words."""
    if not result.get("checks"):
        return "; not checked"
    return ", proven to be the trained model" if result.get("is_proven") else ""


def _merges(measured: dict[str, Any] | None) -> Iterator[str]:
    """Both merges and the live model, one line each, and which is recommended."""
    if measured is None:
        return
    for name, score in measured["scores"].items():
        against = (
            "" if score["kl"] is None else f"  KL {score['kl']:.5f}  same choice {score['agreement']:.1%}"
        )
        yield f"{name:12} held-out loss {score['loss']:.4f}{against}"
    yield f"Merged {measured['why']}"
