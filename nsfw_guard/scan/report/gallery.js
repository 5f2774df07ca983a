// The gallery: however many items there are, only those near the window are in the document.

const curtained = data.pictures.kind === "plain"; // redacted ones have nothing left to hide
const DECIDED = { unsafe: "Unsafe", safe: "Safe" };

const glyph = (kind) =>
  drawn("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "glyph" },
    ...(kind === "video"
      ? [drawn("rect", { x: 3, y: 6, width: 12, height: 12, rx: 2 }), drawn("path", { d: "M15 11l6-4v10l-6-4z" })]
      : [drawn("rect", { x: 3, y: 4, width: 18, height: 16, rx: 2 }), drawn("circle", { cx: 9, cy: 10, r: 1.6 }), drawn("path", { d: "M4 18l6-5 4 3 3-2 3 3" })]));

// The picture of an item, or a card that says why there is none.
const pictureOf = (item, curtain) => {
  const source = pictures[item.index];
  if (source) return el("img", { src: source, alt: "", decoding: "async", draggable: "false", class: curtain && curtained ? "curtain" : null });
  const why = item.error || item.why || (data.pictures.kind === "none" ? "" : "no picture");
  return el("span", { class: "missing" }, glyph(item.kind), why && el("span", {}, visible(shortened(why, 160))));
};

