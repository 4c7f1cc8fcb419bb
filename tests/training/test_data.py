"""Training data: files and their bad rows, held-out questions, generated problems, text."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from training_helpers import small_recipe, write_json

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example
from lm_eval_latentref.training import data as training_data
from lm_eval_latentref.training.data import (
    BadRow,
    encode,
    load_data,
    parse_examples,
    read_examples,
    summary,
)
from lm_eval_latentref.training.models import make_word_tokenizer, words


def test_bad_rows_are_counted_and_named_with_file_line_and_rule(tmp_path, caplog):
    good = {"question": "q", "steps": ["s"], "answer": "a"}
    rows = [good, {**good, "answer": ""}, {**good, "steps": "s"}, 7, {**good, "question": 3}, good]
    path = tmp_path / "data.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    assert read_examples(str(path)) == [Example("q", ("s",), "a")] * 2
    assert f"{path}: 4 bad rows left out of 6" in caplog.text
    for part in (
        "answer is not a non-empty string: row 2;",
        "steps is not a list of strings: row 3;",
        "it is not a JSON object: row 4;",
        "question is not a non-empty string: row 5",
    ):
        assert part in caplog.text


def test_a_summary_of_many_bad_rows_stays_readable():
    bad = [
        BadRow(line, "answer is not a non-empty string")
        for line in [*range(2, 40, 2), *range(50, 60)]
    ]
    named = "answer is not a non-empty string: lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 19 more"
    assert summary(bad) == named


@given(st.lists(st.tuples(st.integers(1, 99), st.sampled_from("ab")), unique_by=lambda row: row[0]))
def test_a_summary_of_few_bad_rows_names_each_of_them(rows):
    actual = {}
    for part in filter(None, summary([BadRow(*row) for row in sorted(rows)[:9]]).split("; ")):
        rule, places = part.split(": line")
        for ends in places.removeprefix("s").strip().split(", "):
            first, _, last = ends.partition("-")
            actual.update(dict.fromkeys(range(int(first), int(last or first) + 1), rule))
    assert actual == dict(sorted(rows)[:9])


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_byte_order_marks_and_unicode_line_separators_are_read_as_in_json(tmp_path, suffix):
    # All that str.splitlines would part a line at, but JSON allows within a string.
    question = "one\u2028two\u2029three\x85four\x7f"
    row = json.dumps({"question": question, "steps": ["s"], "answer": "a"}, ensure_ascii=False)
    bad = json.dumps({"question": question, "steps": 1, "answer": "a"}, ensure_ascii=False)
    text = f"[\n{row},\n{bad},\n{row}\n]" if suffix == "json" else f"\n{row}\n{bad}\r\n{row}\n"
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_examples(str(path)) == [Example(question, ("s",), "a")] * 2
    _, actual = parse_examples(str(path), text)
    assert [row.number for row in actual] == [2 if suffix == "json" else 3]


def test_json_lines_are_read_too_and_a_broken_line_is_a_bad_row(tmp_path, caplog):
    good = json.dumps({"question": "q", "steps": [], "answer": "a"})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{{broken\n{good}\n")
    assert len(read_examples(str(path))) == 2
    assert "line 3" in caplog.text


def test_a_truncated_list_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[\n{"question": "q", "steps": [], "answer": "a"},\n{"question": ')
    with pytest.raises(LatentRefError, match="line 3"):
        read_examples(str(path))


def test_questions_of_held_out_splits_are_removed_counted_and_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training_data.splits, "held_out_questions", lambda: frozenset({"onetwo"}))
    questions = ["One, two?", "three", "ONE two", "VALIDATION one"]
    train_file = write_json(tmp_path / "train.json", questions)
    recipe = small_recipe(
        tmp_path / "out",
        train=train_file,
        validation=write_json(tmp_path / "validation.json", ["validation one."]),
        task={},
    )
    caplog.set_level(logging.INFO)
    data = load_data(recipe)
    assert [example.question for example in data.epoch(0)] == ["three"]
    assert "1 training examples; 3 removed" in caplog.text


def test_generated_problems_differ_between_epochs_and_depend_only_on_the_seed(tmp_path):
    data = load_data(small_recipe(tmp_path))
    assert data.epoch(0) == data.epoch(0) != data.epoch(1)
    other = load_data(small_recipe(tmp_path, seed=1))
    assert data.epoch(0) != other.epoch(0)
    assert data.validation == other.validation


def test_generated_problems_in_a_validation_file_are_removed_and_counted(tmp_path, caplog):
    plain = load_data(small_recipe(tmp_path / "plain"))
    leaked = plain.epoch(0)[3:5]
    questions = [f" {example.question.upper()}" for example in leaked]
    recipe = small_recipe(
        tmp_path / "out", validation=write_json(tmp_path / "validation.json", questions)
    )
    caplog.set_level(logging.INFO)
    data = load_data(recipe)
    for number in (0, 1):
        held_out = {example.question for example in leaked}
        kept = [example for example in plain.epoch(number) if example.question not in held_out]
        assert data.epoch(number) == data.epoch(number) == kept
    removed = len(plain.epoch(0)) - len(data.epoch(0))
    assert removed >= 2
    assert caplog.text.count(f"graph: {removed} of the 64 problems of epoch 1 removed") == 1
    assert len(data.epoch(1)) == 64 or "problems of epoch 2 removed" in caplog.text


def test_fixed_examples_of_mixed_sources_exclude_generated_ones(tmp_path):
    path = write_json(tmp_path / "train.json", ["one", "two"])
    mixed = small_recipe(tmp_path / "out", train=["graph", path], check_overlap=False)
    data = load_data(mixed)
    assert [example.question for example in data.fixed] == ["one", "two"]
    assert [*data.fixed] == data.epoch(0)[-2:] == data.epoch(1)[-2:]
    assert data.epoch(0)[:-2] != data.epoch(1)[:-2]
    # What comes in a later epoch only is fixed as well: hashed, and known to a new tokenizer.
    few = dataclasses.replace(mixed, num_train=1)
    in_turn = load_data(few)
    assert [in_turn.epoch(number)[-1].question for number in (0, 1)] == ["two", "one"]
    assert in_turn.fixed == data.fixed
    assert "two\n" in set(in_turn.texts)


def test_data_without_usable_problems_is_an_error_of_one_line(tmp_path):
    questions = [each.question for each in load_data(small_recipe(tmp_path)).epoch(0)]
    for left, name in ((questions, "train=graph"), ([""], "validation")):
        path = write_json(tmp_path / "validation.json", left)
        with pytest.raises(LatentRefError, match=f"{name}: no usable examples are left"):
            load_data(small_recipe(tmp_path, validation=path, num_validation=64)).epoch(0)


def test_a_generated_file_with_the_default_seed_is_in_no_training_stream(tmp_path):
    path = str(tmp_path / "graph.json")
    assert main(["data", "graph", "--num", "300", "-o", path]) == 0
    written = {example.question for example in read_examples(path)}
    for seed in (0, 1):
        recipe = small_recipe(tmp_path, seed=seed, task={}, num_train=300)
        data = load_data(recipe)
        for number in range(3):
            assert not written & {example.question for example in data.epoch(number)}
        same = str(tmp_path / f"{seed}.json")
        number = seed * training_data.EPOCH_SEEDS + 2
        assert main(["data", "graph", "--num", "300", "--seed", str(number), "-o", same]) == 0
        assert read_examples(same) == data.epoch(2)


def test_problems_are_encoded_as_text_of_the_protocol():
    example = Example("Is Tom a lempus?", ("Tom is a lempus.", "First, add the two."), "yes")
    tokenizer = tiny_tokenizer()
    (problem,) = encode([example], tokenizer)
    text = tokenizer.decode([*problem.question, *sum(problem.steps, ()), *problem.answer])
    assert text == ("Is Tom a lempus?\nTom is a lempus.\nFirst, add the two.\n### yes<|endoftext|>")


@given(st.lists(st.sampled_from(["a", "b>c", "###", "x.", ",", "\n"]), min_size=1).map(tuple))
def test_text_survives_the_word_tokenizer(parts):
    text = " ".join(parts).replace(" \n", "\n").replace("\n ", "\n")
    tokenizer = make_word_tokenizer(words([text]))
    assert tokenizer.decode(tokenizer.encode(text)) == text
