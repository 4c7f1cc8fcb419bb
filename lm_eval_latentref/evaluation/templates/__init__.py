"""Pages as jinja2 templates: `render("leaderboard.md.j2", table=...)`.

Values in HTML pages are escaped. In Markdown pages, text from files and names passes through a
filter: `md` in prose, `code` as code, `line` in a block of code. Tables come with escaped cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval_latentref.evaluation.wording import code_span, markdown, plain


def render(name: str, **values: Any) -> str:
    """The text of a template in this folder; it is an error if one of its names has no value."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(md=markdown, code=code_span, line=plain)
    return environment.get_template(name).render(**values)