const gallery = (() => {
  const grid = byId("grid");
  const GAP = 14;
  const CAPTION = 62;
  const BEYOND = 2; // rows rendered above and below the window
  let list = [];
  let active = 0;
  let columns = 1;
  let [cell, row] = [0, 0];
  const cards = new Map(); // index in the list → element

  const measure = () => {
    const width = grid.clientWidth;
    columns = Math.max(2, Math.floor((width + GAP) / (190 + GAP)));
    cell = (width - GAP * (columns - 1)) / columns;
    row = Math.round(cell * 0.75) + CAPTION + GAP;
    grid.style.height = `${Math.max(0, Math.ceil(list.length / columns) * row - GAP)}px`;
  };

  const said = (item, at) => {
    const decision = decisions.get(item.key);
    const what = { flagged: "flagged", miss: "passed", error: "not read" }[item.group];
    return `${shortened(visible(nameOf(item.path)), 80)}, ${what}${item.score === undefined ? "" : `, score ${score(item.score)}`}${item.copies > 1 ? `, ${item.copies} copies` : ""}, ${decision ? DECIDED[decision] : "no decision"}, ${at + 1} of ${list.length}`;
  };

  const card = (item, at) => {
    const decision = decisions.get(item.key);
    const still = item.kind === "image" || !item.kind;
    const node = el("div", {
        role: "option", id: `item-${item.index}`, class: `card ${item.group} ${decision || ""} ${at === active ? "active" : ""}`,
        "aria-selected": String(at === active), "aria-posinset": at + 1, "aria-setsize": list.length, "aria-label": said(item, at),
        click: () => { move(at, false); detail.open(at, true); },
      },
      el("span", { class: "frame" }, pictureOf(item, true),
        el("span", { class: "badges" },
          item.copies > 1 && el("span", {}, `×${number(item.copies)}`),
          !still && el("span", {}, item.kind)),
        decision && el("span", { class: `mark ${decision}` }, DECIDED[decision])),
      el("span", { class: "caption" },
        el("span", { class: "line" }, el("b", {}, item.group === "error" ? "not read" : score(item.score)), el("span", { class: "name" }, visible(shortened(nameOf(item.path), 90)))),
        el("span", { class: "where" }, visible(shortened(below(item.folder), 120)))));
    node.style.width = `${cell}px`;
    node.style.height = `${row - GAP}px`;
    node.style.transform = `translate(${(at % columns) * (cell + GAP)}px, ${Math.floor(at / columns) * row}px)`;
    return node;
  };

  const render = (anew = false) => {
    if (anew) {
      for (const node of cards.values()) node.remove();
      cards.clear();
    }
    const top = -grid.getBoundingClientRect().top;
    const first = Math.max(0, (Math.floor(top / row) - BEYOND) * columns);
    const last = Math.min(list.length, (Math.ceil((top + innerHeight) / row) + BEYOND) * columns);
    for (const [at, node] of cards) {
      if (at < first || at >= last) {
        node.remove();
        cards.delete(at);
      }
    }
    for (let at = first; at < last; at++) {
      if (cards.has(at)) continue;
      const node = card(list[at], at);
      cards.set(at, node);
      grid.append(node);
    }
    const current = cards.get(active);
    if (current) grid.setAttribute("aria-activedescendant", current.id);
    else grid.removeAttribute("aria-activedescendant");
  };

  const redraw = (at) => {
    const before = cards.get(at);
    if (!before) return;
    const node = card(list[at], at);
    before.replaceWith(node);
    cards.set(at, node);
  };

  const move = (to, scroll = true) => {
    if (!list.length) return;
    const before = active;
    active = Math.min(Math.max(to, 0), list.length - 1);
    if (scroll) {
      // What is covered by the toolbar is not in view.
      const covered = getComputedStyle(byId("toolbar")).position === "sticky" ? byId("toolbar").offsetHeight + 12 : 12;
      const top = grid.getBoundingClientRect().top + Math.floor(active / columns) * row;
      if (top < covered) scrollBy({ top: top - covered, behavior: "instant" });
      else if (top + row > innerHeight) scrollBy({ top: top + row - innerHeight, behavior: "instant" });
    }
    redraw(before);
    redraw(active);
    render();
  };

  const refill = () => {
    const current = list[active];
    list = matching();
    active = Math.max(0, current ? list.indexOf(current) : 0);
    measure();
    render(true);
    const of = filters.group === "all" ? items.length : groups.find(([group]) => group === filters.group)[2];
    byId("shown").textContent = list.length === of ? `${number(of)} shown` : `${number(list.length)} of ${number(of)} shown`;
    const empty = byId("empty");
    empty.hidden = list.length > 0;
    grid.hidden = !list.length;
    const nothing = filters.group === "flagged" && !counts.flagged;
    empty.replaceChildren(
      el("b", {}, !items.length ? "There is nothing to review." : nothing ? "Nothing was flagged." : "Nothing matches these filters."),
      el("p", {}, !items.length
        ? (counts.files ? "What the scan found is counted above; no picture of it was asked for." : "The scan has looked at no files yet.")
        : nothing ? "The nearest misses are what comes closest." : "Reset them to see everything again."));
  };

  // A decision, and on to the next; what has been decided stays where it is until the filters change.
  const decide = (at, decision) => {
    const item = list[at];
    if (!item || item.group === "error") return;
    decisions.set(item.key, decision);
    redraw(at);
    showProgress();
    warnIfNotKept();
  };

  const keys = {
    ArrowRight: () => move(active + 1),
    ArrowLeft: () => move(active - 1),
    ArrowDown: () => move(active + columns < list.length ? active + columns : Math.max(active, list.length - 1)),
    ArrowUp: () => move(active - columns >= 0 ? active - columns : active),
    PageDown: () => move(active + columns * Math.max(1, Math.floor(innerHeight / row) - 1)),
    PageUp: () => move(active - columns * Math.max(1, Math.floor(innerHeight / row) - 1)),
    Home: () => move(0),
    End: () => move(list.length - 1),
    Enter: () => detail.open(active, true),
    " ": () => detail.open(active, true),
    y: () => { decide(active, "unsafe"); move(active + 1); },
    n: () => { decide(active, "safe"); move(active + 1); },
    u: () => { decide(active, ""); move(active + 1); },
  };
  const wire = () => {
    grid.addEventListener("keydown", (event) => {
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[key] || !list.length) return;
      event.preventDefault();
      keys[key]();
    });
    // A browser scrolls to the middle of what gets the focus, which here is far from the current picture.
    grid.addEventListener("focus", () => {
      if (grid.matches(":focus-visible")) requestAnimationFrame(() => move(active));
    });
    let due = false;
    const soon = () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => { due = false; render(); });
    };
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    new ResizeObserver(() => { measure(); render(true); }).observe(grid);
  };

  return { wire, refill, move, decide, redraw: () => render(true), at: (index) => list[index], get size() { return list.length; } };
})();

const showProgress = () => {
  const [hits, false_alarms, missed, right] = [["flagged", "unsafe"], ["flagged", "safe"], ["miss", "unsafe"], ["miss", "safe"]].map((pair) => decisions.count(...pair));
  const reviewed = hits + false_alarms + missed + right;
  const parts = [];
  if (hits + false_alarms) parts.push(`${number(hits)} of ${number(hits + false_alarms)} flagged are unsafe (${percent(hits, hits + false_alarms)})`);
  if (missed + right) parts.push(`${number(missed)} of ${number(missed + right)} misses are unsafe`);
  byId("progress").textContent = reviewed ? `${number(reviewed)} reviewed: ${parts.join(", ")}` : "None reviewed yet";
  byId("export").disabled = !decisions.total;
};
