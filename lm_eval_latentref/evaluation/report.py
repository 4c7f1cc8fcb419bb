"""Formats numbers, writes the files of all pages, and makes the page of a sweep.

    page("study.md.j2", content=content)                    # the prose is in `templates`
    save(content, "results/mine", text)                     # results.json and README.md

A page is made from its JSON values alone, so results.json is enough to make it again.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import write_text
from lm_eval_latentref.errors import LatentRefError, check_place, saving
from lm_eval_latentref.evaluation.settings import RECOMMENDED, ROWS, Setting
from lm_eval_latentref.evaluation.templates import render
from lm_eval_latentref.evaluation.wording import table as aligned

SWEEP = "latentref sweep 2"
STUDY = "latentref study 3"
OVERVIEW = "latentref overview 1"
THOUGHTS = "latentref thoughts 1"
"""The `format` of each kind of JSON file."""
RESULTS, PAGE, SWEEP_RESULTS = "results.json", "README.md", "sweep.json"
HEAT_MAP = "sweep-{}.png"

Content = Mapping[str, Any]


# Words and numbers -------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with all columns aligned on the left."""
    return aligned(head, rows, numbers_from=len(head))


def percent(share: float) -> str:
    """A share, such as an accuracy, in percent."""
    return f"{100 * share:.2f}"


def plus_minus(values: Content, name: str = "accuracy") -> str:
    """`values[name]`, a share, with its standard error, in percent."""
    error = values[f"{name}_stderr"]
    return f"{percent(values[name])} +- {percent(math.nan if error is None else error)}"


