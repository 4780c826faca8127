"""The sessions of a batch: one for each model and way of computing that its jobs ask for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields

from sdpy.runtime.options import ModelOptions, open_session
from sdpy.runtime.session import Session

MOST_OPEN = 8
"""Sessions whose files' headers stay open; models are loaded in one at a time."""


class Sessions:
    """Opens sessions, and keeps those that were used last."""

    def __init__(self) -> None:
        self._open: dict[Hashable, Session] = {}

    def find(self, options: ModelOptions) -> Session:
        """The session of these options; opening it reads headers, no weights.

        Raises:
            UsageError, WeightsError: see `open_session`.
        """
        key = session_key(options)
        session = self._open.pop(key, None)
        if session is None:
            while len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            session = open_session(options)
        self._open[key] = session  # the last one now
        return session

    def release_others(self, session: Session) -> None:
        """Release the models of all but one session."""
        for other in self._open.values():
            if other is not session:
                other.loaded.release()

    def close(self) -> None:
        """Close all sessions."""
        for session in self._open.values():
            session.close()
        self._open.clear()


def session_key(options: ModelOptions) -> Hashable:
    """What sessions have in common that are the same."""
    values = (getattr(options, field.name) for field in fields(options))
    return tuple(
        tuple(sorted(value.items())) if isinstance(value, Mapping) else value for value in values
    )
