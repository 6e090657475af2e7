"""Event sinks without a database: the journal alone, and a list in memory."""

from __future__ import annotations

from pathlib import Path

from registry.errors import StoreUnavailable
from registry.events import Event
from registry.journal import JOURNAL_NAME, JournalWriter


class JournalSink:
    """Writes a run's journal and nothing else; a reader folds it into the database later.

    Raises:
        StoreUnavailable: the folder or the journal cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot make the run's folder {folder}: {error.strerror or error}",
                next_command="set TSX_HOME to a folder that can be written",
            ) from error
        self._journal = JournalWriter(folder / JOURNAL_NAME)

    @property
    def lost(self) -> int:
        """Events that could be written nowhere."""
        return self._journal.lost

    def emit(self, event: Event) -> None:
        """Record one event; see EventSink."""
        self._journal.append(event)

    def close(self) -> None:
        """Write what is waiting and close."""
        self._journal.close()


class ListSink:
    """Keeps events in memory, for tests and for runs that nobody wants recorded."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lost = 0
        self._closed = False

    def emit(self, event: Event) -> None:
        """Keep one event."""
        if self._closed:
            raise ValueError("the sink is closed")
        self.events.append(event)

    def close(self) -> None:
        """Take no more events."""
        self._closed = True
