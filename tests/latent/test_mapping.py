"""Dataclasses from mappings: accepted values, and one-line errors about all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.mapping import from_mapping


@dataclass(frozen=True, kw_only=True)
class Example:
    name: str
    number: int = 1
    share: float | None = None
    size: float | str = 0.0
    on: bool = False
    names: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


def test_text_may_stand_for_a_value_where_the_source_has_only_text():
    values = {"name": 7, "number": "3", "share": "1e-3", "names": "a,b"}
    assert from_mapping(Example, values) == Example(
        name="7", number=3, share=1e-3, names=("a", "b")
    )
    assert from_mapping(Example, {"name": "x", "share": None, "size": "half"}).size == "half"


@pytest.mark.parametrize("reads_text", [True, False])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, "unknown key 'nam'; did you mean name?"),
        ({}, "name is missing"),
        ({"name": None}, "name is missing"),
        ({"name": True}, "name=True: it must be text"),
        ({"number": True}, "number=True: it must be an integer"),
        ({"number": 1.5}, "number=1.5: it must be an integer"),
        ({"number": None}, "number=None: it must be an integer"),
        ({"number": float("inf")}, "number=inf: it must be an integer"),
        ({"share": float("nan")}, "share=nan: it must be a finite number"),
        ({"share": 10**400}, "it must be a finite number"),
        ({"share": [1]}, "share=[1]: it must be a finite number"),
        ({"on": 1}, "on=1: it must be true or false"),
        ({"names": ["a", 1]}, "names=['a', 1]: it must be a list of names"),
        ({"names": {"a": 1}}, "it must be a list of names"),
        ({"more": {1: 2}}, "more={1: 2}: it must be KEY: VALUE pairs"),
    ],
)
def test_a_value_of_another_type_is_one_line_with_its_source(values, message, reads_text):
    if "nam" not in values and "name" not in values and values:
        values = {"name": "x", **values}
    with pytest.raises(LatentRefError) as error:
        from_mapping(Example, values, "file.json", reads_text=reads_text)
    assert str(error.value).startswith("file.json: ")
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("values", [{"number": "3"}, {"share": "1e-3"}, {"names": "a,b"}])
def test_text_stands_for_nothing_else_where_the_source_has_types(values):
    with pytest.raises(LatentRefError, match="it must be"):
        from_mapping(Example, {"name": "x", **values}, reads_text=False)
