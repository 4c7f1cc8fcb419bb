"""Committed Markdown: links and anchors lead somewhere, commands parse, copied output is a copy."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lm_eval_latentref.checkpoints.sets import NAMES
from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.latent.config import OPTION_NAMES

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "task_configs/*.md", "results/**/*.md")
    for path in ROOT.glob(pattern)
    if "demo" not in path.parts or path.name == "README.md"
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ARGUMENTS = re.compile(r"`(pretrained=\S+)`")
COPIED = re.compile(r"<!-- copied from (\S+) -->\n(.*?)\n<!-- end -->", re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(path: Path) -> list[str]:
    return LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(path):
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_of_docs_is_reachable_from_the_readme():
    seen, pending = set(), [ROOT / "README.md"]
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        targets = (path.parent / link.partition("#")[0] for link in links(path))
        pending += [target.resolve() for target in targets if target.suffix == ".md"]
    assert set(ROOT.glob("docs/*.md")) <= seen


def commands(path: Path) -> list[list[str]]:
    """What `latentref` is given in shell blocks, but for the lines that lm-eval parses."""
    blocks = [body for kind, body in FENCE.findall(path.read_text("utf-8")) if kind == "bash"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    ours = [line[1:] for line in words if line[:1] == ["latentref"] and line[1:2] != ["run"]]
    module = "lm_eval_latentref"  # as torchrun starts us
    return ours + [line[line.index(module) + 1 :] for line in words if module in line]


@pytest.mark.parametrize(
    "path",
    [path for path in PAGES if "results" not in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_commands_in_the_documentation_parse(path):
    for words in commands(path):
        assert parser().parse_args(words).command, words


def test_what_the_readme_copies_is_what_the_script_wrote():
    copies = COPIED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert copies
    for source, copy in copies:
        assert copy.strip() in (ROOT / source).read_text(encoding="utf-8"), source


def test_the_python_of_the_readme_runs_and_answers(capsys):
    blocks = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (code,) = (body for kind, body in blocks if kind == "python")
    exec(code, {})
    assert capsys.readouterr().out.startswith("f torch.Size(")  # e>p, p>a, a>f


def test_what_pages_say_to_make_has_a_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    for path in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z][\w-]*)", path.read_text("utf-8"), re.MULTILINE)
        assert set(named) <= set(targets), path


def test_the_diff_of_a_kind_is_what_lies_in_the_tree():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (diff,) = (body for kind, body in FENCE.findall(text) if kind == "diff")
    for file in diff.split("+++ b/")[1:]:
        name, *lines = file.splitlines()
        added = [line.removeprefix("+") for line in lines if line.startswith("+")]
        assert set(added) <= set((ROOT / name).read_text(encoding="utf-8").splitlines()), name


def test_model_arguments_in_the_documentation_are_some_that_there_are():
    spans = [span for path in PAGES for span in ARGUMENTS.findall(path.read_text("utf-8"))]
    assert len(spans) > 20
    for span in spans:
        names = {part.partition("=")[0] for part in span.split(",")}
        assert names <= {*NAMES, *OPTION_NAMES, "dtype", "device", "device_map"}, span
