"""Options are parsed once, checked against their domains, and refused with one helpful line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES, RefinementConfig


def test_defaults_are_plain_language_modelling():
    config = RefinementConfig.parse({})
    assert config == RefinementConfig()
    assert (config.latent_steps, config.memory_rate, config.search_step_size) == (0, 0.0, 0.0)
    assert (config.search_steps, config.search_gradient) == (1, "detached")
    assert not config.searches


@given(
    steps=st.integers(0, 100),
    rate=st.floats(0, 1),
    eta=st.floats(allow_nan=False, allow_infinity=False),
    inner=st.integers(1, 9),
    gradient=st.sampled_from(["detached", "through"]),
)
def test_strings_and_values_parse_alike(steps, rate, eta, inner, gradient):
    values = {
        "latent_steps": steps,
        "memory_rate": rate,
        "search_step_size": eta,
        "search_steps": inner,
        "search_gradient": gradient,
    }
    strings = {name: str(value) for name, value in values.items()}
    assert RefinementConfig.parse(values) == RefinementConfig.parse(strings)
    assert RefinementConfig.parse(values) == RefinementConfig(**values)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("memory_rate", 1.5, "a number in [0, 1]"),
        ("memory_rate", -0.1, "a number in [0, 1]"),
        ("memory_rate", math.nan, "a number in [0, 1]"),
        ("memory_rate", "much", "a number in [0, 1]"),
        ("search_step_size", math.nan, "a finite number"),
        ("search_step_size", "inf", "a finite number"),
        ("latent_steps", -1, "an integer >= 0"),
        ("latent_steps", 2.5, "an integer >= 0"),
        ("latent_steps", "six", "an integer >= 0"),
        ("latent_steps", True, "an integer >= 0"),
        ("latent_steps", 10_001, "at most 10000"),
        ("latent_steps", "1e400", "an integer >= 0"),
        ("search_steps", 0, "an integer >= 1"),
        ("search_steps", 10**30, "at most 10000"),
        ("search_gradient", "both", "'detached' or 'through'"),
        ("latent_markers", "on", "'auto' or 'none'"),
    ],
)
def test_a_value_outside_its_domain_is_one_line(name, value, allowed):
    with pytest.raises(LatentRefError) as error:
        RefinementConfig.parse({name: value})
    message = str(error.value)
    assert "\n" not in message
    assert f"{name}={value}"[:60] in message.replace("'", "")
    assert allowed.replace("'", "") in message.replace("'", "")
    assert len(message) < 250


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_with_very_many_digits_is_one_line(digits):
    for name in ("latent_steps", "memory_rate", "search_steps", "search_step_size"):
        with pytest.raises(LatentRefError, match=f"^{name}=.{{,90}}: it must be"):
            RefinementConfig.parse({name: 10**digits})


def test_an_unknown_option_is_named_with_the_nearest_or_those_there_are():
    with pytest.raises(LatentRefError, match="'latent_step'; did you mean latent_steps"):
        RefinementConfig.parse({"latent_step": 3})
    with pytest.raises(LatentRefError, match="unknown key 'zzz'") as error:
        RefinementConfig.parse({"zzz": 3})
    assert all(name in str(error.value) for name in OPTION_NAMES)


def test_none_is_not_given_except_for_markers_where_it_is_a_value():
    # lm-eval's command line turns `latent_markers=none` into None.
    config = RefinementConfig.parse({"latent_markers": None, "memory_rate": None})
    assert config == RefinementConfig(latent_markers="none")


@pytest.mark.parametrize("written", ["0.3*d/2", " 0.3 * d/2", "0.3*d / 2"])
def test_a_step_size_in_units_of_half_d_becomes_a_number_once_d_is_known(written):
    config = RefinementConfig.parse({"latent_steps": 2, "search_step_size": written})
    assert config.searches
    assert f"{config.search_step_size:g}" == "0.3*d/2"
    assert config.for_width(64).search_step_size == pytest.approx(9.6)
    assert RefinementConfig.parse({"search_step_size": "9.6"}).for_width(8).search_step_size == 9.6
    assert not RefinementConfig.parse({"latent_steps": 2, "search_step_size": "0*d/2"}).searches


@pytest.mark.parametrize("written", ["0.3*d", "x*d/2", "0.3*w/2", "inf*d/2"])
def test_any_other_unit_is_refused(written):
    with pytest.raises(LatentRefError, match="search_step_size="):
        RefinementConfig.parse({"search_step_size": written})
