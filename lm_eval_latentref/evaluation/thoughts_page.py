"""Turns a case study into JSON values and writes the page made from them.

    content = thoughts_json(study, command="latentref thoughts ...")
    save_thoughts(content, "results/mine/thoughts.md")

`thoughts` makes the case study.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.report import THOUGHTS, Content, page, save_as, table
from lm_eval_latentref.evaluation.settings import Setting
from lm_eval_latentref.evaluation.thoughts import NUM_TOKENS, CaseStudy
from lm_eval_latentref.evaluation.wording import as_code


def thoughts_json(study: CaseStudy, *, command: str) -> dict[str, Any]:
    """The case study as JSON values."""
    made = {"versions": versions(), "machine": machine()}
    return {"format": THOUGHTS, "command": command, **made, **dataclasses.asdict(study)}


def thoughts_page(content: Content) -> str:
    """The page: the counts, the definitions of columns, and a table of thoughts for each case."""
    cases = [
        {**case, "table": table(_HEAD, itertools.starmap(_row, enumerate(case["thoughts"], 1)))}
        for case in content["cases"]
    ]
    label = Setting(**content["setting"]).label
    values = {"content": content, "cases": cases, "label": label, "code": as_code}
    return page("thoughts.md.j2", num_tokens=NUM_TOKENS, **values)


def save_thoughts(content: Content, file: str | os.PathLike[str]) -> str:
    """Writes the page, and its content into a .json file of the same name; returns the page."""
    return save_as(content, file, thoughts_page(content))


_HEAD = (
    "t",
    "Coconut's own thought",
    "raw, after refined ones",
    "refined",
    "cosine",
    "moved",
    "to strong",
    "to weak",
)


def _row(step: int, thought: Content) -> Sequence[str]:
    readings = [thought[name] for name in ("plain", "raw", "refined")]
    distances = [thought[name] for name in ("to_strong", "to_weak")]
    return (
        str(step),
        *(", ".join(f"{as_code(text)} {100 * p:.0f}" for text, p in top) for top in readings),
        f"{thought['cosine_to_plain']:.3f}",
        f"{thought['moved']:.2f}",
        *(f"{raw:.2f} to {refined:.2f}" for raw, refined in distances),
    )
