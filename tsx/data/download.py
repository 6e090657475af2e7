"""Downloads partitions so that nothing half-written is ever taken for whole.

Order of things: what is on disk is checked by digest; every meta.json comes first and is compared
with the Hub's sizes; shards that are to change are removed, the metas put in place, then the shards
one by one. A file has its name only when its digest is right, so a break leaves data sets whose
shards are missing, which the readers refuse, and the parts of shards, which go on where they
broke off. At the end every data set is opened by the readers' own code.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from tsx.data.catalog import iter_paths, matches
from tsx.data.download_plan import Partition, Plan, find_owner
from tsx.data.hub import Hub, RemoteFile
from tsx.data.meta import read_meta
from tsx.data.parts import Part, Progress, count_kept, locate_part
from tsx.data.record import (
    FOLDER,
    PartitionRecord,
    Record,
    find_record,
    hold_lock,
    holds,
    write_record,
)
from tsx.data.series import META_NAME, DataSet, MapPool, open_dataset
from tsx.errors import DataError, TsxError

WORKERS = 8
_TICK_S = 0.1
_PATIENCE_S = 0.5  # for workers to write what they hold, when the download breaks off
_RECORD_EVERY = 50  # files; a killed process hashes at most so many again


Watch = Callable[[Progress], None]


def download(plan: Plan, hub: Hub, watch: Watch, notify: Callable[[str], None]) -> list[DataSet]:
    """Fetch what a plan lacks, check everything, and return the data sets, opened.

    Args:
        plan: of `make_plan`.
        hub: the repository of the plan.
        watch: called a few times a second, in this thread, with the same object.
        notify: told what is done beside fetching, in this thread.

    Raises:
        TsxError: the Hub failed, the disk is full, or what came is not what was announced. All
            that was fetched stays, and the same request goes on with it.
        KeyboardInterrupt: as it came; what was fetched stays here too.
    """
    try:
        with hold_lock(plan.folder):
            return _Download(plan, hub, watch, notify).run()
    except OSError as error:
        raise explain_disk(error, plan.folder) from None


def explain_disk(error: OSError, folder: Path) -> TsxError:
    """Return what the user is told when the folder cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TsxError(
            f"the disk is full in {folder}; what was fetched stays",
            next_command="free some room and give the same command; it goes on where it broke off",
        )
    return TsxError(
        f"cannot write {error.filename or folder}: {error.strerror}",
        next_command="--time300b-dir DIR where you may write",
    )


def list_on_disk(folder: Path) -> list[tuple[str, str]]:
    """Return each data set under a folder with what the readers say against it, "" if nothing."""
    if not folder.is_dir():
        return []
    pool, found = MapPool(), []
    for path in sorted(iter_paths(folder)):
        name = path.relative_to(folder).as_posix()
        try:
            if path.is_dir():
                open_dataset(name, path, pool)
            found.append((name, ""))
        except DataError as error:
            found.append((name, error.message))
    return found


def is_complete(folder: Path, repo: str, patterns: Sequence[str], revision: str) -> bool:
    """Tell, without the Hub, whether this very request was completed and is still whole.

    Args:
        folder: of the download.
        repo: as asked for.
        patterns: as asked for.
        revision: as asked for: the branch or tag of the last request, or a commit.
    """
    record = find_record(folder)
    if record is None or record.repo != repo:
        return False
    if any(pattern not in record.completed for pattern in patterns):
        return False
    commits = {record.completed[pattern] for pattern in patterns}
    if commits != {record.commit if revision == record.revision else revision}:
        return False
    asked = {name for name in record.partitions if matches(name, patterns)}
    # A later request for another revision may have replaced some of them.
    if any(record.partitions[name].commit not in commits for name in asked):
        return False
    files = {
        name: known.digest
        for name, known in record.files.items()
        if find_owner(name, record.partitions) in asked
    }
    return all(record.trusts(folder, name, digest) for name, digest in files.items()) and not any(
        fault for name, fault in list_on_disk(folder) if name in asked
    )


def _move(part: Path, path: Path) -> None:
    """Give a part its name, also where a link has put that on another disk."""
    try:
        part.replace(path)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        draft = path.with_name(f".{path.name}.part")
        shutil.copyfile(part, draft)
        draft.replace(path)
        part.unlink()


