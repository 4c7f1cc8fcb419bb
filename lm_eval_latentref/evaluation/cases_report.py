"""A case study as a page for people and as a JSON file beside it.

    save(study_cases("out/mine", ...), "results/mine/thoughts.md", command="latentref thoughts ...")

Deliberately runs nothing and judges nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.cases import NUM_TOKENS, Case, CaseStudy, Reading, Thought
from lm_eval_latentref.evaluation.pages import table_head, table_row
from lm_eval_latentref.evaluation.provenance import machine, versions
from lm_eval_latentref.evaluation.sweep_report import margin_meaning

FORMAT = "latentref thoughts 1"
_HEAD = (
    *("t", "Coconut's own thought", "raw, after refined ones", "refined", "cosine", "moved"),
    *("to strong", "to weak"),
)


_RIGHT = {
    True: "- Right: by the log-likelihoods, as in a sweep, not by the task's exact match: at each "
    "token the gold answer's is the likeliest, its end included. The answers shown are written "
    "greedily from the same tokens, in a batch of their own: where two tokens are as likely to "
    "within rounding, they may read otherwise than they were judged.",
    False: "- Right: the gold answer is the likeliest candidate.",
}
"""By whether answers are free."""


def save(found: CaseStudy, file: str | os.PathLike[str], *, command: str) -> None:
    """Writes the page into `file`, and everything into a .json of the same name."""
    check_file(file)
    path = Path(file)
    content = {
        "format": FORMAT,
        "command": command,
        "versions": versions(),
        "machine": machine(),
        **dataclasses.asdict(found),
    }
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        path.write_text(as_markdown(found, command=command), "utf-8")


def check_file(file: str | os.PathLike[str]) -> None:
    """Raises LatentRefError unless `file` can be a page that leaves its name to a .json beside."""
    path = Path(file)
    if path.suffix != ".md" or path.is_dir():
        raise LatentRefError(
            f"{path} is no name of a page; give a file that ends in .md, such as "
            f"{path.with_suffix('')}/thoughts.md"
        )


def as_markdown(found: CaseStudy, *, command: str) -> str:
    """What the columns mean, the counts, then each case with a table of its thoughts."""
    before, after = (f"{100 * value:.2f} %" for value in found.accuracy)
    test = found.test
    lines = [
        f"# What refinement does to thoughts: {found.task}",
        "",
        f"Written by `{command}`; everything is also in the .json beside it.",
        "",
        f"- {found.folder} on {found.num_documents} documents, {found.setting.label} (eta in units "
        f"of d/2): {before} right without refinement, {after} with it; {test.only_second} turned "
        f"from wrong to right, {test.only_first} from right to wrong (exact McNemar p = "
        f"{test.p_value:.3g}). The cases are the first of each kind in document order.",
        f"- A thought is read as the {NUM_TOKENS} likeliest tokens of the model's output layer, "
        "with probabilities in percent: Coconut's own thought (nothing refined), the raw one that "
        "follows the refined thoughts before it, and what its refinement made of that.",
        "- cosine: between the refined thought and Coconut's own. moved: |refined - raw|. to "
        "strong, to weak: distance from the reference's state at this thought, raw and refined.",
        _RIGHT[found.is_free],
        f"- Margin: {margin_meaning(found.is_free)}, in nats.",
        "",
    ]
    for case in found.cases:
        lines += [*_case(case), ""]
    return "\n".join(lines)


def _case(case: Case) -> list[str]:
    kind = "wrong to right" if case.helped else "right to wrong"
    before, after = case.margins
    question = "\n".join(f"> {line}" for line in case.question.splitlines())
    return [
        f"## Document {case.doc_id}: {kind}",
        "",
        question,
        "",
        f"Gold {_token(case.gold)}; without refinement {_token(case.answer_before)} (margin "
        f"{before:+.3f}), with it {_token(case.answer_after)} ({after:+.3f}).",
        "",
        *table_head(_HEAD),
        *(table_row(_cells(step, one)) for step, one in enumerate(case.thoughts, start=1)),
    ]


def _cells(step: int, thought: Thought) -> Sequence[str]:
    return (
        str(step),
        *(_told(one) for one in (thought.plain, thought.raw, thought.refined)),
        f"{thought.cosine_to_plain:.3f}",
        f"{thought.moved:.2f}",
        *(f"{one[0]:.2f} to {one[1]:.2f}" for one in (thought.to_strong, thought.to_weak)),
    )


def _told(reading: Reading) -> str:
    return ", ".join(f"{_token(text)} {100 * p:.0f}" for text, p in reading)


def _token(text: str) -> str:
    # Pipes end a table's cell and backticks end code, whatever stands around them.
    shown = json.dumps(text, ensure_ascii=False).replace("|", "¦").replace("`", "'")
    return f"`{shown}`"
