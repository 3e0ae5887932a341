"""Which process trains a run: a lock of the operating system, and who it is that holds it. Torch-free.

A lock ends with its process and knows no clock. Where there is none (a deleted file, a file system without locks) the
process counts that the record names by number, boot and moment of its start, in ticks since that boot.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import platform
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EREMOTEIO)
TAKING_SECONDS = 1.0
NETWORK_SYSTEMS = (
    "nfs", "cifs", "smb", "9p", "ceph", "lustre", "gluster", "beegfs", "afs", "gfs", "ocfs", "dav", "sshfs", "s3fs",
    "rclone", "vboxsf", "prl_fs", "afpfs", "gpfs", "drvfs",
)  # fmt: skip


class Lock:
    """A lock on a file, held until released or until this process is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """False when another holds it. A reader that is just looking holds it for a moment, so it is tried for a while.

        Raises:
            OSError: the file cannot be written, or has a file system without locks (`NO_LOCKS`).
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + TAKING_SECONDS
        try:
            while not _try_lock(descriptor, is_shared=False):
                if time.monotonic() > until:
                    os.close(descriptor)
                    return False
                time.sleep(0.05)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(path: Path) -> bool | None:
    """Whether any process holds the lock; None where there is no lock to ask."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return not _try_lock(descriptor, is_shared=True)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def identity(pid: int) -> dict[str, Any]:
    """What a record keeps of the process that trains: nothing in it moves when the clock is set."""
    return {"pid": pid, "pid_started": started(pid), "boot": boot_id(), "host": host()}


def is_alive(record: Mapping[str, Any]) -> bool:
    """True when the process that the record names still runs on this boot of this computer."""
    pid = record.get("pid")
    if not isinstance(pid, int) or pid <= 0 or record.get("boot", boot_id()) != boot_id():
        return False
    now, then = started(pid), record.get("pid_started")
    return now is not None and (not isinstance(then, int | float) or abs(now - then) < 1)


def is_elsewhere(path: Path, record: Mapping[str, Any]) -> bool:
    """True when another computer may be at work in this folder, and this one cannot tell."""
    is_other = record.get("host", host()) != host() and record.get("boot") != boot_id()
    return is_other and is_network(path)


def is_network(path: Path) -> bool:
    return file_system(path).startswith(NETWORK_SYSTEMS)


def file_system(path: Path) -> str:
    """The kind of the file system that holds `path`, such as `ext4` or `nfs4`; empty where it cannot be told."""
    with contextlib.suppress(OSError, psutil.Error):
        place = path.resolve()
        mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
        found = max((m for m in mounts if place.is_relative_to(m)), key=lambda m: len(m.parts), default=None)
        return mounts[found].lower().removeprefix("fuse.") if found else ""
    return ""


@functools.cache
def boot_id() -> str:
    """One text per start of this computer; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@functools.cache
def host() -> str:
    """This computer: its name and the number of its network card."""
    return f"{platform.node()}-{uuid.getnode():x}"


def started(pid: int) -> float | None:
    """When a process began, in ticks since the boot (Linux) or seconds; None when it is gone."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform != "linux":
            return psutil.Process(pid).create_time()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        return float(fields.split()[19])
    except (psutil.Error, OSError, IndexError, ValueError, OverflowError):
        return None


def _try_lock(descriptor: int, *, is_shared: bool) -> bool:
    """False when another open file holds it."""
    if sys.platform == "win32":
        return _try_lock_windows(descriptor)
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # what some network file systems answer instead
        return False
    return True


def _try_lock_windows(descriptor: int) -> bool:
    import importlib

    msvcrt: Any = importlib.import_module("msvcrt")
    os.lseek(descriptor, 1 << 30, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
