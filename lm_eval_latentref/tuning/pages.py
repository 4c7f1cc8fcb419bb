"""What every page of results ends with: how it was made, and what stands beside it.

    lines += origin([{"versions": versions(), "machine": machine()}])
    page += see_also(Path("results/mine"))

Deliberately knows no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
