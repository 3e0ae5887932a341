"""Job files: TOML in and out, presets, plain dictionaries; every problem at once, with did-you-mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from qlora_engine import parsing, paths
from qlora_engine.config import (
    SCHEMA_VERSION,
    Issue,
    TrainingConfig,
    all_knobs,
    get_value,
    tables,
    validate,
    with_value,
)
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.knobs import Knob, knobs_of
from qlora_engine.runs.sealed import write_aside

LARGE_MODEL_PARAMETERS = 30_000_000_000


class ConfigError(EngineError):
    """A job file or override that cannot be used; `issues` holds every problem."""

    def __init__(self, issues: list[Issue], source: str) -> None:
        self.issues = issues
        self.source = source
        count = f"{len(issues)} problems" if len(issues) > 1 else "a problem"
        details = "; ".join(str(issue) for issue in issues)
        verb = "have" if source.endswith("settings") else "has"
        super().__init__(
            "config.invalid", f"{source} {verb} {count}: {details}", "correct the named settings"
        )


@dataclass(frozen=True)
class Preset:
    """A named set of values that differ from the defaults."""

    name: str
    title: str
    description: str
    values: Mapping[str, Any]


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested plain values, as in a job file; the form in which a config crosses processes.

    An option left empty is left out, or written "none" where its default is not empty.
    """
    plain: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for table, cls in tables().items():
        values = {
            name: _written(knob, getattr(getattr(config, table), name))
            for name, knob in knobs_of(cls).items()
        }
        plain[table] = {name: value for name, value in values.items() if value is not None}
    return plain


def from_dict(plain: Mapping[str, Any], source: str = "the configuration") -> TrainingConfig:
    """The config of nested plain values; missing keys take their defaults.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range, all at once.
    """
    config = TrainingConfig()
    for path, knob in all_knobs().items():
        table, name = path.split(".", 1)
        given = plain.get(table, {})
        if isinstance(given, Mapping) and name in given:
            config = with_value(config, path, _typed(knob, given[name]))
    issues = [*_shape_issues(plain), *validate(config)]
    if issues:
        raise ConfigError(issues, source)
    return config


def loads(text: str, source: str = "the job file") -> TrainingConfig:
    """Parse TOML text.

    Raises:
        ConfigError, EngineError: not TOML (with the line), or not a valid job.
    """
    try:
        plain = parsing.from_toml(text)
    except parsing.Malformed as error:
        raise EngineError(
            "config.syntax", f"{source} is not valid TOML: {error}", "correct that line"
        ) from error
    return from_dict(plain, source)


