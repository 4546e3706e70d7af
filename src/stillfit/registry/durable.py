"""Writes that a kill, a power cut or a full disk cannot leave half done.

Every file is written under a temporary name beside its own, flushed to the disk and renamed over
it: a reader finds the old file or the new one, never a part. All system calls go through the
module `os`, one place where a test can stop a process at any of them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from stillfit.core.errors import LockedError, RegistryError

Parts: TypeAlias = "Sequence[bytes | memoryview]"
TEMPORARY = ".tmp-"


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an `OSError` met while `path` is written into a `RegistryError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"the disk is full: {path} could not be written ({error.strerror}); nothing that "
                "was already stored is lost: free some space and start again"
            )
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            text = (
                f"{path} may not be written ({error.strerror}); "
                "check who owns the registry and whether its disk is mounted read-only"
            )
        else:
            text = (
                f"{path} could not be written ({error.strerror or error}); nothing that was "
                "already stored is lost: see to the disk and start again"
            )
        raise RegistryError(text) from error


def inside(root: Path, *names: str) -> Path:
    """`root/names...`, refused if a name leads out of `root` or a step is a symbolic link.

    A link could make a copied registry read or overwrite files of its new surroundings.
    """
    path = root
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise RegistryError(f"{name!r} cannot name a file of the registry {root}")
        path = path / name
        if path.is_symlink():
            raise RegistryError(
                f"{path} is a symbolic link; a registry holds plain files only: "
                "put the file itself there (rsync --copy-links does)"
            )
    return path


def sync_dir(path: Path) -> None:
    """Make the names in a directory durable: a rename is lost without it if the power fails."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, parts: Parts) -> None:
    """Write every byte; the system may take fewer at a time than it was given."""
    for part in parts:
        view = memoryview(part).cast("B") if len(part) else memoryview(b"")
        while len(view):
            view = view[os.write(handle, view) :]


def overwrite(handle: int, data: bytes) -> None:
    """Replace the start of an open file by one write, which a kill cannot cut."""
    written = os.pwrite(handle, data, 0)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill(path: Path, parts: Parts) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    try:
        write_all(handle, parts)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, parts: Parts) -> None:
    """Put a whole file in place, or leave what was there. Cost: a flush of file and directory."""
    write_files(path.parent, {path.name: parts})


def write_files(directory: Path, files: Mapping[str, Parts]) -> None:
    """Put whole files in place. Cost: a flush of each, one of the directory.

    A kill or a full disk may leave some of them in place and others not, but none in part.
    """
    temporary = {name: directory / (TEMPORARY + name) for name in files}
    path = directory
    try:
        for name, parts in files.items():
            path = directory / name
            with reported(path):
                _fill(temporary[name], parts)
        for name in files:
            path = directory / name
            with reported(path):
                temporary[name].replace(path)
    except RegistryError:
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)
        raise
    with reported(path):
        sync_dir(directory)


def write_dir(path: Path, files: Mapping[str, Parts]) -> None:
    """Put a whole directory of files in place; `path` must not exist."""
    temporary = path.with_name(TEMPORARY + path.name)
    with reported(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, parts in files.items():
                _fill(temporary / name, parts)
            sync_dir(temporary)
            temporary.rename(path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_dir(path.parent)


def make_dir(path: Path) -> None:
    """A directory that is there after a power cut too; nothing if it exists."""
    if path.is_dir():
        return
    with reported(path):
        path.mkdir(parents=True, exist_ok=True)
        sync_dir(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed writer left under temporary names."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name.startswith(TEMPORARY):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class Lock:
    """The right to write to a registry, held by one process at a time.

    An advisory lock of the kernel (`flock`): it ends with its holder however that dies, so no
    stale lock can be left. The file `lock` only says who holds it.
    """

    def __init__(self, root: Path) -> None:
        path = inside(root, "lock")
        with reported(path):
            self._handle = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(self._handle, 1000, 0)
                os.close(self._handle)
                raise LockedError(
                    f"{root} is being written by {_holder(text)}; wait for it to end or stop it "
                    "first (reading needs no lock, and a running loop takes a person's commands)"
                ) from None
            except OSError:
                os.close(self._handle)
                raise
            who = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
            # Who holds the lock is a courtesy: on a full disk the text may be missing.
            with suppress(OSError):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, who, 0)

    def release(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _holder(text: bytes) -> str:
    try:
        who = json.loads(text)
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
