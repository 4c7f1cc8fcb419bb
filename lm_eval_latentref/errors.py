"""The one exception a user's mistake raises.

    raise LatentRefError("memory_rate=1.5: it must lie in [0, 1]; give a value such as 0.3")

Knows nothing of what was wrong: whoever raises it says in one line what was given, what is
allowed and what to do next.
"""

from __future__ import annotations


class LatentRefError(ValueError):
    """A mistake the user can mend; its message is one line and needs no traceback."""
