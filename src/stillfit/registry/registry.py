"""The registry: one directory that says what was deployed, when and why, and can go back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import stillfit
from stillfit.core.arrays import Array
from stillfit.core.errors import DamagedError, LockedError, RegistryError
from stillfit.core.values import JSON, VersionId
from stillfit.registry import versions
from stillfit.registry.canon import readable
from stillfit.registry.checkpoints import Checkpoint, Checkpoints
from stillfit.registry.commands import Command, check_command, leave, waiting
from stillfit.registry.durable import Lock, inside, make_dir, remove_leftovers, write_file
from stillfit.registry.entries import HOLD, RESUME, SERVING, Entry
from stillfit.registry.index import BESIDE
from stillfit.registry.journal import HEAD, INDEX, LOG, Head, Journal
from stillfit.registry.measurements import Measurement, add_measurement, read_measurements
from stillfit.registry.versions import Manifest, StoredVersion, VersionFacts
from stillfit.registry.writer import Writer

FORMAT = 1
MARK = "REGISTRY.json"
ROOMS = ("versions", "checkpoints", "segments", "inbox")
OWN = ("lock", LOG, HEAD, *(INDEX + extra for extra in BESIDE), *ROOMS)


class Registry:
    """An open registry. Reading needs no lock; one process at a time may write.

    Use it in one thread, as a context manager or with `close`.
    """

    def __init__(self, root: Path, journal: Journal, lock: Lock | None) -> None:
        self._root = root
        self._journal = journal
        self._lock = lock
        self._checkpoints = Checkpoints(root)

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether a registry is there; one whose making was cut off is not, and can be made."""
        return (Path(path) / MARK).is_file()

    @classmethod
    def create(cls, path: Path | str) -> Registry:
        """Make an empty registry and open it for writing.

        `RegistryError` if one is there, or if the directory holds anything else.
        """
        root = Path(path).resolve()
        if cls.exists(root):
            raise RegistryError(f"there is a registry in {root} already; open it instead")
        make_dir(root)
        lock = Lock(root)
        try:
            remove_leftovers(root)
            foreign = sorted({p.name for p in root.iterdir()} - set(OWN))
            if foreign:
                raise RegistryError(
                    f"{root} is not empty (it holds {foreign[0]!r}); "
                    "a new registry needs a directory of its own"
                )
            for room in ROOMS:
                make_dir(inside(root, room))
            mark = readable({"created_by": f"stillfit {stillfit.__version__}", "format": FORMAT})
            Journal.create(root, mark)
            write_file(inside(root, MARK), [mark])
        except BaseException:
            lock.release()
            raise
        lock.release()
        return cls.open(root, write=True)

    @classmethod
    def open(cls, path: Path | str, *, write: bool = False) -> Registry:
        """Open a registry, moved or copied from wherever.

        For writing it takes the lock (`LockedError` if another process has it), clears what a
        killed writer left and checks the whole journal (`DamagedError`).
        """
        root = Path(path).resolve()
        check_format(root)
        if not write:
            return cls(root, Journal.read(root), None)
        lock = Lock(root)
        try:
            for room in ROOMS:
                make_dir(inside(root, room))
            runs = sorted(path.name for path in inside(root, "checkpoints").iterdir())
            for place in ((), *((r,) for r in ROOMS[:-1]), *(("checkpoints", r) for r in runs)):
                remove_leftovers(inside(root, *place))
            return cls(root, Journal.write(root), lock)
        except BaseException:
            lock.release()
            raise

    @property
    def root(self) -> Path:
        return self._root

    @property
    def head(self) -> Head:
        """Number of journal entries and hash of the last: kept elsewhere, it proves the whole."""
        return self._journal.head

    # -- versions ---------------------------------------------------------------------------------

    def add_version(
        self,
        facts: VersionFacts,
        *,
        weights: Mapping[str, Array],
        learner: Mapping[str, Array] | None = None,
        evidence: Any = None,
    ) -> VersionId:
        """Store a version; equal content gives the equal id and is stored once."""
        self._need_lock()
        return versions.store_version(
            self._root, facts, weights=weights, learner=learner or {}, evidence=evidence
        )

    def load_version(self, version: VersionId) -> StoredVersion:
        """Weights, learner state, evidence and manifest, every hash checked."""
        return versions.load_version(self._root, version)

    def manifest(self, version: VersionId) -> Manifest:
        """What a version is and was trained on, without its arrays."""
        return versions.load_manifest(self._root, version)

    def versions(self) -> tuple[VersionId, ...]:
        """All versions, sorted by id."""
        return versions.list_versions(self._root)

    def lineage(self, version: VersionId) -> tuple[Manifest, ...]:
        """A version, its parent, and so on to the first, each with what it was trained on."""
        return versions.lineage(self._root, version)

    # -- journal ----------------------------------------------------------------------------------

    def writer(self, lane: str, position: int = 0) -> Writer:
        """The lane's place in the journal, for a loop that starts from a checkpoint's position."""
        self._need_lock()
        return Writer(self._root, self._journal, lane, position)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Entries written inside, of any lane, become durable together, at the cost of one."""
        self._need_lock()
        with self._journal.batch():
            yield

    def lanes(self) -> list[str]:
        """Names of all lanes that have an entry."""
        return self._journal.lanes()

    def history(
        self,
        lane: str | None = None,
        *,
        kinds: Sequence[str] | None = None,
        since: int = 0,
        until: float | None = None,
        newest: int | None = None,
    ) -> list[Entry]:
        """Entries in order: of one lane, of some kinds, from a number, up to a time, the last n."""
        return self._journal.entries(
            lane=lane, kinds=kinds, since=since, until=until, newest=newest
        )

    def serving(self, lane: str, at: float | None = None) -> VersionId | None:
        """The version that served in a lane at a time (s) of the stream, None before the first."""
        entry = self.change(lane, at)
        return None if entry is None else entry.version

    def change(self, lane: str, at: float | None = None) -> Entry | None:
        """The entry that made the serving version serve: since when, and why."""
        return self._journal.last(lane, SERVING, at)

    def previous(self, lane: str) -> VersionId | None:
        """The version that served before the present one, which a rollback would go to."""
        served = [entry.version for entry in self._journal.entries(lane=lane, kinds=SERVING)]
        before = [version for version in served if version != served[-1]]
        return before[-1] if before else None

    def held(self, lane: str, at: float | None = None) -> Entry | None:
        """The entry that holds the lane: by whom, since when, and why; None if it is not held."""
        entry = self._journal.last(lane, (HOLD, RESUME), at)
        return entry if entry is not None and entry.kind == HOLD else None

    def waiting(self, lane: str | None = None) -> list[Command]:
        """Commands that the running loop has not yet taken."""
        return [command for _, command in waiting(self._root, lane)]

    # -- measurements and checkpoints -------------------------------------------------------------

    def measure(self, lane: str, what: str, figures: Mapping[str, float]) -> None:
        """Keep figures of the wall clock or the machine, outside of every hash."""
        self._need_lock()
        add_measurement(self._root, Measurement(lane=lane, what=what, figures=dict(figures)))

    def measurements(self, lane: str | None = None) -> list[Measurement]:
        """What `measure` kept, oldest first."""
        found = read_measurements(self._root)
        return [m for m in found if lane in (None, m.lane)]

    def save_checkpoint(
        self,
        run: str,
        position: int,
        state: Mapping[str, JSON],
        arrays: Mapping[str, Array],
        segments: Mapping[str, Mapping[str, Array] | None] | None = None,
    ) -> None:
        """Store a loop's state at a position of its stream; see `Checkpoints.save`."""
        self._need_lock()
        if self._journal.in_batch:
            raise RegistryError("a checkpoint cannot be saved inside a batch of entries")
        self._journal.flush()
        self._checkpoints.save(run, position, state, arrays, self._journal.head, segments)

    def stored_segments(self, run: str) -> set[str]:
        """Names of the segments that the next checkpoint of a run may keep without their arrays."""
        return self._checkpoints.stored(run)

    def load_checkpoint(self, run: str) -> Checkpoint | None:
        """The last whole checkpoint of a run; see `Checkpoints.load`."""
        found = self._checkpoints.load(run)
        if self._lock is not None and found is not None and found.warning is None:
            # What a writer killed right after its last checkpoint had no time to clear away.
            self._checkpoints.clear(run, found.position)
        return found

    # ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release files and lock."""
        try:
            self._journal.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def order(path: Path | str, command: Command) -> Entry | None:
        """Give a person's command: journaled at once, or left for the loop that is running (None).

        At once it carries the time of the lane's last entry, as no stream is running. A command
        that makes no sense now (resume where nothing is held, ...) is a `RegistryError`.
        """
        try:
            with Registry.open(path, write=True) as registry:
                journal = registry._journal
                check_command(journal, registry._root, command)
                last = journal.last(command.lane)
                return journal.append(command.draft(0.0 if last is None else last.time))
        except LockedError:
            with Registry.open(path) as registry:
                check_command(registry._journal, registry._root, command)
                leave(registry._root, command)
            return None

    def _need_lock(self) -> None:
        if self._lock is None:
            raise RegistryError(
                f"the registry {self._root} is open for reading; open it with write=True to write"
            )


def check_format(root: Path) -> None:
    """`RegistryError` unless `root` holds a registry that this release can read."""
    path = inside(root, MARK)
    try:
        found = json.loads(path.read_bytes())["format"]
        if type(found) is not int or found < 1:
            raise TypeError
    except (FileNotFoundError, NotADirectoryError):
        raise RegistryError(
            f"there is no registry in {root} ({MARK} is missing); "
            "give the directory that `stillfit run` or `stillfit demo` wrote"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path} was altered: it is not valid; take it from a copy") from None
    if found > FORMAT:
        raise RegistryError(
            f"the registry {root} has format {found}, this release reads up to {FORMAT}: "
            "it was written by a newer stillfit, update this one"
        )
