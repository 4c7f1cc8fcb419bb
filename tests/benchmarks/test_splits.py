"""From rows to examples, our splits, and data that is missing, malformed or unknown.

The folder fixtures have the layout of LATENTREF_DATA; tests of the real files run when it is set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import (
    EXPECTED_EXAMPLES,
    aqua_row,
    folder,
    mathqa_row,
    published_files,
    strategyqa_row,
    write_folder,
)

from lm_eval_latentref.benchmarks import published, splits
from lm_eval_latentref.benchmarks.prosqa import generate
from lm_eval_latentref.benchmarks.rows import BENCHMARKS, harness_choices
from lm_eval_latentref.benchmarks.splits import (
    KNOWN_TEST_SPLITS,
    content_hash,
    load,
    load_split,
    load_training,
)
from lm_eval_latentref.checkpoints.questions import normalise_question
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import prompt

__all__ = ["folder"]

REAL_DATA = os.environ.get(published.DATA_VARIABLE)
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="LATENTREF_DATA is not set")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_row_reads_as_the_specified_example(name):
    row, expected = EXPECTED_EXAMPLES[name]
    assert BENCHMARKS[name].example(row) == expected
    assert prompt(BENCHMARKS[name].example(row).question).endswith("\n")


def test_candidates_are_those_the_question_offers():
    offered = {n: BENCHMARKS[n].candidates(row) for n, (row, _) in EXPECTED_EXAMPLES.items()}
    assert offered == {
        "gsm8k": (),
        "mathqa": ("a", "b", "c", "d", "e"),
        "aqua": ("A", "B", "C", "D", "E"),
        "strategyqa": ("yes", "no"),
        "prosqa": ("Tom is a impus.", "Tom is a gorpus."),
    }


def test_splits_are_cut_as_specified(folder):
    files = published_files()
    rows = {(n, s): load_split(n, s).rows for n in BENCHMARKS for s in ("test", "dev")}
    assert rows["gsm8k", "dev"] == files["gsm8k/validation_equations"]
    assert rows["mathqa", "dev"] == files["mathqa/validation"][-4:]
    assert rows["aqua", "dev"] == files["aqua/validation"]
    assert rows["prosqa", "dev"] == files["prosqa/validation"]
    assert rows["strategyqa", "test"] == files["strategyqa/validation"]
    for name in ("gsm8k", "mathqa", "aqua", "prosqa"):
        assert rows[name, "test"] == files[f"{name}/test"]
    hashes = {hashlib.sha256(f"q{n}".encode()).hexdigest(): f"q{n}" for n in range(30)}
    lowest = {hashes[key] for key in sorted(hashes)[:3]}
    assert {row["qid"] for row in rows["strategyqa", "dev"]} == lowest


def test_training_rows_are_the_rest(folder):
    files = published_files()
    assert load_split("gsm8k", "train").rows == [
        row for n, row in enumerate(files["gsm8k/train"]) if not 3 <= n < 7
    ]
    assert load_split("mathqa", "train").rows == files["mathqa/validation"][:-4]
    split = {s: [r["qid"] for r in load_split("strategyqa", s).rows] for s in ("dev", "train")}
    assert sorted(split["dev"] + split["train"]) == sorted(f"q{n}" for n in range(30))


def test_a_published_training_file_is_preferred(folder):
    write_folder(folder, {"mathqa/train": [mathqa_row(7)], "aqua/train": [aqua_row(7)]})
    assert load_split("mathqa", "train").rows == [mathqa_row(7)]
    assert load_split("aqua", "train").rows == [aqua_row(7)]


def test_without_its_training_file_prosqa_trains_on_generated_problems(folder, monkeypatch):
    monkeypatch.setattr(splits, "NUM_GENERATED_TRAIN", 5)
    expected = [dict(row) for row in generate(5, seed=0, split="train")]
    assert load_split("prosqa", "train").rows == expected


def test_training_drops_what_stands_in_any_held_out_split(folder):
    respaced = {**aqua_row(7), "question": "what IS 200 % of 100?"}
    write_folder(folder, {"aqua/train": [respaced, aqua_row(12), aqua_row(50)]})
    kept, num_dropped = load_training("aqua")
    assert [example.question.split("\n")[0] for example in kept] == ["What is 50+1?"]
    assert num_dropped == 2


def download_from(files):
    """A replacement for `datasets.load_dataset` that serves `files` as the hub does."""
    names = {ids[0]: name for name, ids in published.HUB_SETS.items()}
    plain = {url: key for key, url in published.PLAIN_FILES.items()}

    class Loaded(list):
        info = None

    def load_dataset(path, name=None, *, split, data_files=None):
        if data_files is None:
            assert name == dict(openai_gsm8k="main", deepmind_aqua_rat="raw").get(
                path.replace("/", "_")
            )
            return Loaded(files[f"{names[path]}/{split}"])
        rows = files["/".join(plain[data_files])]
        if path == "text":
            return Loaded(
                {"text": f"{r['question']}||{' '.join(r['steps'])} #### {r['answer']}"}
                for r in rows
            )
        assert path == "json"
        return Loaded({**row, "evidence": [[["x"], "operation"]]} for row in rows)

    return load_dataset


def test_folder_and_download_give_the_same_documents(folder, monkeypatch):
    names = [(n, s) for n in BENCHMARKS for s in ("test", "dev")]
    local = [load_split(*name).rows for name in names]
    monkeypatch.delenv(published.DATA_VARIABLE)
    monkeypatch.setattr("datasets.load_dataset", download_from(published_files()))
    assert [load_split(*name).rows for name in names] == local


def test_the_loader_reads_plain_files_of_mixed_evidence(tmp_path, monkeypatch):
    rows = [{**strategyqa_row(n), "evidence": [[[["a-1"]], ["operation"]]]} for n in range(2)]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.delenv(published.DATA_VARIABLE, raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(published.PLAIN_FILES, ("strategyqa", "validation"), str(path))
    assert load_split("strategyqa", "test").rows == [strategyqa_row(n) for n in range(2)]


def test_a_failed_download_says_what_to_set(monkeypatch):
    def offline(*_args, **_kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.delenv(published.DATA_VARIABLE, raising=False)
    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(LatentRefError, match=r"LATENTREF_DATA.*mathqa/test\.jsonl") as caught:
        load("mathqa", "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("squad", "test", "gsm8k, mathqa"),
        ("aqua", "validation", "test, dev, train"),
        ("aqua", "train", "aqua/train.jsonl does not exist"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_line(folder, name, split, message):
    with pytest.raises(LatentRefError, match=message) as caught:
        load(name, split)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv(published.DATA_VARIABLE, "/no/such/folder")
    with pytest.raises(LatentRefError, match="/no/such/folder"):
        load("gsm8k", "test")


def test_a_broken_line_is_named(folder):
    with (folder / "aqua/test.jsonl").open("a") as file:
        file.write('{"question": \n')
    with pytest.raises(LatentRefError, match="line 6"):
        load("aqua", "test")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("mathqa", {"correct": "f"}),
        ("aqua", {"correct": ""}),
        ("aqua", {"options": None}),
        ("prosqa", {"answer": "Tom is a zumpus."}),
        ("gsm8k", {"answer": "#### "}),
    ],
)
def test_a_malformed_row_stops_the_run_instead_of_getting_lost(name, damage):
    row = {**EXPECTED_EXAMPLES[name][0], **damage}
    with pytest.raises(LatentRefError, match=f"malformed {name} row") as caught:
        BENCHMARKS[name].example(row)
    assert "\n" not in str(caught.value)


def test_a_test_split_that_is_not_the_known_one_is_warned_about(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load("aqua", "test")
        load("aqua", "dev")
    (record,) = [r for r in caplog.records if "not the known split" in r.message]
    assert "5 rows" in record.message
    assert "254" in record.message


def test_the_content_hash_sees_order_and_answers_but_not_side_fields():
    rows = [aqua_row(n) for n in range(3)]
    reference = content_hash("aqua", rows)
    assert content_hash("aqua", [{**row, "rationale": "none"} for row in rows]) == reference
    assert content_hash("aqua", rows[::-1]) != reference
    assert content_hash("aqua", [*rows[:2], {**rows[2], "correct": "B"}]) != reference


@given(st.text())
def test_normalising_is_idempotent_and_blind_to_case_space_and_ascii_punctuation(text):
    once = normalise_question(text)
    assert normalise_question(once) == once
    assert normalise_question("  (" + text.replace(" ", " \n, ") + ")?!") == once


def test_normalising_matches_mathqa_to_what_it_was_taken_from():
    taken, original = "if x is 3.5 % of y , it isn ' t 4 .", "If x is 3.5% of y, it isn't 4."
    assert normalise_question(taken) == normalise_question(original)


@given(
    st.one_of(
        st.text(alphabet="abcdef )(,'1 ["),
        st.lists(st.sampled_from(["a ) ", "b ) ", "e ) ", ", ", " , ", "1", "','", " ) "])).map(
            "".join
        ),
    )
)
def test_harness_choices_are_those_of_lm_evals_own_parser(options):
    from lm_eval.tasks.mathqa.utils import doc_to_choice

    assert harness_choices(options) == doc_to_choice({"options": options})


def test_harness_choices_keep_the_known_quirks():
    commas = harness_choices("a ) 1 , 000 , b ) 2 , c ) 3 , d ) 4 , e ) 5 , 6")
    assert commas == ["1", "2", "3", "4", "5 , 6"]
    quotes = harness_choices("['a ) 1', 'b ) 2', 'c ) 3', 'd ) 4', 'e ) 5']")
    assert quotes == ["1'", "2'", "3'", "4'", "5']"]


@needs_real_data
@pytest.mark.parametrize("name", BENCHMARKS)
def test_real_splits_have_the_specified_sizes_and_hashes(name, caplog):
    sizes = {"gsm8k": 500, "mathqa": 447, "aqua": 254, "strategyqa": 206, "prosqa": 300}
    with caplog.at_level(logging.WARNING):
        test = load_split(name, "test")
        assert len(load(name, "dev")) == sizes[name]
    assert (len(test.rows), test.content_hash) == KNOWN_TEST_SPLITS[name]
    assert not caplog.records


@needs_real_data
def test_real_equation_problems_are_rows_of_the_train_file():
    train = {row["question"]: row for row in published.read("gsm8k", "train").rows}
    benchmark = BENCHMARKS["gsm8k"]
    for row in load_split("gsm8k", "dev").rows:
        assert benchmark.answer(row) == benchmark.answer(train[row["question"]])
    assert len(load_split("gsm8k", "train").rows) == 7473 - 500


@needs_real_data
def test_real_oddities_are_as_many_as_the_readme_says():
    from lm_eval.tasks.mathqa.utils import doc_to_choice

    list_like, cut = {}, {}
    for split in ("validation", "test"):
        rows = published.read("mathqa", split).rows
        assert all(harness_choices(r["options"]) == doc_to_choice(r) for r in rows)
        list_like[split] = sum(row["options"].startswith("[") for row in rows)
        cut[split] = sum(
            " , ".join(
                f"{letter} ) {choice}"
                for letter, choice in zip("abcde", harness_choices(row["options"]), strict=True)
            )
            != row["options"]
            for row in rows
            if not row["options"].startswith("[")
        )
    assert list_like == {"validation": 115, "test": 66}
    assert cut == {"validation": 11, "test": 9}


@needs_real_data
def test_real_training_data_loses_its_overlap():
    kept, num_dropped = load_training("mathqa")
    assert (len(kept), num_dropped) == (4008, 20)
