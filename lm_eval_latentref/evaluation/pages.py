"""What pages of results share: how figures and tables are written, and how a page ends.

    lines += [*table_head(["row", "accuracy %"]), table_row(["Coconut", percent(0.382)])]
    lines += origin([{"versions": versions(), "machine": machine()}])
    page += see_also(Path("results/mine"))

Deliberately knows no result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.statistics import Interval


def table_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [table_row(names), "|---" * len(names) + "|"]


def table_row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def percent(share: float) -> str:
    """A share such as an accuracy."""
    return f"{100 * share:.2f}"


def points(interval: Interval) -> str:
    """A difference of shares with its interval, in points."""
    mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def nats(interval: Interval) -> str:
    """A difference of margins with its interval."""
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def check_kind(folder: str | os.PathLike[str], wanted: str) -> None:
    """Raises LatentRefError if results.json in `folder` is of another kind than format `wanted`.

    Its page would be lost otherwise.
    """
    path = Path(folder) / "results.json"
    try:
        found = json.loads(path.read_text("utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    kind, other = (name.rpartition(" ")[0] for name in (wanted, str(found)))
    if kind != other:
        raise LatentRefError(
            f"{path} is a {other!r}, which a {kind!r} would overwrite; give another folder"
        )


def origin(made_with: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section that says with which versions and on which machines it was made."""
    lines = ["## Made with", ""]
    for one in made_with:
        names = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        found = one["machine"]
        cores = f"{found['threads']} of {found['cores']} cores"
        lines.append(f"{names}; {found['cpu']}, {cores}, {found['gpu'] or 'no GPU'}.")
    return lines


def see_also(folder: Path) -> str:
    """Links to what other commands wrote into the same folder."""
    pages = [*sorted(folder.glob("*.md")), *sorted(folder.glob("*/README.md"))]
    found = [path for path in pages if path != folder / "README.md"]
    if not found:
        return ""
    names = [path.relative_to(folder).as_posix() for path in found]
    links = "".join(f"- [{name}]({name})\n" for name in names)
    return f"\n## Beside this\n\n{links}"
