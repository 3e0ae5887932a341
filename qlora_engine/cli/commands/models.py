"""`qlora models` lists what can be named, `qlora inspect` tells the facts of one without loading its weights."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import click

from qlora_engine.cli import output

if TYPE_CHECKING:
    from qlora_engine.memory.choosing import Choice, Room
    from qlora_engine.models.catalog import CatalogEntry
    from qlora_engine.models.spec import ModelFacts, StackedFact

offline_option = click.option("--offline", is_flag=True, help="Use only what is on this disk.")
revision_option = click.option("--revision", help="Branch, tag or commit of a hub model.")


@click.command()
@click.argument("query", required=False, default="")
@click.option("--fits", "only_fitting", is_flag=True, help="Only those that fit with rows of 1,024 tokens.")
@click.option("--chat", "only_chat", is_flag=True, help="Only those that were tuned to answer.")
@click.option("--gpu", metavar="NAME", help="The GPU to judge by. [default: this machine]")
@output.json_option
def models(query: str, only_fitting: bool, only_chat: bool, gpu: str | None, as_json: bool) -> None:
    """List the models that can be named. The starter, your own, those in the hub's cache, and known names.

    QUERY is words of a name, a type or a licence: `qlora models qwen3 apache`.
    """
    from qlora_engine.config import TrainingConfig
    from qlora_engine.memory import choosing
    from qlora_engine.models import catalog, known

    names = [model.name for model in known.known_models()]
    is_asked = bool(query or only_fitting or only_chat or gpu)
    entries = [] if is_asked and not as_json else catalog.list_models()
    if not is_asked and not as_json:
        _print_entries(entries)
        _print_names(names)
        return
    room = choosing.room_of(gpu) if gpu else choosing.room_here()
    found = choosing.choices(TrainingConfig(), room, query=query, is_chat=only_chat)
    found = [one for one in found if one.fits(room) or not only_fitting]
    cached = {name for name, _ in catalog.cached_models()}
    if as_json:
        output.print_json({
            "models": [dataclasses.asdict(entry) for entry in entries], "known": names,
            "judged_by": {"title": room.title, "device": room.device, "usable_bytes": room.usable_bytes},
            "choices": [choosing.to_json(one, room, cached) for one in found],
        })  # fmt: skip
    else:
        _print_choices(found, room, cached)


def _print_entries(entries: Sequence[CatalogEntry]) -> None:
    rows = [
        (
            entry.name,
            entry.origin,
            output.count(entry.parameters),
            _readiness(entry),
            entry.licence or output.NOT_AVAILABLE,
        )
        for entry in entries
    ]
    output.table(("name", "from", "parameters", "ready", "licence"), rows)
    for entry in entries:
        if entry.problem:
            output.note(f"{entry.name}: {entry.problem}")


def _print_names(names: Sequence[str]) -> None:
    output.say(
        f"\n{len(names)} are known by name, so that `estimate` and `inspect` work without the weights; with sizes, context, "
        f"licence and what fits here: {output.program()} models --fits, or with words to search for"
    )
    output.say(
        textwrap.fill(
            ", ".join(names), 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
        )
    )


def _print_choices(found: Sequence[Choice], room: Room, cached: Collection[str]) -> None:
    if not found:
        output.say("no known model is so; search for fewer words, or leave --fits and --chat out")
        return
    heads = ("name", "parameters", "active", "context", "tuned to", "download", "1,024 tokens", "longest rows", "licence", "here")  # fmt: skip
    output.table(heads, [_choice_row(one, room, cached) for one in found])
    output.say(
        f"\njudged by {room.title}: {output.size(room.usable_bytes)} for one row at a time, otherwise as a new run is set; "
        "longest rows: the longest of the usual lengths that fit"
    )
    if any(one.host_bytes for one in found):
        output.say(
            "host: so much of its experts waits in the computer's memory, with quantization.expert_placement=host"
        )


def _choice_row(one: Choice, room: Room, cached: Collection[str]) -> tuple[str, ...]:
    model, facts = one.model, one.model.facts()
    likely = (
        output.size(one.likely_bytes) if one.fits(room) else f"{output.size(one.likely_bytes)}, too large"
    )
    return (
        model.name,
        output.count(facts.parameters),
        output.count(facts.active_parameters) if facts.stacked else "",
        f"{facts.max_positions:,}" if facts.max_positions else output.NOT_AVAILABLE,
        {True: "chat", False: "continue text", None: output.NOT_AVAILABLE}[model.is_chat],
        output.size(model.download_bytes),
        likely + (f" + {output.size(one.host_bytes)} host" if one.host_bytes else ""),
        f"{one.longest:,}" if one.longest else "none",
        model.licence or output.NOT_AVAILABLE,
        "yes" if model.hub_id in cached else "",
    )


def _readiness(entry: CatalogEntry) -> str:
    if entry.problem:
        return "no"
    return "yes" if entry.is_ready else "when first used"


@click.command()
@click.argument("model")
@revision_option
@offline_option
@output.json_option
def inspect(model: str, revision: str | None, offline: bool, as_json: bool) -> None:
    """Tell what a model is made of and what would be quantized. No weights are loaded."""
    from qlora_engine.config import ModelSettings
    from qlora_engine.models import catalog
    from qlora_engine.models.spec import facts_to_dict

    facts = catalog.facts_for(ModelSettings(name=model, revision=revision, offline=offline))
    if as_json:
        output.print_json(facts_to_dict(facts))
        return
    output.fields(_headline(facts))
    output.say()
    rows = [
        (
            fact.path,
            f"{fact.in_features} x {fact.out_features}",
            str(fact.count),
            "4 bit" if fact.is_quantized else "16 bit",
        )
        for fact in facts.linears
    ]
    output.table(("linear layer", "shape", "count", "kept in"), rows)
    output.say()
    if facts.stacked:
        output.table(("experts", "shape", "count", "kept in"), [_stacked_row(one) for one in facts.stacked])
        output.say()
    others = [(t.name, _shape(t.shape), str(t.count), t.role, t.why) for t in facts.unquantized]
    output.table(("other tensor", "shape", "count", "role", "in 16 bits because"), others)


def _stacked_row(one: StackedFact) -> tuple[str, str, str, str]:
    return one.path, _shape(one.shape), str(one.count), "4 bit" if one.is_quantized else "16 bit"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _missing_rows(facts: ModelFacts) -> list[tuple[str, str]]:
    if (facts.tokenizer_rows or 0) <= facts.vocab_size:
        return []
    words = f"has {facts.tokenizer_rows:,} entries; model.resize_embeddings gives the others embeddings"
    return [("tokenizer", words)]


def _headline(facts: ModelFacts) -> list[tuple[str, str]]:
    kv = f", {facts.kv_heads} key-value heads" if facts.kv_heads != facts.heads else ""
    experts = f", {facts.experts} experts ({facts.experts_per_token} per token)" if facts.experts else ""
    share = facts.quantized_parameters / facts.parameters
    return [
        ("model", facts.name),
        ("from", f"{facts.origin}{' at ' + facts.path if facts.path else ''}"),
        ("architecture", f"{facts.architecture} ({facts.model_type})"),
        ("layers", f"{facts.layers} of width {facts.hidden_size}, {facts.heads} heads{kv}{experts}"),
        (
            "vocabulary",
            f"{facts.vocab_size:,} tokens, head {'tied to' if facts.is_tied else 'apart from'} the embeddings",
        ),
        *_missing_rows(facts),
        ("longest input", f"{facts.max_positions:,} tokens" if facts.max_positions else output.NOT_AVAILABLE),
        ("parameters", output.count(facts.parameters)),
        ("quantized", f"{output.count(facts.quantized_parameters)} ({share:.0%})"),
        ("stored", f"{output.size(facts.stored_bytes)} as {facts.stored_dtype or output.NOT_AVAILABLE}"),
        *([("comes quantized", facts.packing)] if facts.packing else []),
        ("licence", facts.licence or output.NOT_AVAILABLE),
        ("chat template", "yes" if facts.chat_template else "none: choose one with data.chat_template"),
    ]
