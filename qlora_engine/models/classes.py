"""Facts that the class itself tells: transformers builds it without memory in a child process, once. Torch-free.

Kept on disk by hash of the configuration and the versions of the libraries; a process that has transformers loaded
already asks it directly.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qlora_engine import child, installed, kept, parsing, paths
from qlora_engine.errors import EngineError
from qlora_engine.models.parts import ModelFacts, parts_from_dict

SCHEMA = 2
CHILD_SECONDS = 180
SIZES = (
    "hidden_size", "layers", "heads", "kv_heads", "head_dim", "intermediate_size", "vocab_size", "max_positions",
    "is_tied", "experts", "experts_per_token", "sliding_window", "blocks",
)  # fmt: skip
MAPPINGS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seeing": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}


def facts_from_class(
    config: Mapping[str, Any], text: Mapping[str, Any], name: str, *, origin: str
) -> ModelFacts:
    """Facts of a model from the class that transformers builds of `text`, the text part of `config`.

    Raises:
        EngineError: transformers does not know the type, has no causal language model of it, or refuses the values.
    """
    return facts_of_description(description(text), config, text, name, origin=origin)


def facts_of_description(
    found: Mapping[str, Any], config: Mapping[str, Any], text: Mapping[str, Any], name: str, *, origin: str
) -> ModelFacts:
    """The facts that `description` found."""
    parts = parts_from_dict(found)
    return ModelFacts(
        name=name,
        origin=origin,
        path=None,
        revision=None,
        architecture=str(found["class"]),
        model_type=str(text.get("model_type", "unknown")),
        config=config,
        is_gated_mlp=any("gate" in one.name for one in (*parts["linears"], *parts["stacked"])),
        source="class",
        **{key: found[key] for key in SIZES},
        **parts,
    )


def description(text: Mapping[str, Any]) -> dict[str, Any]:
    """What `class_child.describe` says of it: from the disk, from this process, or from a child.

    Raises:
        EngineError: see `facts_from_class`.
    """
    file = _file(text)
    known = _read(file)
    if known is not None:
        return known
    found = _here(text) if _has_transformers() else _in_child(text)
    if "error" in found:
        code, message, hint = found["error"]
        raise EngineError(code, message, hint)
    if found["is_own"]:  # a class registered by a program may change without a version
        kept.keep(file, found)
    return found


def is_known(model_type: str) -> bool:
    """True when the installed transformers has a causal language model of that type, or a program registered one."""
    if model_type in types_of("causal"):
        return True
    if not _has_transformers():
        return False
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        return type(AutoConfig.for_model(model_type)) in AutoModelForCausalLM._model_mapping
    except ValueError:
        return False


@cache
def types_of(kind: str) -> tuple[str, ...]:
    """The model types that the installed transformers maps to a class (`causal`, `seeing`), read from its source without
    importing it; none where it is not installed or its source looks otherwise."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        return ()
    file = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == MAPPINGS[kind]:
            strings = [one.elts[0] for one in ast.walk(node.value) if isinstance(one, ast.Tuple) and one.elts]
            return tuple(sorted({str(one.value) for one in strings if isinstance(one, ast.Constant)}))
    return ()


def versions() -> list[str]:
    """Of the libraries that a class depends on."""
    return [f"{name} {installed.version(name)}" for name in ("transformers", "torch")]


def _has_transformers() -> bool:
    return "transformers" in sys.modules and "torch" in sys.modules


def _here(text: Mapping[str, Any]) -> dict[str, Any]:
    from qlora_engine.models import class_child

    return dict(parsing.from_json(json.dumps(class_child.describe(text))))


def _in_child(text: Mapping[str, Any]) -> dict[str, Any]:
    try:
        done = subprocess.run(
            child.command("qlora_engine.models.class_child"),
            input=json.dumps(text, default=str),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=CHILD_SECONDS,
            env={**child.environment(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return parsing.from_json(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            "model.class", f"building the class took longer than {CHILD_SECONDS} seconds", "try again when the machine is less busy",
            is_input_error=False,
        ) from error  # fmt: skip
    except ValueError as error:
        said = done.stderr.strip().splitlines()
        raise EngineError(
            "model.class", f"the class could not be built: {said[-1] if said else f'exit code {done.returncode}'}",
            "run `qlora doctor` to see whether transformers and torch work", is_input_error=False,
        ) from error  # fmt: skip


def _file(text: Mapping[str, Any]) -> Path:
    key = json.dumps([SCHEMA, versions(), dict(text)], sort_keys=True, default=str)
    return paths.cache_dir() / "classes" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        plain = parsing.from_json(file.read_text(encoding="utf-8"))
        parts_from_dict(plain)
        return plain if all(key in plain for key in SIZES) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
