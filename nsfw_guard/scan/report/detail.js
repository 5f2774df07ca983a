// One picture and everything that is known of it.

const detail = (() => {
  const dialog = byId("detail");
  let at = 0;
  let revealed = false;
  let always = false; // show what is opened without asking; ends with the page

  const link = (path) => {
    if (!path.isWellFormed()) return null;
    if (/^https?:\/\//i.test(path)) return path;
    if (path.startsWith("/")) return `file://${path.split("/").map(encodeURIComponent).join("/")}`;
    if (/^[A-Za-z]:\\/.test(path)) return `file:///${path.split("\\").map(encodeURIComponent).join("/").replace("%3A", ":")}`;
    return null;
  };

  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(dialog.querySelector(".path"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected: press Ctrl C";
    }
  };

  const facts = (item) => {
    const threshold = item.threshold ?? scan.threshold;
    const shape = item.width && item.height ? `${number(item.width)} × ${number(item.height)}` : "";
    const frame = item.kind && item.kind !== "image"
      ? `${item.kind}, ${plural(item.frames ?? 1, "frame", "frames")} looked at; number ${number((item.frame ?? 0) + 1)} decided` : "";
    const why = { score: "the score reaches the threshold", label: "one label reaches its own threshold", batch: "another of its batch was flagged", non_finite: "its numbers are not finite", too_long: "too long to be seen whole" };
    return [
      ["Verdict", item.group === "error" ? "not checked" : item.group === "flagged" ? `flagged: ${why[item.reason] || visible(item.reason || "")}` : "passed"],
      ["Why not", item.error && visible(item.error)],
      ["Level", item.level],
      ["Threshold", item.group === "error" ? "" : threshold === null || threshold === undefined ? "" : String(threshold)],
      ["Picture", [shape, item.bytes !== undefined ? size(item.bytes) : ""].filter(Boolean).join(", ")],
      ["Frames", frame],
      ["Views", item.views > 1 ? `${item.views} parts of it were looked at` : ""],
      ["SHA-256", item.sha256 && el("code", {}, item.sha256)],
      ["Copies", item.copies > 1 && el("details", {}, el("summary", {}, `${number(item.copies)} files have this content`),
        el("ul", {}, ...(item.paths || []).map((path) => el("li", { class: "path" }, visible(path))),
          item.copies > (item.paths || []).length + 1 && el("li", {}, `and ${number(item.copies - (item.paths || []).length - 1)} more`)))],
    ].filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  };

  const draw = () => {
    const item = gallery.at(at);
    const decision = decisions.get(item.key);
    const hidden = curtained && !revealed && !!pictures[item.index];
    const where = link(item.path);
    const threshold = item.threshold ?? scan.threshold;
    const decide = (value, name, meaning, key) => el("button", {
      type: "button", class: `decide ${value || "none"}`, "aria-pressed": String((decision || "") === value), "aria-keyshortcuts": key,
      click: () => { mark(value); dialog.focus(); } }, el("b", {}, name), el("small", {}, meaning), el("kbd", { "aria-hidden": "true" }, key));
    const [wrong, right] = item.group === "flagged" ? ["rightly flagged", "wrongly flagged"] : ["missed", "rightly passed"];
    const copied = el("button", { type: "button", click: () => copy(item.path, copied) }, "Copy path");
    const folderShown = el("span", { class: "quiet path" }, visible(item.folder));
    dialog.replaceChildren(
      el("div", { class: "stage" },
        el("figure", {}, pictureOf(item, hidden),
          hidden && el("button", { type: "button", class: "reveal", click: () => toggle() }, "Show the picture", el("kbd", { "aria-hidden": "true" }, "Space"))),
        el("div", { class: "under" },
          el("button", { type: "button", "aria-label": "Previous", disabled: at === 0, click: () => go(at - 1) }, "←"),
          el("span", { role: "status" }, `${number(at + 1)} of ${number(gallery.size)}`),
          el("button", { type: "button", "aria-label": "Next", disabled: at === gallery.size - 1, click: () => go(at + 1) }, "→"),
          curtained && el("label", { class: "switch" },
            el("input", { type: "checkbox", checked: always, id: "always", change: () => setAlways(!always) }), "Show without asking", el("kbd", { "aria-hidden": "true" }, "r")))),
      el("div", { class: "facts-of" },
        el("div", { class: "heading" },
          el("h2", { id: "detail-title" }, visible(shortened(nameOf(item.path), 120))),
          el("button", { type: "button", class: "close", "aria-label": "Close", click: () => dialog.close() }, "×")),
        folderShown,
        item.score !== undefined && el("div", { class: "score" }, el("b", { class: item.group }, score(item.score)),
          el("div", {}, scale(item.score, threshold, item.group), el("small", {}, threshold === null || threshold === undefined ? "score" : `score; flagged from ${threshold}`))),
        item.group !== "error" && el("div", { class: "decisions", role: "group", "aria-label": "Your decision" },
          decide("unsafe", "Unsafe", wrong, "y"), decide("safe", "Safe", right, "n"), decide("", "Undecided", "no decision", "u")),
        item.ranked.length ? el("table", { class: "labels" }, el("caption", {}, "Labels"), el("tbody", {}, ...item.ranked.map(([label, p]) =>
          el("tr", {}, el("th", { scope: "row" }, visible(label)), el("td", { class: "wide" }, bar(p, "passed")), el("td", {}, score(p)))))) : null,
        el("dl", { class: "facts" }, ...facts(item)),
        el("div", { class: "where" }, el("code", { class: "path" }, visible(item.path)),
          el("span", { class: "actions" }, copied, where && el("a", { href: where, target: "_blank", rel: "noopener noreferrer" }, "Open the original")))));
  };

  const scale = (value, threshold, kind) => {
    const track = bar(value, kind === "flagged" ? "flagged" : "passed");
    if (threshold !== null && threshold !== undefined) {
      const mark = el("u");
      mark.style.left = `${100 * threshold}%`;
      track.append(mark);
    }
    return track;
  };

  const go = (to, show = always) => {
    if (to < 0 || to >= gallery.size) return;
    at = to;
    revealed = show;
    draw();
    gallery.move(at);
    dialog.scrollTop = 0;
    dialog.focus();
  };
  const mark = (decision) => {
    gallery.decide(at, decision);
    if (at + 1 < gallery.size) go(at + 1);
    else draw();
  };
  const toggle = () => { revealed = !revealed; draw(); dialog.focus(); };
  const setAlways = (value) => { always = value; revealed = revealed || value; draw(); dialog.focus(); };

  const keys = {
    ArrowRight: () => go(at + 1),
    ArrowDown: () => go(at + 1),
    ArrowLeft: () => go(at - 1),
    ArrowUp: () => go(at - 1),
    Home: () => go(0),
    End: () => go(gallery.size - 1),
    Enter: toggle,
    " ": toggle,
    y: () => mark("unsafe"),
    n: () => mark("safe"),
    u: () => mark(""),
    r: () => setAlways(!always),
  };
  const wire = () => {
    dialog.tabIndex = -1;
    dialog.addEventListener("keydown", (event) => {
      const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
      const own = event.target.closest("button, a, summary, input") && ["Enter", " "].includes(key);
      if (own || event.ctrlKey || event.metaKey || event.altKey || !keys[key]) return;
      event.preventDefault();
      keys[key]();
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => {
      if (dialog.open) return; // again: this event comes a frame after the closing
      revealed = false;
      dialog.replaceChildren(); // and with it the picture
    });
  };
  const open = (index, show) => {
    if (!gallery.at(index)) return;
    byId("grid").focus({ preventScroll: true }); // what has the focus now gets it back when the dialog closes
    dialog.showModal();
    go(index, show);
  };
  return { open, wire, redraw: () => dialog.open && draw() };
})();