class _Download:
    """One run of `download`; the phases are its methods, in order."""

    def __init__(self, plan: Plan, hub: Hub, watch: Watch, notify: Callable[[str], None]) -> None:
        self._plan, self._hub, self._watch, self._notify = plan, hub, watch, notify
        self._folder, self._listing = plan.folder, plan.listing
        self._progress = Progress()
        self._record = find_record(plan.folder) or Record("", "", "")
        self._record.repo = plan.listing.repo
        self._record.revision = plan.listing.revision
        self._record.commit = plan.listing.commit
        self._record.asked = list(plan.patterns)
        for pattern in plan.patterns:
            self._record.completed.pop(pattern, None)

    def run(self) -> list[DataSet]:
        """Go through all phases; the record is written however they end."""
        try:
            self._save()
            lacking = self._check_unrecorded()
            metas = [file for file in lacking if file.path.endswith(f"/{META_NAME}")]
            shards = [file for file in lacking if file not in metas]
            kept = sum(count_kept(self._folder, file) for file in lacking)
            self._progress.begin("fetching", lacking, kept)
            self._each(metas, self._complete_part)
            self._compare_metas({file.path for file in lacking})
            for file in shards:
                (self._folder / file.path).unlink(missing_ok=True)
            for file in metas:
                self._place(file)
            self._each(shards, self._complete_part, self._place)
            return self._open_all()
        finally:
            self._progress.stop.set()
            with contextlib.suppress(OSError):  # what is not recorded is hashed the next time
                self._save()

    def _check_unrecorded(self) -> list[RemoteFile]:
        """Hash what is on disk without a record, and return all files that are lacking."""
        plan = self._plan
        lacking = [file for file in plan.files if file.path not in plan.whole | plan.unchecked]
        unchecked = [file for file in plan.files if file.path in plan.unchecked]
        self._progress.begin("checking", unchecked)
        if unchecked:
            size = self._progress.bytes_total
            self._notify(f"checking {len(unchecked)} files on disk, {size:,} bytes ...")
        right: set[str] = set()

        def check(file: RemoteFile) -> None:
            path, moved = self._folder / file.path, self._progress.move
            if holds(path, file.digest, file.size, moved):
                right.add(file.path)

        self._each(unchecked, check)
        for file in unchecked:
            if file.path in right:
                self._record.note(self._folder, file.path, file.digest)
        return [*lacking, *(file for file in unchecked if file.path not in right)]

    def _complete_part(self, file: RemoteFile) -> None:
        """Bring a file's part to its end and check it; in a worker."""
        for _ in range(2):
            with Part(self._folder, file, self._progress) as part:
                if part.size < file.size:
                    self._hub.fetch(file, self._listing.commit, part)
                if part.is_right():
                    return
                part.truncate()
        raise TsxError(
            f"{file.path} came twice with another content than {self._listing.repo} lists for it "
            f"({file.digest[:20]}...)",
            next_command="the same command; only this file is fetched again",
        )

    def _place(self, file: RemoteFile) -> None:
        """Give a file that is whole its name."""
        path = self._folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        _move(locate_part(self._folder, file), path)
        self._record.note(self._folder, file.path, file.digest)
        self._progress.files_done += 1
        if self._progress.files_done % _RECORD_EVERY == 0:
            self._save()

    def _compare_metas(self, lacking: Set[str]) -> None:
        """Refuse a partition whose meta.json does not fit the Hub's files, before they come."""
        for partition in self._plan.partitions:
            if lacking.isdisjoint(file.path for file in partition.files):
                continue
            sizes = {PurePosixPath(file.path).name: file.size for file in partition.files}
            meta_file = next(
                f for f in partition.files if f.path == f"{partition.name}/{META_NAME}"
            )
            is_part = meta_file.path in lacking
            path = self._folder / meta_file.path
            place = f"data set '{partition.name}' of {self._listing.repo}"
            meta = read_meta(locate_part(self._folder, meta_file) if is_part else path, place=place)
            for shard, elements in meta.shards:
                expected = elements * meta.dtype.itemsize
                if sizes.get(shard) != expected:
                    raise DataError(
                        f"{place}: {META_NAME} says {expected:,} bytes for {shard}, the Hub lists "
                        f"{sizes.get(shard, 'no such file')}; nothing of its shards was fetched",
                        next_command="another --revision, or leave this partition out",
                    )

    def _open_all(self) -> list[DataSet]:
        """Open every data set as the readers do, and record it as verified."""
        pool, datasets = MapPool(), []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for partition in self._plan.partitions:
            dataset = open_dataset(partition.name, self._folder / partition.name, pool)
            self._record.partitions[partition.name] = PartitionRecord(
                self._listing.commit,
                len(partition.files),
                partition.bytes,
                now,
                dataset.fingerprint,
            )
            self._forget_others(partition)
            datasets.append(dataset)
        for pattern in self._plan.patterns:
            self._record.completed[pattern] = self._listing.commit
        return datasets

    def _forget_others(self, partition: Partition) -> None:
        """Leave files that the partition no longer has out of the record."""
        names = {file.path for file in partition.files}
        for name in [name for name in self._record.files if name not in names]:
            if find_owner(name, self._record.partitions) == partition.name:
                del self._record.files[name]

    def _each(
        self,
        files: Sequence[RemoteFile],
        work: Callable[[RemoteFile], None],
        settle: Callable[[RemoteFile], None] | None = None,
    ) -> None:
        """Do the work on every file in threads, and `settle` each in this one."""
        waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[RemoteFile | BaseException] = queue.SimpleQueue()
        for file in files:
            waiting.put(file)

        def toil() -> None:
            while not self._progress.stop.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    work(file)
                    outcomes.put(file)
                except BaseException as error:
                    outcomes.put(error)

        # Daemons: an interrupted command ends at once, whatever a connection waits for.
        threads = [
            threading.Thread(target=toil, daemon=True) for _ in range(min(WORKERS, len(files)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in files:
                outcome = self._next(outcomes)
                if isinstance(outcome, BaseException):
                    raise outcome
                if settle is not None:
                    settle(outcome)
        except BaseException:
            self._progress.stop.set()
            deadline = time.monotonic() + _PATIENCE_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise

    def _next(
        self, outcomes: queue.SimpleQueue[RemoteFile | BaseException]
    ) -> RemoteFile | BaseException:
        """Return the next outcome, showing progress while it is waited for."""
        while True:
            try:
                outcome = outcomes.get(timeout=_TICK_S)
            except queue.Empty:
                self._watch(self._progress)
            else:
                self._watch(self._progress)
                return outcome

    def _save(self) -> None:
        (self._folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_record(self._folder, self._record)
