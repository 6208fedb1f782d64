"""Uploads: what a run saves goes to its remote home, while training goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L

from lit_pretrain.checkpoint.asynchronous import Background
from lit_pretrain.checkpoint.layout import newest_complete, step_of
from lit_pretrain.checkpoint.remote_run import RemoteRun, write_home
from lit_pretrain.errors import UserError, warn


class Uploads(L.Callback):
    """Copy a run's folder to its home after each checkpoint, in a thread, on rank 0.

    A home that cannot be reached for a while stops nothing: the next upload catches up. The last
    one ends the run with an error.

    Args:
        folder: The run's folder.
        remote: Its home.
    """

    def __init__(self, folder: Path, remote: RemoteRun) -> None:
        self.folder = folder
        self.remote = remote
        self._background = Background()
        self._begun = self._due = False

    def begin(self) -> None:
        """Upload what the run is, which shows that the home can be written.

        Raises:
            UserError: It cannot.
        """
        write_home(self.folder, self.remote)
        self.remote.push_files(self.folder)
        self._begun = True

    def on_train_start(self, *args: Any) -> None:
        """Upload the checkpoints that an earlier attempt could not."""
        if self._begun:
            self.start()

    def start(self) -> None:
        """Upload what there is now; an upload that goes on takes it along when it has ended."""
        self._due = True
        # A thread that is just ending may miss the mark: then the next upload takes this one along.
        if not self._background.busy:
            self._background.wait()
            self._background.start(self._upload)

    def _upload(self) -> None:
        while self._due:
            self._due = False
            try:
                self.remote.push(self.folder)
            except UserError as error:
                warn(f"{error}; the next checkpoint tries again")

    def go_back(self) -> None:
        """Delete the checkpoints of the home that are newer than all of the folder.

        Raises:
            UserError: The home cannot be reached.
        """
        newest = newest_complete(self.folder)
        self.remote.drop_newer(0 if newest is None else step_of(newest) or 0)

    @contextmanager
    def finishing(self, goes_on: type[Exception]) -> Iterator[None]:
        """Upload what the run leaves behind; a second signal does not wait for that.

        Args:
            goes_on: What the block raises if the run goes on in another attempt.

        Raises:
            UserError: The home cannot be reached.
        """
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except goes_on:
            self._background.wait()  # the next attempt may delete checkpoints
            raise
        except BaseException:  # whatever ends the run, what it has saved gets to its home
            try:
                self._finish()
            except UserError as error:  # what ended the run matters more
                warn(str(error))
            raise
        self._finish()

    def _finish(self) -> None:
        self._due = False
        self._background.wait()
        if self._begun:
            self.remote.push(self.folder)