def load(path: Path | str) -> TrainingConfig:
    """Read a job file.

    Raises:
        EngineError: it cannot be read; ConfigError: it is not valid.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError as error:
        raise EngineError(
            "config.unreadable",
            f"{path} is a folder, not a job file",
            f"name a file, such as {path / 'job.toml'}",
        ) from error
    except FileNotFoundError as error:
        raise EngineError(
            "config.missing", f"there is no job file {path}", f"write one with `qlora init {path}`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError("config.unreadable", f"{path} cannot be read: {error}", "check the file") from error
    return loads(text, str(path))


def dumps(config: TrainingConfig, *, is_commented: bool = False) -> str:
    """TOML text that `loads` gives back exactly; with `is_commented` each option carries its help."""
    document = tomlkit.document()
    document.add("schema_version", tomlkit.item(SCHEMA_VERSION))
    for table_name, cls in tables().items():
        table = tomlkit.table()
        for name, knob in knobs_of(cls).items():
            _add(table, knob, getattr(getattr(config, table_name), name), is_commented)
        document.add(table_name, table)
    return tomlkit.dumps(document)


def save(config: TrainingConfig, path: Path | str, *, is_commented: bool = False) -> None:
    write_aside(Path(path), dumps(config, is_commented=is_commented).encode("utf-8"))


def parse_override(text: str) -> tuple[str, Any]:
    """`lora.rank=8` -> ("lora.rank", 8). Values are TOML; a bare word is a text; `none` empties an option.

    Raises:
        EngineError: no such option, or no value.
    """
    path, equals, raw = text.partition("=")
    path = path.strip()
    knobs = all_knobs()
    if not equals:
        raise EngineError("config.override", f"{text!r} sets nothing", "write it as lora.rank=8")
    if path not in knobs:
        raise EngineError("config.unknown", f"there is no option {path!r}", did_you_mean(path, knobs))
    return path, _typed(knobs[path], _parse_value(raw.strip(), knobs[path]))


def with_overrides(config: TrainingConfig, overrides: list[str]) -> TrainingConfig:
    """`config` with `parse_override` of each applied, then validated.

    Raises:
        EngineError, ConfigError: as in `parse_override` and `from_dict`.
    """
    for text in overrides:
        path, value = parse_override(text)
        config = with_value(config, path, value)
    issues = validate(config)
    if issues:
        raise ConfigError(issues, "the settings")
    return config


def presets() -> list[Preset]:
    """The presets of `resources/presets`, in the order of their file names."""
    return [_read_preset(path) for path in sorted((paths.resources_dir() / "presets").glob("*.toml"))]


def load_preset(name: str, *, parameters: int | None = None, is_cpu: bool = False) -> TrainingConfig:
    """The config of a preset, adapted to the size of the model and to a machine without GPU.

    From 30B parameters the learning rate halves (PEERS' defaults; the paper does the same). On the CPU the
    optimizer is torch's fused AdamW, four times faster there than any of bitsandbytes.

    Raises:
        EngineError: no such preset.
    """
    found = {preset.name: preset for preset in presets()}
    if name not in found:
        raise EngineError("config.preset", f"there is no preset {name!r}", did_you_mean(name, found))
    config = apply_preset(TrainingConfig(), found[name])
    if parameters is not None and parameters >= LARGE_MODEL_PARAMETERS:
        config = with_value(config, "training.learning_rate", config.training.learning_rate / 2)
        if name == "guanaco":
            config = with_value(config, "lora.dropout", 0.05)
    if is_cpu:
        config = with_value(config, "training.optimizer", "adamw_torch_fused")
    return config


def apply_preset(config: TrainingConfig, preset: Preset) -> TrainingConfig:
    """`config` with the preset's values; model, data and output stay as they are."""
    for path in all_knobs():
        if path.split(".", 1)[0] in ("quantization", "lora", "training", "checkpoint"):
            config = with_value(config, path, get_value(TrainingConfig(), path))
    for path, value in preset.values.items():
        config = with_value(config, path, value)
    return config


def _read_preset(path: Path) -> Preset:
    plain = parsing.from_toml(path.read_text(encoding="utf-8"))
    about = plain.pop("preset")
    knobs = all_knobs()
    values = {
        f"{table}.{name}": _typed(knobs[f"{table}.{name}"], value if value != "none" else None)
        for table, entries in plain.items()
        for name, value in entries.items()
    }
    return Preset(path.stem.split("-", 1)[1], about["title"], about["description"], values)


def _shape_issues(plain: Mapping[str, Any]) -> Iterator[Issue]:
    version = plain.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        yield Issue("schema_version", f"must be {SCHEMA_VERSION}, not {version!r}")
    elif version > SCHEMA_VERSION:
        yield Issue(
            "schema_version",
            f"{version} was written by a newer program; this one knows {SCHEMA_VERSION}, so update it",
        )
    known_tables = tables()
    for table, entries in plain.items():
        if table == "schema_version":
            continue
        if table not in known_tables:
            yield Issue(table, f"is not a table of a job file; {did_you_mean(table, known_tables)}")
        elif not isinstance(entries, Mapping):
            yield Issue(table, "must be a table")
        else:
            names = knobs_of(known_tables[table])
            for name in entries:
                if name not in names:
                    yield Issue(f"{table}.{name}", f"is not an option; {did_you_mean(name, names)}")


def _typed(knob: Knob, value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.lower() == "none" and knob.is_optional):
        return None
    accepted = knob.accepted_types
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in accepted and int not in accepted:
        return float(value)
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()}
    return value


def _written(knob: Knob, value: Any) -> Any:
    """The value as TOML or JSON takes it; None when the option is to be left out."""
    if value is None:
        return None if knob.default is None else "none"
    return list(value) if isinstance(value, tuple) else value


def _add(table: Any, knob: Knob, value: Any, is_commented: bool) -> None:
    if is_commented:
        table.add(tomlkit.comment(_comment(knob)))
    written = _written(knob, value)
    if isinstance(written, dict):
        mapping = tomlkit.inline_table()
        mapping.update(written)
        written = mapping
    if written is not None:
        table.add(knob.name, written)
    elif is_commented:
        table.add(tomlkit.comment(f"{knob.name} ="))


def _comment(knob: Knob) -> str:
    words = [knob.help]
    if knob.choices:
        words.append("One of: " + ", ".join(knob.choices) + ".")
    if knob.unit:
        words.append(f"In {knob.unit}.")
    return " ".join(words)


def _parse_value(raw: str, knob: Knob) -> Any:
    if raw.startswith(("[", "{", '"', "'")):
        wanted = raw
    elif any(getattr(t, "__origin__", t) is tuple for t in knob.accepted_types):
        is_list = "," in raw or (str not in knob.accepted_types and raw.lower() != "none")
        return tuple(piece.strip() for piece in raw.split(",")) if is_list else raw
    elif str in knob.accepted_types:
        return raw
    else:
        wanted = raw
    try:
        return parsing.from_toml(f"value = {wanted}")["value"]
    except parsing.Malformed:
        return raw
