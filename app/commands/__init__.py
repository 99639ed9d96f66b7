"""What the command lines do: one file a command. :mod:`app.cli` names them and reports failures."""

from __future__ import annotations

__all__ = ["CommandFailed"]


class CommandFailed(Exception):
    """Ends a command with one line on stderr; exit code 2: asked for wrongly, 1: it failed."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
