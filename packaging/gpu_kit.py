"""Puts the wheels together that a borrowed GPU machine lacks: `make gpu-kit`, or `python packaging/gpu_kit.py [OUT]`.

What this environment has in pure Python is packed from it, so that there it is exactly the version tested here;
bitsandbytes is cut down to its CUDA 13.0 and CPU libraries; the rest is fetched by pip for that machine's Python. The
folder's `contents.json` has each file's size and hash. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "gpu-kit"
CONTENTS = "contents.json"
MIB = 1024**2
MOST_BYTES = 40 * MIB
THERE = ("3.12", "x86_64")
"""Python and processor of the machine that the kit is for."""
GLIBCS = (28, 24, 17)
PACKED = ("bitsandbytes", "transformers", "peft", "datasets", "dill", "gguf", "tomlkit", "platformdirs")
FETCHED = (
    "multiprocess<0.70.20",  # a wheel for each Python
    "trl",  # to compare speed with
    "cupti-python>=13.0,<13.1",  # counts page moves; of the runtime's minor version
    "pyelftools",
)
LIBRARIES = ("libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so")
FIXED_TIME = (2020, 1, 1, 0, 0, 0)
"""Of every file inside a wheel packed here: the same contents give the same hash."""


class KitError(Exception):
    """A problem the person can mend; the text says what happened and the next step."""


@dataclass(frozen=True)
class Wheel:
    """One file of the kit. `origin`: packed or fetched."""

    file: str
    bytes: int
    sha256: str
    origin: str


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "out", nargs="?", type=Path, default=OUT, help=f"folder of the wheels (default {OUT})"
    )
    parser.add_argument("--no-fetch", action="store_true", help="only what this environment has")
    asked = parser.parse_args(arguments)
    try:
        wheels, missing = build(asked.out, fetches=not asked.no_fetch)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(wheels))
    for name, why in missing.items():
        print(f"left out: {name}: {why}")
    print(f"{sum(wheel.bytes for wheel in wheels) / MIB:.1f} MiB in {len(wheels)} wheels: {asked.out}")
    return 0


def build(out: Path, *, fetches: bool = True, level: int = 9) -> tuple[list[Wheel], dict[str, str]]:
    """Make the folder anew; (what is in it, what is left out and why).

    Raises:
        KitError: what only this environment can give is missing, or the kit is larger than 40 MiB.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    origins = {pack(name, out, level).name: "packed" for name in PACKED}
    missing = {}
    for wanted in FETCHED:
        if not fetches:
            missing[wanted] = "nothing was to be fetched"
            continue
        file, why = fetch(wanted, out)
        if file is None:
            missing[wanted] = why
        else:
            origins[file.name] = "fetched"
    wheels = [described(out / name, origin) for name, origin in sorted(origins.items())]
    contents = {"python": THERE[0], "wheels": [asdict(wheel) for wheel in wheels], "left_out": missing}
    (out / CONTENTS).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    total = sum(wheel.bytes for wheel in wheels)
    if total > MOST_BYTES:
        raise KitError(f"the kit has {total / MIB:.1f} MiB and may have {MOST_BYTES / MIB:.0f}; hint: leave a package out")  # fmt: skip
    return wheels, missing


def pack(name: str, out: Path, level: int) -> Path:
    """A wheel from an installed distribution, without what is not its own and what is not needed there.

    Raises:
        KitError: it is not installed, or has compiled code for this Python alone.
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise KitError(f"{name} is not installed here; hint: run this with the project's .venv, which `make test` makes") from None  # fmt: skip
    require_portable(found)
    wheel = out / f"{found.metadata['Name'].replace('-', '_')}-{found.version}-py3-none-any.whl"
    record = []
    info = ""
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for path, source in kept_files(found):
            data = source.read_bytes()
            info = path.partition("/")[0] if path.endswith(".dist-info/METADATA") else info
            record.append(f"{path},sha256={_encoded(data)},{len(data)}")
            archive.writestr(zipfile.ZipInfo(path, FIXED_TIME), data, zipfile.ZIP_DEFLATED, level)
        record.append(f"{info}/RECORD,,")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", FIXED_TIME), "\n".join(record) + "\n")
    return wheel


def require_portable(found: Distribution) -> None:
    """Refuse what runs only on this Python or this processor.

    Raises:
        KitError: its wheel says so.
    """
    tags = [line.split()[1] for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]  # fmt: skip
    if not any(tag.startswith(("py3-none-", "py2.py3-none-")) and tag.endswith(("-any", THERE[1])) for tag in tags):  # fmt: skip
        raise KitError(f"{found.metadata['Name']} here is for {', '.join(tags) or 'an unknown machine'} alone; hint: build the kit on a Linux machine with an x86-64 processor")  # fmt: skip


def kept_files(found: Distribution) -> Iterator[tuple[str, Path]]:
    """(path inside the wheel, file on disk) of a distribution, in order."""
    for one in sorted(found.files or (), key=str):
        path, source = one.as_posix(), Path(str(one.locate()))
        is_own = not path.startswith("..") and "__pycache__" not in path
        is_book = path.endswith((".dist-info/RECORD", ".dist-info/INSTALLER", ".dist-info/REQUESTED", ".dist-info/direct_url.json"))  # fmt: skip
        is_other_library = path.startswith("bitsandbytes/lib") and source.name not in LIBRARIES
        if is_own and not is_book and not is_other_library and source.is_file():
            yield path, source


def fetch(wanted: str, out: Path) -> tuple[Path | None, str]:
    """pip's wheel of `wanted` for the other machine, or None and why."""
    platforms = [f"--platform=manylinux_2_{minor}_{THERE[1]}" for minor in GLIBCS]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation=cp",
        f"--python-version={THERE[0]}", *platforms, f"--platform=manylinux2014_{THERE[1]}", "--dest", str(out), wanted,
    ]  # fmt: skip
    before = set(out.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    new = [file for file in out.iterdir() if file not in before]
    if done.returncode == 0 and new:
        return new[0], ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
        "pip brought nothing"
    ]
    return None, errors[-1]


def described(file: Path, origin: str) -> Wheel:
    data = file.read_bytes()
    return Wheel(file.name, len(data), hashlib.sha256(data).hexdigest(), origin)


def table(wheels: list[Wheel]) -> str:
    """Sizes and hashes, a line each."""
    width = max(len(wheel.file) for wheel in wheels)
    return "\n".join(f"{wheel.file:<{width}} {wheel.bytes:>12,} {wheel.origin:<8} sha256 {wheel.sha256}" for wheel in wheels)  # fmt: skip


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
