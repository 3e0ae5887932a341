"""`qlora data`: what a dataset holds, what is wrong with it by row, and what a model would be trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import click

from qlora_engine.cli import driving, output, progress
from qlora_engine.cli.commands.job import set_option
from qlora_engine.cli.findings import finding_text, numbered
from qlora_engine.config import DataSettings, TrainingConfig
from qlora_engine.counting import counted
from qlora_engine.data.grades import first_blocking
from qlora_engine.errors import EngineError
from qlora_engine.events import RunFinished
from qlora_engine.jobs import WORST_ROWS, DataReportJob
from qlora_engine.knobs import knobs_of

FORMATS = tuple(knobs_of(DataSettings)["format"].choices or ())
MARKS = {"trained": "[{}]", "cut": "~{}~", "special": "{}", "masked": "{}"}
STYLES: dict[str, dict[str, Any]] = {
    "trained": {"fg": "green", "bold": True},
    "cut": {"fg": "red", "strikethrough": True},
    "special": {"dim": True},
    "masked": {},
}
ROW_KINDS = ("all", "left_out", "train", "held_out", *WORST_ROWS)
FIRST_CHARS = 300
LEGEND = "[trained] masked ~cut~"


@click.command()
@click.argument("path")
@click.option("--model", default="starter", show_default=True, help="Whose tokenizer and chat template.")
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), default="auto", show_default=True, help="Format."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="Map a field of the format to a column.",
)
@click.option(
    "--show-mask",
    "shown",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Show N rows as trained.",
)
@click.option(
    "--row",
    "numbers",
    type=click.IntRange(1),
    multiple=True,
    metavar="N",
    help="Show row N, raw and rendered.",
)
@click.option(
    "--worst", type=click.Choice(WORST_ROWS), help="Show the worst rows: which are longest, most cut ..."
)
@click.option("--list", "kind", type=click.Choice(ROW_KINDS), help="List rows with what becomes of each.")
@click.option("--search", metavar="TEXT", help="Show the rows that hold TEXT.")
@click.option(
    "--held-out",
    "is_held_out",
    is_flag=True,
    help="Ask --row, --worst, --list and --search of the held-out rows: those of data.held_out_path, else the share.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Rows shown by --worst, --search and --list.",
)
@click.option(
    "--show-reasoning",
    is_flag=True,
    help="Show what each policy on reasoning does with the model's template.",
)
@click.option(
    "--first-look", "is_first_look", is_flag=True, help="Show format, columns and first rows, at once."
)
@click.option(
    "--write-clean", metavar="FILE", help="Write the rows that can be trained, each once, to FILE.jsonl."
)
@set_option
@output.json_option
def data(
    path: str,
    model: str,
    format_: str,
    columns: tuple[str, ...],
    shown: int,
    numbers: tuple[int, ...],
    worst: str | None,
    kind: str | None,
    search: str | None,
    is_held_out: bool,
    count: int,
    show_reasoning: bool,
    is_first_look: bool,
    write_clean: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Show what a model would learn from a dataset. Finds the format, names problems by row, counts tokens."""
    config = _config(path, model, format_, columns, overrides)
    if is_first_look:
        _first_look(config.data, as_json=as_json)
        return
    ask = {
        "numbers": list(numbers), "worst": worst, "list": kind, "search": search, "write_clean": write_clean, "count": count,
        "of": "held_out" if is_held_out else "data",
        "reasoning": config.data.chat_template if show_reasoning else None,
    }  # fmt: skip
    result = _reported(config, shown, ask, is_quiet=as_json)
    if as_json:
        output.print_json(result)
    elif result["report"]["train_rows"] or result["asked"]:
        _print_report(result["report"])
        _print_rows(result["rows"])
        _print_asked(result["asked"])
    blocking = first_blocking(result["report"]["findings"])
    if blocking is not None:
        raise blocking


def _config(
    path: str, model: str, format_: str, columns: tuple[str, ...], overrides: tuple[str, ...]
) -> TrainingConfig:
    from qlora_engine import config_io
    from qlora_engine.config import with_value

    config = TrainingConfig()
    given = {
        "data.path": path,
        "model.name": model,
        "data.format": format_,
        "data.columns": _mapping(columns),
    }
    for option, value in given.items():
        config = with_value(config, option, value)
    return config_io.with_overrides(config, list(overrides))


def _reported(
    config: TrainingConfig, shown: int, ask: Mapping[str, Any], *, is_quiet: bool
) -> Mapping[str, Any]:
    from qlora_engine import config_io

    job = DataReportJob(config_io.to_dict(config), show_rows=shown, ask=ask)
    with progress.view(is_quiet=is_quiet) as view:
        end = driving.run_job(job, view.show)
    if not isinstance(end, RunFinished):
        raise click.Abort
    return end.result


def _first_look(settings: DataSettings, *, as_json: bool) -> None:
    """What the beginning of the data is; no model is needed, and a gigabyte takes no longer than a kilobyte."""
    from qlora_engine.data.preview import preview

    found = preview(settings)
    if as_json:
        output.print_json(found)
        return
    detection = found["detection"]
    files = counted(found["file_count"], "file")
    read_as = f"{found['format']}: {detection['why']}" if detection else found["problem"]
    columns = detection["columns"] if detection else {}
    output.fields([
        ("data", f"{found['origin']} ({files}, {counted(found['bytes'], 'byte')})"),
        ("format", read_as),
        ("columns", ", ".join(f"{f} = {c}" for f, c in columns.items()) or ", ".join(found["columns"])),
        ("not used", ", ".join(detection["unused"]) or "nothing" if detection else output.NOT_AVAILABLE),
    ])  # fmt: skip
    for row in found["rows"]:
        output.say(f"\nrow {row['row']}:{' ' + row['problem'] if row['problem'] else ''}")
        for column, text in (row["raw"] or {}).items():
            output.say(f"  {column}: {output.quoted(text[:FIRST_CHARS])}")


