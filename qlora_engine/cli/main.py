"""`qlora`: the table of commands, loaded when named, and the exit codes 0, 1 and 2."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

import click

from qlora_engine import __version__, child
from qlora_engine.cli import failures

COMMANDS = {
    "doctor": "doctor:doctor",
    "models": "models:models",
    "inspect": "models:inspect",
    "data": "data:data",
    "estimate": "estimate:estimate",
    "quality": "quality:quality",
    "architectures": "architectures:architectures",
    "init": "job:init",
    "check": "job:check",
    "starter": "starter:starter",
    "train": "train:train",
    "resume": "train:resume",
    "runs": "runs:runs",
    "compare": "compare:compare",
    "attach": "attach:attach",
    "queue": "queue:queue",
    "sweep": "sweep:sweep",
    "chat": "chat:chat",
    "prompts": "prompts:prompts",
    "predictions": "predictions:predictions",
    "export": "export:export",
    "push": "push:push",
    "monitor": "monitor:monitor",
}
"""Command -> "module:function" under `qlora_engine.cli.commands`, in the order in which help lists them."""


class LazyCommands(click.Group):
    """Imports a command's module only when the command is named or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(f"qlora_engine.cli.commands.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise failures.unknown_command(args[0], COMMANDS)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --json: one document on stdout, logs on stderr. Exit codes: 0 done, "
    "2 wrong input, 1 failed.",
)
@click.version_option(__version__, prog_name="qlora")
@click.option(
    "--engine",
    type=click.Choice(["process", "inline"]),
    default="process",
    envvar="QLORA_ENGINE",
    show_envvar=True,
    help="Run jobs in a process of their own (default) or in this one, for debugging.",
)
@click.pass_context
def cli(ctx: click.Context, engine: str) -> None:
    """Fine-tune language models with QLoRA on this machine."""
    ctx.obj = engine
    # Failures of a job in this process reach the person as a sentence and a file, not as a log on the terminal.
    logging.getLogger("qlora_engine").addHandler(logging.NullHandler())


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line and return its exit code; everything a person reads has been printed."""
    try:
        code = cli.main(args=list(arguments), prog_name="qlora", standalone_mode=False)
    except BaseException as error:  # noqa: BLE001 - the one place where errors become sentences
        return failures.report(error)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the console script."""
    child.forget_current_folder()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
