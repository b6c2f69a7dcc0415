"""Single files of an image changed, each command one edit: committed where it succeeded, gone where it did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sqlimage.errors import UsageError
from sqlimage.image.edit import EditReport
from sqlimage.media.window import WritableWindow
from sqlimage.mount import change
from sqlimage.mount.inside import ChangeReport
from sqlimage.session.work import Work, open_work


class Changes:
    """Changes to the files of one version, made one after the other; use :func:`changing`."""

    def __init__(self, work: Work, on_problem: Callable[[str], None]) -> None:
        self._work = work
        self._on_problem = on_problem
        self.notes: list[str] = []
        """What was left out or could not be kept."""
        self.report: EditReport | None = None
        """What it came to, once it is committed."""

    def put(self, source: str, path: str) -> None:
        """Copy a file, a tree, or standard input (``-``) to ``path``."""
        device, inside = self._place(path)
        self._note(change.put(device, source, inside, on_problem=self._on_problem))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; ``recursive`` a directory with all in it."""
        device, inside = self._place(path)
        change.remove(device, inside, recursive=recursive, on_problem=self._on_problem)

    def make_directory(self, path: str, *, parents: bool = False) -> None:
        """Make a directory, and with ``parents`` those above it."""
        device, inside = self._place(path)
        change.make_directory(device, inside, parents=parents, on_problem=self._on_problem)

    def move(self, old: str, new: str) -> None:
        """Give a file or a directory another path on its volume."""
        device, inside = self._place(old)
        other, target = self._place(new)
        if other is not device:
            raise UsageError(f"{new}: is on another volume", hint="`sqlimage get` and `sqlimage put` copy over volumes")
        change.move(device, inside, target, on_problem=self._on_problem)

    def _place(self, path: str) -> tuple[WritableWindow, str]:
        number, inside = self._work.split_path(path)
        if path.endswith("/") and inside != "/":
            inside += "/"
        return self._work.writable_volume(number), inside

    def _note(self, done: ChangeReport) -> None:
        self.notes += [f"{path}: {why}" for path, why in done.skipped]


@contextmanager
def changing(
    path: str,
    version: str | None = None,
    *,
    into: str | None = None,
    label: str | None = None,
    user: str | None = None,
    message: str | None = None,
    search: Sequence[str] = (),
    on_problem: Callable[[str], None] = lambda text: None,
) -> Iterator[Changes]:
    """An edit for single changes: committed at the end of the block, discarded where it raised; ``report`` then tells
    what changed. A version that is an unfinished edit is changed and stays open."""
    work = open_work(path, version, writable=True, into=into, label=label, user=user, message=message, search=search)
    changes = Changes(work, on_problem)
    try:
        yield changes
    except BaseException:
        work.finish("discard" if work.is_new else "keep")
        raise
    if work.is_new:
        changes.report = work.finish("commit").report
    else:
        work.finish("keep")