def _mapping(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in columns]
    for field, equals, column in pairs:
        if not (field and equals and column):
            hint = "write it as --column instruction=question"
            raise EngineError("usage.column", f"--column {field}{equals}{column} maps nothing", hint)
    return {field: column for field, _, column in pairs}


def _print_report(report: Mapping[str, Any]) -> None:
    output.fields(_lines(report))
    for drop in report["drops"]:
        more = " ..." if drop["count"] > len(drop["first_rows"]) else ""
        rows = numbered(drop["first_rows"])
        output.say(f"left out: {counted(drop['count'], 'row')}, {drop['reason']} ({rows}{more})")
    for finding in report["findings"]:
        if finding["code"] not in ("data.left_out", "data.leave_out"):
            output.say(finding_text(finding))


def _lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    columns = ", ".join(f"{field} = {column}" for field, column in report["columns"].items())
    length = "chosen from the data" if report["is_automatic_length"] else "as set"
    share = report["trained_tokens"] / max(1, report["train_tokens"])
    lengths = (
        f"half up to {report['length_p50']} tokens, 90 % up to {report['length_p90']}, "
        f"99 % up to {report['length_p99']}, longest {report['length_max']}"
    )
    rows = (
        f"{report['rows_read']} read, {report['train_rows']} to train on, {report['held_out_rows']} held out"
    )
    return [
        ("data", f"{report['origin']} (sha256 {report['sha256'][:12]})"),
        ("format", f"{report['format']}: {report['format_reason']}"),
        ("columns", columns or output.NOT_AVAILABLE),
        ("chat template", f"{report['template']}: {report['template_reason']}"),
        ("rows", rows),
        ("lengths", lengths),
        (
            "sequence",
            f"{report['seq_len']} tokens, {length}; {counted(report['truncated_rows'], 'row', 'are')} cut",
        ),
        (
            "kept",
            f"{report['keeps']['rows']:.1%} of rows whole, {report['keeps']['trained_tokens']:.1%} of answer tokens",
        ),
        (
            "scripts",
            ", ".join(f"{name} {count:,}" for name, count in report["scripts"].items())
            or output.NOT_AVAILABLE,
        ),
        ("tokens", f"{report['train_tokens']:,} in all, {report['trained_tokens']:,} trained ({share:.0%})"),
    ]


def _print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Each row as the model sees it; what is trained stands in brackets, in green where there is colour."""
    for index, row in enumerate(rows):
        if index == 0:
            output.say(f"\n{LEGEND}")
        output.say(f"\nrow {row['row']}:")
        output.say(rendered(row["tokens"]))


def _print_asked(asked: Mapping[str, Any]) -> None:
    if "worst" in asked:
        _print_rows(asked["worst"])
    if "search" in asked:
        found = asked["search"]["numbers"]
        output.say(f"\nfound in {counted(len(found), 'row')}: {', '.join(map(str, found)) or 'none'}")
    for row in (*asked.get("numbers", ()), *asked.get("search", {}).get("rows", ())):
        output.say(
            f"\nrow {row['row']} ({row['file']}, row {row['row_in_file']}; {row['side'].replace('_', ' ')}):"
        )
        output.say(output.quoted(row["raw"]))
        if row["problem"]:
            output.say(f"left out: {row['problem']}")
        _print_rows(row["rendered"])
    if "list" in asked:
        output.say(f"\n{counted(asked['list']['total'], 'row')}")
        for row in asked["list"]["rows"]:
            output.say(_row_line(row))
    for name, example in asked.get("reasoning", {}).get("policies", {}).items():
        output.say(f"\ndata.reasoning = {name}: {example['words'] or example['problem']}")
        tokens = [
            {"text": text, "state": "trained" if state == "t" else "masked"}
            for text, state in example["tokens"]
        ]
        output.say(rendered(tokens))
    if "write_clean" in asked:
        written = asked["write_clean"]
        output.say(
            f"\nwrote {counted(written['rows'], 'row')} to {written['path']}; {written['left_out']:,} left out"
        )


def _row_line(row: Mapping[str, Any]) -> str:
    """`12: trained, 71 tokens (20 trained): What is ... -> ...`."""
    fate = row["problem"] or f"{counted(row['tokens'], 'token')} ({row['trained']:,} trained)"
    begins = output.quoted(" ".join(str(row["text"]).split()))
    return f"{row['row']}: {row['side'].replace('_', ' ')}, {fate}: {begins}"


def rendered(tokens: Iterable[Mapping[str, Any]]) -> str:
    """Tokens as text, neighbours of one state together, marked so that it reads without colour too."""
    pieces = []
    for state, group in itertools.groupby(tokens, key=lambda token: token["state"]):
        text = MARKS[state].format(output.quoted("".join(token["text"] for token in group)))
        pieces.append(click.style(text, **STYLES[state]) if output.has_colour() else text)
    return "".join(pieces)
