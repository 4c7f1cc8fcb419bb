"""Makes names and texts from files safe and short enough to print in terminals and Markdown.

plain("a\\x1b[31mb\\n")                          # "a [31mb": one line, no control characters
short_name("/data/models/gpt2-mathqa")         # "gpt2-mathqa"
markdown("a|b")                                # "a\\|b"
code_span("a`b")                               # "`` a`b ``"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_latentref.errors import printable


def plain(text: Any) -> str:
    """`text` in one line and without control characters."""
    return " ".join(printable(str(text)).split())


def figure(value: float, *, sign: str = "") -> str:
    """A metric with four decimals, or with six digits if it is a million or more.

    Args:
        sign: "+" to show the sign of a difference.
    """
    return f"{value:{sign}.4f}" if abs(value) < 1e6 else f"{value:{sign}.6g}"


def short_name(name: str) -> str:
    """The last folder of a path; other names, such as hub ids, are returned unchanged."""
    name = plain(name)
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or "\\" in name
    return (re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name) if is_path else name


def markdown(text: Any) -> str:
    """`plain` text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*{}\[\]<>#&~$!|]|(?<!\w)_|_(?!\w))", r"\\\1", plain(text))


def code_span(text: Any) -> str:
    """`plain` text as code in Markdown, in more backticks than any run of them within it."""
    shown = plain(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    return f"{fence}{shown}{fence}" if len(fence) == 1 else f"{fence} {shown} {fence}"


def as_code(text: str) -> str:
    """`text` as a JSON string in code, for a Markdown table; pipes and backticks are replaced."""
    shown = json.dumps(text, ensure_ascii=False).replace("|", "¦").replace("`", "'")
    return f"`{shown}`"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int) -> str:
    """A Markdown table with aligned columns, which also reads well in a terminal.

    Args:
        headers: texts whose markup is already escaped.
        rows: texts whose markup is already escaped.
        numbers_from: the index of the first column that is aligned on the right.
    """
    from pytablewriter import MarkdownTableWriter
    from pytablewriter.style import Style
    from pytablewriter.typehint import String

    right = [Style(align="right" if k >= numbers_from else "left") for k in range(len(headers))]
    writer = MarkdownTableWriter(
        headers=[header.replace("\\|", "|") for header in headers],  # it escapes these itself
        value_matrix=[[cell.replace("\\|", "|") for cell in row] for row in rows],
        type_hints=[String] * len(headers),
        column_styles=right,
        margin=1,
    )
    return str(writer.dumps()).rstrip("\n")
