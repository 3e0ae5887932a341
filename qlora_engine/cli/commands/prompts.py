"""`qlora prompts`: saved sets of prompts, and what runs answer to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qlora_engine.cli import driving, generation, output, progress
from qlora_engine.evaluate import prompt_sets
from qlora_engine.events import RunFinished
from qlora_engine.jobs import ReplayJob


@click.group()
def prompts() -> None:
    """Keep sets of prompts and ask them of many runs. Each of its commands takes --json."""


@prompts.command("list")
@output.json_option
def list_(as_json: bool) -> None:
    """List the saved sets."""
    found = prompt_sets.all_sets()
    if as_json:
        output.print_json({"sets": [_document(one) for one in found]})
        return
    output.table(
        ("set", "prompts", "first"), [(s.name, str(len(s.prompts)), _short(s.prompts[0])) for s in found]
    )


@prompts.command()
@click.argument("name", metavar="SET")
@output.json_option
def show(name: str, as_json: bool) -> None:
    """Show the prompts of a set."""
    found = prompt_sets.find(name)
    if as_json:
        output.print_json(_document(found))
        return
    for prompt in found.prompts:
        output.say(prompt)


@prompts.command()
@click.argument("name", metavar="SET")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", "-p", "given", multiple=True, help="A prompt of the set; repeatable.")
@output.json_option
def save(name: str, file: Path | None, given: tuple[str, ...], as_json: bool) -> None:
    """Save a set, from a text file with a prompt on each line, a JSONL or JSON file, or from --prompt."""
    if (file is None) == (not given):
        raise click.UsageError("give a FILE, or --prompt once or more")
    saved = prompt_sets.save(name, given if file is None else prompt_sets.read_prompts(file))
    if as_json:
        output.print_json(_document(saved))
    else:
        output.say(f"Saved {saved.name}: {len(saved.prompts)} prompts")


@prompts.command()
@click.argument("name", metavar="SET")
@output.json_option
def delete(name: str, as_json: bool) -> None:
    """Delete a set; answers kept with runs stay."""
    prompt_sets.delete(name)
    if as_json:
        output.print_json({"deleted": name})
    else:
        output.say(f"Deleted {name}")


@prompts.command()
@click.argument("name", metavar="SET")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--base/--no-base", default=True, show_default=True, help="Ask the base under the runs too.")
@click.option("--again", is_flag=True, help="Ask even what a run has answered already.")
@generation.options
@output.json_option
def run(name: str, runs: tuple[str, ...], base: bool, again: bool, as_json: bool, **drawn: Any) -> None:
    """Ask every prompt of a set of every run; what was asked before is not asked again."""
    from qlora_engine.runs.record import RunFolder

    found = prompt_sets.find(name)
    folders = tuple(str(RunFolder.open(run).path) for run in runs)
    job = ReplayJob(folders, found.prompts, generation.settings(drawn), with_base=base, again=again)
    with progress.view(is_quiet=as_json) as shown:
        end = driving.run_job(job, shown.show, on_stop="Stopping; answers given so far are kept")
    if not isinstance(end, RunFinished):
        raise click.Abort
    if as_json:
        output.print_json({"set": found.name, **end.result})
        return
    _print_answers(found.prompts, end.result)


def _print_answers(asked: tuple[str, ...], result: Any) -> None:
    titles = {column["side"]: column["run_id"] or column["side"] for column in result["columns"]}
    width = max(len(title) for title in titles.values())
    for prompt in asked:
        output.say(f"Asked: {prompt}")
        for answer in result["answers"]:
            if answer["prompt"] == prompt:
                output.say(f"  {titles[answer['side']].ljust(width)}  {' '.join(answer['text'].split())}")
    output.note(f"{result['asked']} answers given now, {result['kept']} kept from before")


def _document(found: prompt_sets.PromptSet) -> dict[str, Any]:
    return {"name": found.name, "prompts": list(found.prompts), "is_builtin": found.is_builtin}


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