def points(interval: Content) -> str:
    """A difference of shares with its interval, in percentage points."""
    mean, low, high = (100 * interval[name] for name in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def nats(interval: Content, digits: int = 3) -> str:
    """A difference of margins with its interval, in nats."""
    mean, low, high = (f"{interval[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def with_unit(label: str) -> str:
    """A setting's label with the unit of eta, which older files leave out."""
    return re.sub(r"eta=(?!0(?:\s|$))([^\s*]+)(?=\s|$)", r"eta=\1*d/2", label)


def setting_of(content: Content) -> Setting:
    """The setting of an entry of a sweep's `settings`."""
    return Setting(
        latent_steps=content["latent_steps"],
        memory_rate=content["memory_rate"],
        step_size=content["step_size_in_half_d"],
        search_steps=content["search_steps"],
    )


def margin_meaning(is_free: bool) -> str:
    """The definition of a margin, for tasks with free answers or with candidates."""
    if is_free:
        return (
            "log-likelihood of the gold answer with its end of sequence (answers are free text; an "
            "answer is right if greedy decoding writes it)"
        )
    return "log-likelihood of the gold answer minus the best other"


HELPERS: dict[str, Callable[..., Any]] = {
    helper.__name__: helper
    for helper in (percent, plus_minus, points, nats, with_unit, setting_of, margin_meaning)
}


def page(template: str, **values: Any) -> str:
    """The text of a template, which may call `HELPERS` by their names."""
    return render(template, **HELPERS, **values)


def origin(made: Iterable[Content]) -> str:
    """A section with the versions and machines of the runs."""
    return page("made_with.md.j2", made=list(made)).rstrip("\n")


def margin_gain(row: Content) -> str:
    """The difference of a row's mean margin from Coconut's; empty if no candidates were scored."""
    against = row["margin_against_coconut"]
    return nats(against["margin_difference"]) if against and against["margin_difference"] else ""


# Writing -----------------------------------------------------------------------------------------


def save(content: Content, folder: str | os.PathLike[str], text: str) -> str:
    """Writes results.json and README.md; links to other pages in `folder` are added to the text.

    Returns the text of README.md.
    """
    path = Path(folder)
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / RESULTS, json.dumps(content, indent=1) + "\n")
        text += see_also(path)
        write_text(path / PAGE, text)
    return text


def save_as(content: Content, file: str | os.PathLike[str], text: str) -> str:
    """Writes `text` into `file`, and `content` into the .json file of that name; returns `text`."""
    check_file(file)
    path = Path(file)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
        write_text(path, text)
    return text


def check_file(file: str | os.PathLike[str]) -> None:
    """Raises LatentRefError unless `file` ends in .md and can be written."""
    path = Path(file)
    if path.suffix != ".md" or path.is_dir():
        raise LatentRefError(
            f"{path} is not the name of a page; give a file that ends in .md, such as thoughts.md"
        )
    check_place(path, is_folder=False)


def check_kind(folder: str | os.PathLike[str], wanted: str) -> None:
    """Raises LatentRefError if `folder` has a results.json of another kind than `wanted`.

    Writing there would overwrite it.
    """
    path = Path(folder) / RESULTS
    try:
        present = json.loads(path.read_text("utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    kind, other = (name.rpartition(" ")[0] for name in (wanted, str(present)))
    if kind != other:
        raise LatentRefError(
            f"{path} holds a {other!r}, which a {kind!r} would overwrite; give another folder"
        )


def see_also(folder: Path) -> str:
    """Links to the pages that other commands wrote into the same folder."""
    pages = [*sorted(folder.glob("*.md")), *sorted(folder.glob(f"*/{PAGE}"))]
    names = [file.relative_to(folder).as_posix() for file in pages if file != folder / PAGE]
    links = "".join(f"- [{name}]({name})\n" for name in names)
    return f"\n## Beside this\n\n{links}" if names else ""


# A sweep -----------------------------------------------------------------------------------------

ROW_NAMES = {
    "plain": "plain",
    "residual": "residual only",
    "search": "search only",
    "both": "both",
    RECOMMENDED: RECOMMENDED,
}


def sweep_page(content: Content) -> str:
    """The page: all settings, the best setting of each row, the recommendation, power and cost."""
    by_label = {tried["label"]: tried for tried in content["settings"]}
    settings = sorted(
        content["settings"], key=lambda tried: (ROWS.index(tried["row"]), setting_of(tried))
    )
    near = 1 + sum(tried["within_noise"] for tried in content["rivals"])
    rival = [tried for tried in content["rivals"] if tried["setting"] == content["recommended"]]
    return page(
        "sweep.txt.j2",
        settings=table(_SETTINGS, [_setting_row(content, tried) for tried in settings]),
        best={ROW_NAMES[row]: by_label[label] for row, label in content["best"].items()},
        recommended=by_label[content["recommended"]],
        rival=rival[0] if rival else None,
        num_near=near,
        num_documents=len(content["task"]["documents"]),
        **{name: content[name] for name in ("task", "overflowed", "best_of_all", "rivals", "cost")},
        smallest=content["smallest_effect"],
        num_settings=len(content["settings"]) + len(content["overflowed"]),
        judged=content["judged"],
        judged_rows=table(_JUDGED, _judged_rows(content["judged"])) if content["judged"] else "",
    )


_JUDGED = (
    "row",
    "setting",
    "steps",
    "documents",
    "accuracy %",
    "points",
    "margin",
    "gained",
    "lost",
)


def _judged_rows(judged: Content) -> list[Sequence[str]]:
    """A line for each row, followed by a line for each number of steps if there are several."""
    lines: list[Sequence[str]] = []
    for row, outcome in judged["rows"].items():
        lines.append(
            (
                ROW_NAMES[row],
                with_unit(outcome["label"]),
                "all",
                str(judged["documents"]),
                percent(outcome["accuracy"]),
                points(outcome["difference"]),
                nats(outcome["margin_difference"], 4),
                str(outcome["gained"]),
                str(outcome["lost"]),
            )
        )
        parts = outcome["by_steps"] if len(outcome["by_steps"]) > 1 else {}
        lines += [_part_row(steps, part) for steps, part in parts.items()]
    return lines


def _part_row(steps: int, part: Content) -> Sequence[str]:
    change = 100 * (part["gained"] - part["lost"]) / part["num"]
    numbers = (str(steps), str(part["num"]), percent(part["accuracy"]), f"{change:+.2f}")
    return "", "", *numbers, "", str(part["gained"]), str(part["lost"])


_SETTINGS = (
    "row",
    "T",
    "alpha",
    "eta",
    "S",
    "accuracy %",
    "margin",
    "margin - plain",
    "p (acc)",
    "",
    "--model_args",
)


def _setting_row(content: Content, tried: Content) -> Sequence[str]:
    setting, is_plain = setting_of(tried), tried["label"] == content["best"]["plain"]
    marks = ["best"] * (tried["label"] == content["best"][tried["row"]])
    marks += ["recommended"] * (tried["label"] == content["recommended"])
    margin_error = math.nan if tried["margin_stderr"] is None else tried["margin_stderr"]
    return (
        ROW_NAMES[tried["row"]],
        str(setting.latent_steps),
        f"{setting.memory_rate:g}",
        setting.eta,
        str(setting.search_steps),
        plus_minus(tried),
        f"{tried['margin']:+.4f} +- {margin_error:.4f}",
        "" if is_plain else nats(tried["margin_against_plain"], 4),
        "" if is_plain else f"{tried['mcnemar_against_plain']['p_value']:.3f}",
        ", ".join(marks),
        setting.model_args,
    )
