"""`qlora architectures`: which model types of the installed transformers train here, found by trying each."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from qlora_engine.cli import output
from qlora_engine.errors import EngineError, did_you_mean

if TYPE_CHECKING:
    from qlora_engine.architectures.trial import Trial


@click.command()
@click.argument("types", nargs=-1)
@click.option("--again", is_flag=True, help="Try once more what was found before.")
@output.json_option
def architectures(types: tuple[str, ...], again: bool, as_json: bool) -> None:
    """Say of each model type whether it trains here, or why not. TYPES: those alone; without, all that the installed
    transformers knows. Each is tried once as a tiny random model, which takes about a second; what was found is kept.
    """
    from qlora_engine.architectures import survey

    chosen = types or survey.model_types()
    _require_known(types, survey.model_types())
    found = []
    for trial in survey.survey(chosen, again=again):
        found.append(trial)
        if not as_json:
            output.say(f"{trial.model_type:<28}{words_of(trial)}")
    trained = sum(trial.trains for trial in found)
    if as_json:
        output.print_json({"trains": trained, "types": [asdict(trial) for trial in found]})
    else:
        output.say(f"\n{trained} of {len(found)} train here")


def words_of(trial: Trial) -> str:
    """`trains`, with what is particular, or the reason why not."""
    if not trial.trains:
        return trial.reason
    packs = [] if _packs(trial) else ["rows are not packed"]
    particular = "; ".join((*trial.notes, *packs))
    return f"trains ({particular})" if particular else "trains"


def _packs(trial: Trial) -> bool:
    from qlora_engine.architectures.trial import SAME_LOGITS

    return trial.packing_leak is not None and trial.packing_leak <= SAME_LOGITS


def _require_known(types: tuple[str, ...], known: tuple[str, ...]) -> None:
    for one in types:
        if one not in known:
            raise EngineError(
                "model.unknown_architecture",
                f"the installed transformers knows no model type {one!r} with text in it",
                did_you_mean(one, known),
            )
