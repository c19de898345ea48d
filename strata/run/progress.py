"""What one sees of work that takes long: a bar on a terminal, and a line now and then in a log.

Where stderr is a terminal, a bar shows how far a loop is, and its speed. Anywhere else (a file, CI) there is no bar:
the loop says how far it is when nothing has been said for :data:`EVERY` seconds:

    interpret@9: look: 2,048 of 4,096 latents, 32 s, about 32 s left

A thread looks after that, because one step of a loop may take long. Of several processes that share a stage, only the
first one says anything. Nothing here changes what a stage writes.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from threading import RLock, Thread
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

EVERY = 15.0  # seconds without a line, at the most
DELAY = 1.0  # seconds; a loop that is done sooner gets no bar
_began = _told = time.monotonic()  # when this process began, and when it last wrote a line
_running: list["Progress"] = []  # the innermost loop comes last
_lock = RLock()  # of what is written


class Progress:
    """How far one loop is: a context manager whose :meth:`update` the loop calls after each of its steps.

    ``title``: what is done, such as "look at latents". ``unit``: what is counted, in the plural. ``total``: how many
    there are, None if nobody knows. ``done``: how many of them an earlier run has done.
    """

    def __init__(self, title: str, unit: str, total: int | None = None, done: int = 0) -> None:
        self._title, self._unit, self._total = title, unit, total
        self._first = self._done = done
        self._began = time.monotonic()
        self._values: dict[str, str] = {}
        self.bar = None
        if _speaks() and sys.stderr.isatty():
            from tqdm import tqdm  # only here, because it takes a tenth of a second

            self.bar = tqdm(total=total, initial=done, desc=title, unit=f" {unit}", delay=DELAY, leave=None)

    def __enter__(self) -> "Progress":
        _running.append(self)
        watch()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        _running.remove(self)
        if self.bar is not None:
            self.bar.close()

    def update(self, steps: int = 1) -> None:
        """Count ``steps`` as done."""
        self._done += steps
        if self.bar is not None:
            self.bar.update(steps)
        elif time.monotonic() - _told >= EVERY:
            remind()

    def show(self, **values: str) -> None:
        """Show these ``values`` beside the count from now on."""
        self._values = values
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)

    def line(self) -> str:
        """Write how far the loop is, as a log holds it."""
        seconds = time.monotonic() - self._began
        count = f"{self._done:,}" if self._total is None else f"{self._done:,} of {self._total:,}"
        parts = [f"{self._title}: {count} {self._unit}", f"{seconds:.0f} s"]
        if self._total is not None and self._first < self._done < self._total:
            left = seconds / (self._done - self._first) * (self._total - self._done)
            parts.append(f"about {left:.0f} s left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self._values.items())])


def each(things: Iterable[T], title: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield ``things``, and show how many of them the loop has done. ``total``: how many, if they have no length."""
    if total is None and hasattr(things, "__len__"):
        total = len(things)  # pyright: ignore[reportArgumentType]
    with Progress(title, unit, total) as progress:
        for thing in things:
            yield thing
            progress.update()


def tell(sentence: str) -> None:
    """Write a line on stderr, behind the name of the stage that DVC runs; a bar that is there stays whole."""
    global _told
    stage = os.environ.get("DVC_STAGE")
    line = f"{stage}: {sentence}" if stage else sentence
    with _lock:
        _told = time.monotonic()
        if any(progress.bar is not None for progress in _running):
            from tqdm import tqdm

            tqdm.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")


def remind() -> None:
    """Show that the innermost loop goes on, or a stage of DVC between its loops, if nothing has been said for long."""
    with _lock:
        if not _speaks() or time.monotonic() - _told < EVERY:
            return
        loop = next(iter(_running[-1:]), None)
        if loop is None:
            if "DVC_STAGE" in os.environ:
                tell(f"at work for {time.monotonic() - _began:.0f} s")
        elif loop.bar is None:
            tell(loop.line())
        else:
            loop.bar.refresh()


@cache
def watch() -> None:
    """Remind from now on, as long as the process lives."""
    Thread(target=_watching, daemon=True).start()


def _watching() -> None:
    while True:
        time.sleep(1)
        remind()


def _speaks() -> bool:
    """Say whether this process is alone, or the first of those that share its work."""
    return os.environ.get("RANK", "0") == "0"
