"""`qlora runs`: the list of all runs, one of them, and what can be done to one without training it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qlora_engine.cli import output
from qlora_engine.errors import EngineError
from qlora_engine.runs.summary import summary_of

if TYPE_CHECKING:
    from qlora_engine.runs.index import RunEntry
    from qlora_engine.runs.record import RunFolder

REASONS_SHOWN = 3


class RunsGroup(click.Group):
    """`qlora runs` and `qlora runs RUN` are `qlora runs list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "-h", "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=RunsGroup)
def runs() -> None:
    """List, search, name and delete runs.

    `qlora runs [RUN]` is `qlora runs list [RUN]`.
    """


@runs.command("list")
@click.argument("run", required=False)
@click.option("--dir", "runs_dir", type=click.Path(path_type=Path), help="Another runs folder.")
@click.option(
    "--search", default="", metavar="WORDS", help="Those with all words in name, model, data, tags or note."
)
@click.option(
    "--state", "states", multiple=True, metavar="STATE", help="Those in this state. May be repeated."
)
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Those with this tag. May be repeated.")
@click.option("--sort", default="created", show_default=True, metavar="ORDER", help="created, finished, name, state, model, data, loss or queue.")  # fmt: skip
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option(
    "--answers",
    "wants_answers",
    is_flag=True,
    help="What RUN answered to its fixed prompts at each evaluation.",
)
@output.json_option
def list_(run: str | None, runs_dir: Path | None, wants_answers: bool, as_json: bool, **how: Any) -> None:
    """List the runs, newest first, or show one."""
    from qlora_engine import paths
    from qlora_engine.runs.index import RunIndex
    from qlora_engine.runs.selecting import select

    if wants_answers:
        if run is None:
            raise click.UsageError("--answers needs a RUN")
        print_answers(found(run), as_json)
        return
    if run is not None:
        folder = found(run)
        _print([entry_of(folder)], as_json)
        if not as_json:
            print_endings(folder)
        return
    if runs_dir is not None and not runs_dir.is_dir():
        raise EngineError(
            "runs.missing", f"there is no folder {runs_dir}", "check the path, or leave --dir out"
        )
    entries = RunIndex().entries([runs_dir] if runs_dir else [])
    if runs_dir is not None:
        entries = tuple(entry for entry in entries if entry.path.parent == runs_dir.resolve())
    if not entries and not as_json:
        where = runs_dir or paths.runs_dir()
        output.say(f"No runs in {where} yet. Start one with: {output.program()} starter")
        return
    shown = select(
        entries,
        text=how["search"],
        states=how["states"],
        tags=how["tags"],
        sort=how["sort"],
        reverse=how["reverse"],
    )
    _print(list(shown), as_json)


def found(run: str) -> RunFolder:
    """A run by folder, by its folder's name, or by the name that a person gave it, where only one has that.

    Raises:
        EngineError: there is no such run.
    """
    from qlora_engine.runs.index import RunIndex
    from qlora_engine.runs.record import RunFolder

    try:
        return RunFolder.open(run)
    except EngineError as error:
        named = [entry for entry in RunIndex().entries() if entry.title == run]
        if len(named) == 1:
            return RunFolder(named[0].path)
        if named:
            ids = ", ".join(entry.run_id for entry in named)
            raise EngineError(
                "run.ambiguous", f"{len(named)} runs are named {run!r}", f"say which: {ids}"
            ) from error
        raise


def entry_of(folder: RunFolder) -> RunEntry:
    """One run as the list shows it."""
    from qlora_engine.runs import notes, queue
    from qlora_engine.runs.index import RunEntry

    place = queue.places().get(str(folder.path))
    return RunEntry(summary_of(folder), notes.read(folder.path), place)


@runs.command()
@click.argument("run")
@click.argument("name", default="")
@output.json_option
def rename(run: str, name: str, as_json: bool) -> None:
    """Show RUN under another name. Without NAME, under its folder's."""
    from qlora_engine.runs import notes

    _noted(found(run), lambda path: notes.rename(path, name), as_json)


@runs.command()
@click.argument("run")
@click.argument("text", default="")
@output.json_option
def note(run: str, text: str, as_json: bool) -> None:
    """Keep a note beside RUN. Without TEXT, none."""
    from qlora_engine.runs import notes

    _noted(found(run), lambda path: notes.annotate(path, text), as_json)


@runs.command()
@click.argument("run")
@click.argument("tags", nargs=-1)
@click.option("--remove", multiple=True, metavar="TAG", help="Take this tag off. May be repeated.")
@output.json_option
def tag(run: str, tags: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Put TAGS on RUN, or take them off."""
    from qlora_engine.runs import notes

    _noted(found(run), lambda path: notes.tag(path, tags, remove), as_json)


@runs.command()
@click.argument("run")
@click.option("--name", default="", help="What to call the new one.")
@output.json_option
def duplicate(run: str, name: str, as_json: bool) -> None:
    """Plan a new run with the job of RUN. It is not started."""
    from qlora_engine.runs import plans

    made = plans.duplicate(found(run), name)
    if as_json:
        output.print_json({"run_id": made.run_id, "run_dir": made.path, "job": made.job_path})
        return
    output.say(f"Planned run {made.run_id}; its job is {made.job_path}")
    output.say(f"Start it with: {output.program()} train {made.run_id}")


@runs.command()
@click.argument("run", nargs=-1, required=True)
@click.option("--for-good", is_flag=True, help="Not into the trash.")
@output.json_option
def delete(run: tuple[str, ...], for_good: bool, as_json: bool) -> None:
    """Move runs to the trash, and say what that frees."""
    from qlora_engine.runs import queue, trash

    folders = [found(one) for one in run]
    gone = []
    for folder in folders:
        if str(folder.path) in queue.places():
            queue.remove(folder.path)
        freed = trash.throw_away(folder, for_good=for_good)
        gone.append({"run_id": folder.run_id, "freed_bytes": freed})
        if not as_json:
            where = "Deleted" if for_good else "Moved to the trash"
            output.say(f"{where}: {folder.run_id}, {output.size(freed)}")
    if as_json:
        output.print_json({"deleted": gone, "is_in_trash": not for_good})


def _noted(folder: RunFolder, write: Callable[[Path], Any], as_json: bool) -> None:
    kept = write(folder.path)
    if as_json:
        output.print_json(
            {"run_id": folder.run_id, "name": kept.name, "note": kept.note, "tags": list(kept.tags)}
        )
        return
    rows = [("run", folder.run_id), ("name", kept.name or folder.run_id), ("tags", ", ".join(kept.tags)), ("note", kept.note)]  # fmt: skip
    output.fields(row for row in rows if row[1])


def print_endings(folder: RunFolder) -> None:
    """How many answers ended by themselves after training, where that was tried."""
    from qlora_engine.runs import endings

    with contextlib.suppress(EngineError):
        ends = endings.of_record(folder.record())
        if ends is not None:
            output.say(endings.sentence(ends))


def print_answers(folder: RunFolder, as_json: bool) -> None:
    """Each fixed prompt and its answers from step to step."""
    from qlora_engine.runs.timeline import timelines

    found = timelines(folder.metrics())
    if as_json:
        prompts = [dataclasses.asdict(timeline) for timeline in found]
        output.print_json({"run_id": folder.run_id, "prompts": prompts})
        return
    if not found:
        output.say(f"Run {folder.run_id} answered no fixed prompts; training.sample_prompts names them.")
    for timeline in found:
        output.say(f"Asked: {timeline.prompt}")
        for point in timeline.points:
            output.say(
                f"  step {point.step:>6}  held-out loss {output.loss(point.held_out_loss)}  {' '.join(point.answer.split())}"
            )


def _print(entries: list[RunEntry], as_json: bool) -> None:
    if as_json:
        from qlora_engine.runs.index import as_json as plain

        output.print_json({"runs": [plain(entry) for entry in entries]})
        return
    headers = ("run", "state", "model", "steps", "loss before", "loss after", "peak", "began", "tags")
    output.table(headers, [_row(entry) for entry in entries])
    for entry in entries:
        for words in (*entry.summary.notices, entry.notes.problem):
            if words:
                output.note(f"{entry.run_id}: {words}")
    failed = [entry for entry in entries if entry.state == "failed" and entry.summary.error][:REASONS_SHOWN]
    for entry in failed:
        output.say(f"{entry.run_id} failed: {entry.summary.error}")


def _row(entry: RunEntry) -> tuple[str, ...]:
    summary = entry.summary
    steps = f"{summary.last_step if summary.last_step is not None else '-'}/{summary.total_steps or '-'}"
    place = f" ({entry.queue_place})" if entry.state == "queued" and entry.queue_place else ""
    title = entry.run_id if entry.title == entry.run_id else f"{entry.title} [{entry.run_id}]"
    return (
        title,
        f"{entry.state}{place or (' (resumable)' if summary.is_resumable else '')}",
        summary.model,
        steps,
        output.loss(summary.loss_before),
        output.loss(summary.loss_after),
        output.size(summary.measured_peak_bytes),
        output.moment(summary.created_unix),
        ", ".join(entry.notes.tags),
    )
