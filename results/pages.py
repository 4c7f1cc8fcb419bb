"""Writes the pages below a folder again, from the JSON files beside them and today's templates.

python results/pages.py results/smollm2-135m
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lm_eval_latentref.evaluation.overview import overview_page
from lm_eval_latentref.evaluation.report import (
    OVERVIEW,
    PAGE,
    RESULTS,
    STUDY,
    THOUGHTS,
    see_also,
)
from lm_eval_latentref.evaluation.study_page import study_page
from lm_eval_latentref.evaluation.thoughts_page import thoughts_page


def main(root: Path) -> None:
    for path in sorted(root.rglob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        kind = content.get("format")
        if kind == THOUGHTS:
            path.with_suffix(".md").write_text(thoughts_page(content), "utf-8")
        elif kind in (STUDY, OVERVIEW) and path.name == RESULTS:
            text = study_page(content) if kind == STUDY else _overview(content, path.parent)
            (path.parent / PAGE).write_text(text + see_also(path.parent), "utf-8")


def _overview(content: dict[str, Any], folder: Path) -> str:
    pages = {task: values["results"] for task, values in content["tasks"].items()}
    studies = {
        task: json.loads((folder / path).read_text(encoding="utf-8"))
        for task, path in pages.items()
    }
    return overview_page(studies, pages, command=content["command"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
