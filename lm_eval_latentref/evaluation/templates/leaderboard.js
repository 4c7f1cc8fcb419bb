"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("board");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text; // never markup
    if (name) element.className = name;
    return element;
  };

  // Sorting: numbers by value, what is empty last in both directions.
  const key = (row, place) => {
    const cell = row.cells[place];
    const text = cell.dataset.value ?? cell.firstChild.textContent;
    return text === "" ? null : Number.isNaN(Number(text)) ? text.toLowerCase() : Number(text);
  };
  const compare = (a, b) =>
    typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, place) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const first = header.matches(".rank, .name, .text") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = before === first ? other : first;
      headers.forEach((one) => one.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", direction);
      table.classList.toggle("ranked", header.matches(".rank") && direction === "ascending");
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = rows.map((row, index) => ({ row, index, value: key(row, place) }));
      keyed.sort((a, b) => {
        if (a.value === null || b.value === null) {
          return (a.value === null) - (b.value === null) || a.index - b.index;
        }
        return sign * compare(a.value, b.value) || a.index - b.index;
      });
      keepWidths();
      body.append(...keyed.map((one) => one.row));
    });
  });

  // Rows in another order need no other columns: with widths as they are, sorting is quick.
  function keepWidths() {
    if (table.style.tableLayout) return;
    const widths = headers.map((header) => header.offsetWidth);
    table.style.width = `${table.offsetWidth}px`;
    headers.forEach((header, place) => { header.style.width = `${widths[place]}px`; });
    table.style.tableLayout = "fixed";
  }
  const freeWidths = () => {
    table.style.tableLayout = table.style.width = "";
    headers.forEach((header) => { header.style.width = ""; });
  };
  window.addEventListener("resize", freeWidths);

  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const applyFilter = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.dataset.search.includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
  };
  filter.addEventListener("input", applyFilter);
  applyFilter();

  for (const box of document.querySelectorAll(".columns")) {
    const apply = () => {
      freeWidths();
      table.classList.toggle(`no-${box.value}`, !box.checked);
    };
    box.addEventListener("change", apply);
    apply();
  }

  const cost = document.getElementById("cost");
  const showChart = () => {
    document.querySelectorAll(".chart").forEach((chart) => {
      chart.hidden = chart.id !== `chart-${cost.value}`;
    });
  };
  if (cost) cost.addEventListener("change", showChart);

  // Two rows: chosen by their boxes or by the lists, which follow each other.
  const boxes = [...document.querySelectorAll(".compare")].sort((a, b) => a.value - b.value);
  const lists = ["first", "second"].map((id) => document.getElementById(id));
  let chosen = [];
  const choose = (places) => {
    chosen = places.slice(-2);
    boxes.forEach((box, place) => {
      box.checked = chosen.includes(place);
      box.closest("tr").classList.toggle("chosen", box.checked);
    });
    lists.forEach((list, side) => { list.value = chosen[side] ?? ""; });
    showPair();
  };
  boxes.forEach((box, place) => box.addEventListener("change", () => {
    const others = chosen.filter((other) => other !== place);
    choose(box.checked ? [...others, place] : others);
  }));
  lists.forEach((list) => list.addEventListener("change", () => {
    const values = lists.map((one) => one.value).filter((value) => value !== "").map(Number);
    if (new Set(values).size === values.length) choose(values);
    else choose([Number(list.value)]);
  }));

  const bits = data.tasks.map((task) => task.right.map((text) => {
    return text === null ? null : Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  }));
  const isRight = (task, row, place) => (bits[task][row][place >> 3] >> (7 - (place & 7))) & 1;
  const points = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(2)}`;
  const probability = (p) => (p < 0.0001 ? "< 0.0001" : p.toFixed(4));
  const figure = (label, value, name) => {
    const box = make("div", label, "muted");
    box.append(make("b", value, name));
    return box;
  };

  function showPair() {
    const panel = document.getElementById("pair-body");
    if (chosen.length < 2) {
      const text = chosen.length ? `${data.rows[chosen[0]]} is chosen: choose one more.`
        : "Tick two rows of the table, or choose them here.";
      panel.replaceChildren(make("p", text, "muted"));
      return;
    }
    const [first, second] = chosen;
    const figures = make("div", undefined, "figures");
    const pair = data.pairs.find((p) => (p[0] === first && p[1] === second)
      || (p[0] === second && p[1] === first));
    if (!pair) {
      panel.replaceChildren(make("p", "These two rows were not compared: their work is not the same, or a mean is missing. See the notes above.", "muted"));
      return;
    }
    const [, , raw, low, high, p, adjusted, num] = pair;
    const sign = pair[0] === first ? 1 : -1;
    const difference = sign * raw;
    figures.append(figure("second − first, points", points(difference), difference < 0 ? "loss" : "gain"));
    if (low !== null) {
      const bounds = sign > 0 ? [low, high] : [-high, -low];
      figures.append(figure("95 % interval", `${points(bounds[0])} to ${points(bounds[1])}`));
    }
    figures.append(figure("p", probability(p)), figure("p, Holm", probability(adjusted)));
    if (num !== null) figures.append(figure("documents", String(num)));
    panel.replaceChildren(
      make("p", `${data.rows[first]} → ${data.rows[second]}: ${adjusted < 0.05 ? "a significant difference" : "no significant difference"}.`),
      figures,
    );
    showFlips(panel, first, second);
  }

  function showFlips(panel, first, second) {
    let won = 0;
    let lost = 0;
    data.tasks.forEach((task, t) => {
      if (!bits[t][first] || !bits[t][second]) return;
      for (let place = 0; place < task.n; place += 1) {
        const [a, b] = [isRight(t, first, place), isRight(t, second, place)];
        won += !a && b;
        lost += a && !b;
      }
    });
    if (!won && !lost) {
      panel.append(make("p", "No document flips that can be shown.", "muted"));
      return;
    }
    const flips = data.documents.filter((d) => bits[d.t][first] && bits[d.t][second]
      && isRight(d.t, first, d.place) !== isRight(d.t, second, d.place)
      && d.answers[first] !== null && d.answers[second] !== null);
    const missing = won + lost - flips.length;
    panel.append(make("p", `${lost} documents only the first has right, ${won} only the second.`
      + (missing ? ` ${missing} of them are not on this page, which keeps to a size.` : "")));
    const list = make("ol", undefined, "flips");
    const more = make("button", "", "more");
    more.type = "button";
    let shown = 0;
    const extend = () => {
      for (const flip of flips.slice(shown, shown + 20)) list.append(item(flip, first, second));
      shown = Math.min(flips.length, shown + 20);
      more.textContent = `Show more (${flips.length - shown} left)`;
      more.hidden = shown === flips.length;
    };
    more.addEventListener("click", extend);
    extend();
    panel.append(list, more);
  }

  function item(flip, first, second) {
    const won = isRight(flip.t, second, flip.place);
    const entry = make("li", undefined, won ? "won" : "lost");
    entry.append(make("small", `${data.tasks[flip.t].name} · document ${flip.id} · ${won ? "only the second is right" : "only the first is right"}`));
    entry.append(make("p", flip.question));
    const facts = make("dl");
    const add = (term, text) => facts.append(make("dt", term), make("dd", text));
    add("gold", flip.gold);
    for (const row of [first, second]) {
      add(data.rows[row], flip.answers[row]);
      if (flip.thoughts && flip.thoughts[row]) add("thoughts", flip.thoughts[row]);
    }
    entry.append(facts);
    return entry;
  }
})();
