"""`qlora push`: an export to a hub, private unless asked otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.counting import counted
from qlora_engine.events import RunFinished
from qlora_engine.jobs import PushJob


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--public", is_flag=True, help="Let everybody see it; private otherwise.")
@click.option("--unproven", is_flag=True, help="Upload it even though its proof failed or was left out.")
@output.json_option
def push(folder: Path, repository: str, public: bool, unproven: bool, as_json: bool) -> None:
    """Upload an export to REPOSITORY (owner/name) on the Hugging Face hub, with the token of `hf auth login`."""
    result = push_folder(folder, repository, is_public=public, allow_unproven=unproven, is_quiet=as_json)
    if as_json:
        output.print_json(result)
    else:
        output.say(
            f"Uploaded {counted(result['files'], 'file')} ({output.size(result['bytes'])}) to {result['url']}"
        )


def push_folder(
    folder: Path, repository: str, *, is_public: bool, allow_unproven: bool = False, is_quiet: bool
) -> dict[str, Any]:
    """Carry the upload out and give its result back.

    Raises:
        EngineError: not proven, no token, not allowed, no connection.
    """
    job = PushJob(str(folder.expanduser().resolve()), repository, is_public, allow_unproven)
    with progress.view(is_quiet=is_quiet) as shown:
        end = driving.run_job(job, shown.show, on_stop="Stopping the upload")
    if not isinstance(end, RunFinished):
        raise click.Abort
    return dict(end.result)
