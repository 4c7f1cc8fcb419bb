"""The leaderboard's page in a real browser: sorting, filtering, two rows, keys, sizes, colours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from browser import open_browser, set_screen
from lm_eval_files import write_run

from lm_eval_latentref.evaluation import leaderboard_page
from lm_eval_latentref.evaluation.chart import chart, pareto
from lm_eval_latentref.evaluation.leaderboard import leaderboard
from lm_eval_latentref.evaluation.leaderboard_report import as_html

MARKUP = "<script>window.bad=1</script><img src=x onerror='window.bad=1'>"
BASE = (np.random.default_rng(0).random(300) < 0.4).astype(float)


def turned(num):
    values = BASE.copy()
    values[np.flatnonzero(values == 0)[:num]] = 1.0
    return values.tolist()


def cost(seconds, num=300):
    return {
        "forwards": {"backbone": 2 * num},
        "thought_steps": 6 * num,
        "tokens_encoded": 80 * num,
        "tokens_generated": 0,
        "seconds": {"encode": seconds, "think": seconds, "decode": 0.0},
        "peak_memory_bytes": {"host": 1_000_000_000},
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Four rows: one far better and dearer, two alike, one of a hostile name."""
    root = tmp_path_factory.mktemp("runs")
    rows = {"plain": 0, "good": 70, "alike": 2, MARKUP: 40}
    for number, (name, num) in enumerate(rows.items()):
        latent = {"latent_steps": 6, "cost": cost(number + 1.0)}
        config = {"latentref": latent} if name != "plain" else {}
        write_run(
            root / str(number),
            {"t": {"acc": turned(num)}},
            name=name,
            text=MARKUP,
            config=config,
            model_source="latentref" if config else "hf",
        )
    file = root / "board.html"
    file.write_text(as_html(leaderboard([root], baseline="plain")), "utf-8")
    return file


@pytest.fixture(scope="module")
def browser():
    opened = open_browser()
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser, page):
    set_screen(browser, 1400, 900)
    browser.get(page.as_uri())
    return browser


def css(browser, selector):
    return browser.find_elements("css selector", selector)


def names(browser):
    shown = [row for row in css(browser, "#board tbody tr") if row.is_displayed()]
    return [row.find_element("css selector", "th.name").text.split("\n")[0] for row in shown]


def header(browser, label):
    for button in css(browser, "#board thead button"):
        if button.text.split("\n")[0] == label:
            return button
    raise AssertionError(label)


def test_rows_come_by_rank_and_sort_by_any_column_both_ways(opened):
    assert names(opened)[0] == "good"
    by_mean = names(opened)
    header(opened, "mean").click()
    assert names(opened) == by_mean
    header(opened, "mean").click()
    assert names(opened) == by_mean[::-1]
    header(opened, "s").click()
    assert names(opened)[-1] == "plain"  # its cost is not known
    header(opened, "s").click()
    assert names(opened)[-1] == "plain"
    (sorted_by,) = css(opened, "#board th[aria-sort]")
    assert sorted_by.get_attribute("aria-sort") == "ascending"


def test_the_filter_keeps_rows_that_hold_every_word(opened):
    field = css(opened, "#filter")[0]
    field.send_keys("LATENTREF goo")
    assert names(opened) == ["good"]
    assert css(opened, "#count")[0].text == "1 of 4 rows"
    field.clear()
    field.send_keys(" ")
    assert len(names(opened)) == 4


def test_two_chosen_rows_show_their_difference_and_the_documents_that_flip(opened):
    for name in ("plain", "alike"):
        css(opened, f"input.compare[aria-label='Compare {name}']")[0].click()
    panel = css(opened, "#pair-body")[0]
    assert "no significant difference" in panel.text
    assert "+0.67" in panel.text
    assert "0 documents only the first has right, 2 only the second." in panel.text
    assert len(css(opened, ".flips li.won")) == 2
    first = css(opened, ".flips li")[0].text
    assert MARKUP in first
    assert "gold" in first
    css(opened, "input.compare[aria-label='Compare good']")[0].click()
    assert "alike → good: a significant difference" in panel.text
    assert "+22.67" in panel.text
    assert len(css(opened, "input.compare:checked")) == 2


def test_the_lists_choose_the_same_two_rows(opened):
    for place, name in (("first", "good"), ("second", "plain")):
        options = css(opened, f"#{place} option")
        next(each for each in options if each.text == name).click()
    assert "good → plain: a significant difference" in css(opened, "#pair-body")[0].text
    assert "-23.33" in css(opened, "#pair-body")[0].text
    assert len(css(opened, ".flips li.lost")) == 20
    css(opened, "button.more")[0].click()
    assert len(css(opened, ".flips li.lost")) == 40
    assert len(css(opened, "tr.chosen")) == 2


