"""Makes names and texts from other people's files safe and short enough to print.

plain("a\\x1b[31mb\\n")                          # "a [31mb": one line, no control characters
short_name("/data/models/gpt2-mathqa")         # "gpt2-mathqa"
without_secrets({"token": "hf_abc"})           # {"token": "***"}
markdown("a|b")                                # "a\\|b"
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_latentref.errors import printable

_SECRET = re.compile(r"(?i)(^|_)(token|key|secret|password|auth\w*)$")
_SECRET_PAIR = re.compile(r"(?i)\b((?:\w+_)?(?:token|key|secret|password|auth\w*))=[^,\s]+")
_SECRET_VALUE = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9-]{8,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def plain(text: Any) -> str:
    """`text` in one line and without control characters."""
    return " ".join(printable(str(text)).split())


def figure(value: float, *, sign: str = "") -> str:
    """A metric with four decimals, or fewer digits where it is a million or more.

    Args:
        sign: "+" for a difference.
    """
    return f"{value:{sign}.4f}" if abs(value) < 1e6 else f"{value:{sign}.6g}"


def short_name(name: str) -> str:
    """The last folder of a path; other names, such as a hub id, as they are."""
    name = plain(name)
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or "\\" in name
    return (re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name) if is_path else name


def without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with *** for the value of a token, key or password."""
    return {
        name: "***" if _SECRET.search(name) else _SECRET_VALUE.sub("***", str(value))
        for name, value in arguments.items()
    }


def hide_secrets(word: str) -> str:
    """A word of a command line, such as NAME=VALUE,NAME=VALUE, with *** for secret values."""
    return _SECRET_VALUE.sub("***", _SECRET_PAIR.sub(r"\1=***", word))


def markdown(text: Any) -> str:
    """`plain` text for Markdown, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#&~$!|])", r"\\\1", plain(text))


def as_code(text: str) -> str:
    """A JSON string as code in a Markdown table, where pipes end a cell and backticks end code."""
    shown = json.dumps(text, ensure_ascii=False).replace("|", "¦").replace("`", "'")
    return f"`{shown}`"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int) -> str:
    """A Markdown table with aligned columns, also fit for a terminal.

    Args:
        headers: texts in which markup is escaped already, as those of `rows`.
        numbers_from: the first column that is aligned on the right.
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
