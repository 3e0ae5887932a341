"""The kit of wheels for a borrowed machine: small, listed, the same every time, and importable as it is."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.scripts import load_script

gpu_kit: Any = load_script("gpu_kit")
SMALL = ("tomlkit", "platformdirs", "dill")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit") / "wheels"
    gpu_kit.build(folder, fetches=False, level=1)
    return folder


def test_the_contents_are_listed_with_sizes_and_hashes(kit: Path) -> None:
    contents = json.loads((kit / "contents.json").read_text(encoding="utf-8"))
    files = {file.name: file.read_bytes() for file in kit.glob("*.whl")}
    assert {wheel["file"] for wheel in contents["wheels"]} == set(files)
    assert len(files) == len(gpu_kit.PACKED)
    for wheel in contents["wheels"]:
        data = files[wheel["file"]]
        assert (wheel["bytes"], wheel["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert set(contents["left_out"]) == set(gpu_kit.FETCHED)


def test_it_is_small(kit: Path) -> None:
    """Even hardly compressed, and with room for what is fetched."""
    assert sum(file.stat().st_size for file in kit.iterdir()) < gpu_kit.MOST_BYTES - 8 * gpu_kit.MIB


def test_bitsandbytes_is_cut_to_two_libraries(kit: Path) -> None:
    (wheel,) = kit.glob("bitsandbytes-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {name.rpartition("/")[2] for name in archive.namelist() if ".so" in name}
    assert libraries == {"libbitsandbytes_cuda130.so", "libbitsandbytes_cpu.so"}


@pytest.mark.parametrize("name", gpu_kit.PACKED)
def test_each_is_a_whole_wheel_of_this_version(name: str, kit: Path) -> None:
    """Its own record agrees with its files, and the metadata that tells its version is in it."""
    version = importlib.metadata.version(name)
    (wheel,) = kit.glob(f"{name}-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (record,) = (one for one in names if one.endswith(".dist-info/RECORD"))
        rows = [row.rsplit(",", 2) for row in archive.read(record).decode().splitlines()]
        assert {row[0] for row in rows} == names
        for path, digest, size in rows:
            if path == record:
                continue
            data = archive.read(path)
            found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={found}", len(data))
    assert not any("__pycache__" in one or one.startswith((".", "/")) for one in names)


def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    for name in SMALL:
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir(exist_ok=True)
            gpu_kit.pack(name, folder, 9)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["numpy", "multiprocess"])
def test_what_runs_on_this_python_alone_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(gpu_kit.KitError, match="alone; hint: "):
        gpu_kit.pack(name, tmp_path, 1)


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(gpu_kit.KitError, match=r"is not installed here; hint: .*\.venv"):
        gpu_kit.pack("no-such-package-anywhere", tmp_path, 1)


def test_too_large_a_kit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kit, "PACKED", SMALL)
    monkeypatch.setattr(gpu_kit, "MOST_BYTES", 1000)
    with pytest.raises(gpu_kit.KitError, match=r"the kit has .* MiB and may have"):
        gpu_kit.build(tmp_path / "kit", fetches=False, level=1)


def test_a_package_that_cannot_be_fetched_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_kit, "PACKED", SMALL)
    monkeypatch.setattr(gpu_kit, "FETCHED", ("wanted",))
    monkeypatch.setattr(gpu_kit, "fetch", lambda *_: (None, "ERROR: no network"))
    assert gpu_kit.main([str(tmp_path / "kit")]) == 0
    said = capsys.readouterr().out
    assert "left out: wanted: ERROR: no network" in said
    assert f"MiB in {len(SMALL)} wheels" in said
    assert json.loads((tmp_path / "kit" / "contents.json").read_text())["left_out"] == {
        "wanted": "ERROR: no network"
    }