def test_the_keyboard_alone_sorts_filters_and_chooses(opened):
    from selenium.webdriver.common.keys import Keys

    def press(key):
        opened.switch_to.active_element.send_keys(key)

    reached = []
    for _ in range(40):
        press(Keys.TAB) if reached else css(opened, "body")[0].send_keys(Keys.TAB)
        active = opened.switch_to.active_element
        reached.append(active.get_attribute("id") or active.text or active.get_attribute("class"))
        if active.tag_name == "button" and active.text.startswith("mean"):
            press(Keys.ENTER)
            press(Keys.ENTER)
        if "compare" in (active.get_attribute("class") or ""):
            press(Keys.SPACE)
    assert reached[0] == "filter"
    assert names(opened)[-1] == "good"
    assert "significant difference" in css(opened, "#pair-body")[0].text


def test_the_cost_of_the_picture_can_be_chosen(opened):
    shown = [each.get_attribute("id") for each in css(opened, ".chart") if each.is_displayed()]
    assert shown == ["chart-0"]
    options = css(opened, "#cost option")
    next(each for each in options if each.text.startswith("seconds per document")).click()
    (chart_,) = [each for each in css(opened, ".chart") if each.is_displayed()]
    assert len(chart_.find_elements("css selector", "circle")) == 3
    assert "not known: plain" in chart_.text


def test_groups_of_columns_can_be_hidden(opened):
    box = css(opened, ".columns[value=costs]")[0]
    assert header(opened, "s").is_displayed()
    box.click()
    assert not any(cell.is_displayed() for cell in css(opened, "#board .costs"))


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(opened, dark):
    set_screen(opened, 1400, 900, dark=dark)
    script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    ink, page = (
        np.array([int(v) for v in text[text.index("(") + 1 : -1].split(",")[:3]])
        for text in opened.execute_script(script)
    )
    assert (ink.mean() > page.mean()) == dark
    assert abs(int(ink.mean()) - int(page.mean())) > 150


def test_a_telephone_scrolls_the_table_and_not_the_page(opened):
    set_screen(opened, 390, 844)
    css(opened, "input.compare")[0].click()
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    assert opened.execute_script(widths) == [390, 390]
    scroll = "const s = document.querySelector('.scroll'); return s.scrollWidth > s.clientWidth"
    assert opened.execute_script(scroll)


def test_markup_in_names_and_questions_does_nothing(opened):
    for box in css(opened, "input.compare")[:2]:
        box.click()
    assert opened.execute_script("return window.bad") is None
    assert MARKUP in names(opened)
    assert css(opened, "img") == []


def test_nothing_is_asked_of_the_network_and_the_console_is_silent(opened, page):
    for box in css(opened, "input.compare")[:2]:
        box.click()
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [request["params"]["request"]["url"] for request in requests]
    assert set(asked) <= {page.as_uri()}
    assert [entry for entry in opened.get_log("browser") if entry["level"] != "INFO"] == []


def test_documents_beyond_the_size_are_counted(opened, page, monkeypatch):
    monkeypatch.setattr(leaderboard_page, "MAX_TEXT_BYTES", 2000)
    small = page.with_name("small.html")
    small.write_text(as_html(leaderboard([page.parent])), "utf-8")
    opened.get(small.as_uri())
    for name in ("plain", "good"):
        css(opened, f"input.compare[aria-label='Compare {name}']")[0].click()
    panel = css(opened, "#pair-body")[0].text
    missing = 70 - len(css(opened, ".flips li"))
    assert 50 < missing < 70
    assert f"{missing} of them are not on this page" in panel


def test_twenty_rows_of_twenty_tasks_sort_in_a_fifth_of_a_second(browser, tmp_path):
    rng = np.random.default_rng(1)
    for number in range(20):
        tasks = {f"t{k}": {"acc": (rng.random(20) < 0.5).astype(float).tolist()} for k in range(20)}
        write_run(tmp_path / str(number), tasks, name=f"model-{number}", log_samples=False)
    file = tmp_path / "many.html"
    file.write_text(as_html(leaderboard([tmp_path])), "utf-8")
    assert file.stat().st_size < 5_000_000
    browser.get(file.as_uri())
    script = """
        const button = document.querySelectorAll('#board thead button')[5];
        const start = performance.now();
        button.click();
        document.body.offsetHeight;
        return performance.now() - start;
    """
    assert min(browser.execute_script(script) for _ in range(8)) < 200


def test_the_front_is_what_no_other_point_beats_in_both():
    points = [(1.0, 0.3), (2.0, 0.5), (2.0, 0.4), (3.0, 0.5), (4.0, 0.6)]
    assert pareto(points) == [0, 1, 4]


def test_points_lie_by_cost_and_value_and_dear_ones_on_a_logarithm():
    rows = [("a", 1.0, 0.3, 0.01), ("b", 100.0, 0.5, None), ("c", 10.0, 0.4, 0.0)]
    rows.append(("d", None, 1.0, 0.0))
    made = chart(rows, "seconds")
    a, b, c = made.points
    assert made.log
    assert made.missing == "d"
    assert c.x - a.x == pytest.approx(b.x - c.x, abs=0.2)
    assert a.y > c.y > b.y
    assert a.low > a.y > a.high
    assert chart(rows[:1], "seconds") is None
    for high in (0.28, 0.4, 0.55, 0.73, 0.9):
        made = chart([("a", 1.0, 0.25, None), ("b", 2.0, high, None)], "seconds")
        assert all(3 <= len(ticks) <= 9 for ticks in (made.x_ticks, made.y_ticks))
