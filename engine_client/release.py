"""When the arrays of a request are not needed any more."""

from __future__ import annotations

from collections.abc import Callable


class Release:
    """Calls back once, when all who hold it have let go."""

    def __init__(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self._holder_count = 0

    def hold(self) -> Callable[[], None]:
        """Hold it, until what is returned is called; calling that again does nothing."""
        self._holder_count += 1
        is_held = True

        def let_go() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._holder_count -= 1
                if not self._holder_count and self._callback is not None:
                    callback, self._callback = self._callback, None
                    callback()

        return let_go
