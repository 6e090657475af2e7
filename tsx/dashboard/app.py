"""The dashboard: screens over one poller. Shows, and writes nothing.

The first paint comes before the registry is opened: the poller starts in a thread of its own after
it, and from then on screens get one frozen snapshot at a time and never touch the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from textual.app import App

from tsx.dashboard.messages import Focus, FocusMoved, Snapshot, SnapshotTaken
from tsx.dashboard.poller import Poller, RegistryReader
from tsx.dashboard.screens.help import HelpScreen
from tsx.dashboard.screens.overview import OverviewScreen
from tsx.dashboard.screens.run import RunScreen
from tsx.dashboard.widgets.run_table import RunTable

TICK_S = 1.0  # how often ages and the time that is left are written anew


class DashboardApp(App[None]):
    """Watches a registry until the user quits."""

    CSS_PATH = "dashboard.tcss"
    TITLE = "tsx"
    ENABLE_COMMAND_PALETTE = False

    def __init__(
        self,
        open_reader: Callable[[], RegistryReader],
        *,
        place: str,
        recover: Callable[[], object] | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            open_reader: opens the registry; called in the poller's thread.
            place: where the registry is, as the top line shows it.
            recover: brings dead runs to an end in the registry.
            file: the database, where it is a file.
            clock: UTC seconds since the epoch, for ages.
        """
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (70, "-normal"), (160, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-flat"), (20, "-short"), (32, "-tall")]
        self._place = place
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._poller = Poller(open_reader, self._post, recover=recover, file=file)

    def get_default_screen(self) -> OverviewScreen:
        """Return the screen the dashboard starts with."""
        return OverviewScreen(self._place)

    def on_mount(self) -> None:
        """Start looking at the registry once the first frame stands."""
        self.call_after_refresh(self._start)
        self.set_interval(TICK_S, self._show)

    def on_unmount(self) -> None:
        """Let the poller's thread end."""
        self._poller.stop()

    def on_snapshot_taken(self, event: SnapshotTaken) -> None:
        """Show what the poller has seen."""
        self._snapshot = event.snapshot
        self._show()

    def on_focus_moved(self, event: FocusMoved) -> None:
        """Let the poller read what the screen on top looks at."""
        self._poller.set_focus(self._find_focus())

    def on_run_table_opened(self, event: RunTable.Opened) -> None:
        """Open a run."""
        self.push_screen(RunScreen(event.run_id, self._place))

    def action_help(self) -> None:
        """Show what the keys do."""
        self.push_screen(HelpScreen())

    def _start(self) -> None:
        """Start the poller's thread."""
        self.run_worker(self._poller.run, name="poller", thread=True, exit_on_error=True)

    def _post(self, snapshot: Snapshot) -> None:
        """Take a snapshot from the poller's thread."""
        self.post_message(SnapshotTaken(snapshot))

    def _show(self) -> None:
        """Show the newest snapshot on every screen that shows one."""
        if self._snapshot is None:
            return
        now = self._clock()
        for screen in self.screen_stack:
            if isinstance(screen, OverviewScreen | RunScreen) and screen.is_mounted:
                screen.show(self._snapshot, now)

    def _find_focus(self) -> Focus:
        """Return what the topmost screen with runs on it looks at."""
        wanted = [
            screen.focus_wanted
            for screen in self.screen_stack
            if isinstance(screen, OverviewScreen | RunScreen)
        ]
        # The overview keeps its page of the list while another screen lies on it.
        return replace(wanted[-1], first=wanted[0].first) if wanted else Focus()
