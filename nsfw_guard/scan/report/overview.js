// The numbers: counts, the histogram of scores, labels, folders, failures, what was slow.

const { counts, scan } = data;
const checked = counts.files - counts.failed;

const drawStats = () => {
  const stat = (value, name, more, kind = "") =>
    el("div", { class: `stat ${kind}` }, el("b", {}, value), el("span", {}, name), more && el("small", {}, more));
  const took = scan.seconds === null ? "" : `in ${duration(scan.seconds)}`;
  byId("stats").append(
    stat(number(counts.files), counts.files === 1 ? "file looked at" : "files looked at", [counts.bytes ? size(counts.bytes) : "", took].filter(Boolean).join(" ")),
    stat(number(counts.flagged), "flagged", checked ? `${counts.rate} of what could be read` : "", counts.flagged ? "bad" : checked ? "good" : ""),
    stat(number(counts.passed), "passed", checked ? `${percent(counts.passed, checked)}` : "", ""),
    stat(number(counts.failed), "could not be read", counts.failed ? "not checked" : counts.files ? "every file was checked" : "", counts.failed ? "warn" : ""),
  );
  const { kind, count } = data.pictures;
  const notice = byId("notice");
  const what = plural(count, "picture", "pictures");
  notice.classList.add(kind === "plain" && count ? "strong" : "calm");
  notice.append(
    ...(kind === "none"
      ? [el("b", {}, "No pictures in this file."), " It names files, and shows none of them."]
      : kind === "redacted"
        ? [el("b", {}, `${what} in this file, blurred for good.`), " The originals cannot be made of them again."]
        : count
          ? [el("b", {}, `${what} in this file, reduced but not redacted.`), " The blur on screen is only a curtain. Whoever gets this file gets the pictures."]
          : [el("b", {}, "No pictures in this file."), data.items.some((item) => item.group !== "error") ? " None of what would be shown could be opened." : " There is nothing to show."]),
  );
  if (!scan.finished) notice.before(el("p", { class: "notice warn" }, el("b", {}, "The scan has not finished."), " These are the counts so far; run the same scan again to go on."));
};

const drawHistogram = () => {
  const totals = data.bins.passed.map((passed, index) => passed + data.bins.flagged[index]);
  const most = Math.max(...totals);
  const figure = byId("histogram");
  const heading = el("h2", {}, "Scores");
  if (!most) {
    figure.append(heading, el("p", { class: "blank" }, counts.files ? "No file has a score." : "The scan holds no files yet."));
    return;
  }
  const [width, height, left, bottom, top] = [760, 340, 52, 28, 26];
  const across = (value) => left + value * (width - left - 8);
  const described =
    `${number(totals.reduce((a, b) => a + b))} scores from 0 to 1 in ${totals.length} bars. ` +
    (scan.threshold === null ? "" : `The threshold is ${scan.threshold}. `) + `${number(counts.flagged)} files are flagged.`;
  const canvas = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": described });

  const draw = (logarithmic) => {
    const up = (count) => (logarithmic ? Math.log10(count + 1) / Math.log10(most + 1) : count / most) * (height - top - bottom);
    const floor = height - bottom;
    const marks = logarithmic
      ? [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].filter((count) => count <= most)
      : [...new Set([Math.round(most / 2), most])];
    canvas.replaceChildren(
      ...marks.map((count) =>
        drawn("g", { class: "height" },
          drawn("line", { x1: left, x2: width - 8, y1: floor - up(count), y2: floor - up(count) }),
          drawn("text", { x: left - 8, y: floor - up(count) + 4, "text-anchor": "end" }, number(count)))),
      ...totals.flatMap((total, index) => {
        if (!total) return [];
        const [from, to] = [index / totals.length, (index + 1) / totals.length];
        const flagged = data.bins.flagged[index];
        const column = (count, kind) =>
          drawn("rect", { class: kind, x: across(from) + 1, width: across(to) - across(from) - 2, y: floor - Math.max(2, up(count)), height: Math.max(2, up(count)), rx: 1.5 });
        return drawn("g", { class: "column", click: () => review({ group: "all", low: from, high: to }) },
          drawn("title", {}, `${from.toFixed(2)} to ${to.toFixed(2)}: ${plural(total, "file", "files")}, ${number(flagged)} flagged. Click to see those that are on this page.`),
          drawn("rect", { class: "reach", x: across(from), width: across(to) - across(from), y: top, height: floor - top }),
          flagged < total ? column(total, "passed") : null,
          flagged ? column(flagged, "flagged") : null);
      }),
      drawn("line", { class: "axis", x1: left, x2: width - 8, y1: floor, y2: floor }),
      ...[0, 0.25, 0.5, 0.75, 1].map((value) => drawn("text", { class: "tick", x: across(value), y: height - 8, "text-anchor": value === 0 ? "start" : value === 1 ? "end" : "middle" }, String(value))),
    );
    if (scan.threshold !== null) {
      const x = across(scan.threshold);
      const end = scan.threshold > 0.7;
      canvas.append(
        drawn("line", { class: "threshold", x1: x, x2: x, y1: 8, y2: floor }),
        drawn("text", { class: "threshold", x: x + (end ? -6 : 6), y: 18, "text-anchor": end ? "end" : "start" }, `threshold ${scan.threshold}`),
      );
    }
  };
  const toggle = el("input", { type: "checkbox", id: "logarithmic", change: () => draw(toggle.checked) });
  toggle.checked = most >= 200; // or the few that matter are no pixel high
  draw(toggle.checked);

  const rows = totals.map((total, index) => [index, total, data.bins.flagged[index]]).filter(([, total]) => total);
  const level = scan.policy.level;
  const without = data.bins.without;
  figure.append(
    el("div", { class: "heading" }, heading, el("label", { class: "switch" }, toggle, "Logarithmic")),
    canvas,
    el("figcaption", {},
      el("span", { class: "key flagged" }, "flagged"), el("span", { class: "key passed" }, "passed"),
      el("span", {}, `Files per score${level ? `: how likely the model holds them for ${level} or worse` : ""}.`,
        without ? ` ${plural(without, "file was", "files were")} flagged without a score.` : "")),
    el("details", {}, el("summary", {}, "As a table"),
      el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ...["Score", "Files", "Flagged"].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, ...rows.map(([index, total, flagged]) =>
          el("tr", {}, el("th", { scope: "row" }, `${(index / totals.length).toFixed(2)} to ${((index + 1) / totals.length).toFixed(2)}`), el("td", {}, number(total)), el("td", {}, number(flagged)))))))),
  );
};

const drawAbout = () => {
  const facts = [];
  const fact = (name, ...value) => facts.push(el("div", {}, el("dt", {}, name), el("dd", {}, ...value)));
  if (scan.sources.length) fact(scan.sources.length === 1 ? "Source" : "Sources", ...scan.sources.slice(0, 5).map((source) => el("span", { class: "path" }, visible(source))), scan.sources.length > 5 ? `and ${number(scan.sources.length - 5)} more` : "");
  if (scan.model) fact("Model", el("span", { class: "path" }, visible(scan.model)));
  if (scan.threshold !== null) {
    const own = Object.entries(scan.policy.per_label || {}).map(([label, least]) => `, or ${label} ≥ ${least}`).join("");
    fact("Flagged when", `${scan.policy.level ? `${scan.policy.level} or worse` : "the score"} ≥ ${scan.threshold}${own}`);
  }
  if (scan.created) fact("Scanned", el("time", { datetime: scan.created }, day(scan.created)));
  if (scan.rate) fact("Speed", `${number(Math.round(scan.rate * 10) / 10)} files a second${scan.limit ? `; the ${scan.limit} was the limit` : ""}`);
  const kinds = Object.entries(data.kinds);
  if (kinds.length > 1) fact("Kinds", kinds.map(([kind, count]) => `${number(count)} ${visible(kind)}${count === 1 ? "" : "s"}`).join(", "));
  if (scan.duplicates) fact("Duplicates", `${number(scan.duplicates)}, scored once`);
  for (const [why, count] of Object.entries(scan.skipped)) fact("Skipped", `${number(count)}: ${visible(why)}`);
  const reasons = Object.entries(data.reasons);
  if (reasons.some(([reason]) => reason !== "score")) fact("Reasons", reasons.map(([reason, count]) => `${visible(reason)} ${number(count)}`).join(", "));

  const most = Math.max(1, ...data.labels.map(([, total]) => total));
  byId("about").append(
    ...(data.labels.length
      ? [el("h2", {}, "Most likely label"),
         el("table", { class: "labels" }, el("tbody", {}, ...data.labels.map(([label, total, flagged]) =>
           el("tr", { title: `${number(flagged)} of them flagged` },
             el("th", { scope: "row" }, visible(label)),
             el("td", { class: "wide" }, bar(total / most, flagged * 2 > total ? "flagged" : "passed")),
             el("td", {}, number(total))))))]
      : []),
    el("h2", {}, "This scan"),
    el("dl", { class: "facts" }, ...(facts.length ? facts : [el("div", {}, el("dd", {}, "The scan says nothing about itself."))])),
  );
  byId("origin").textContent = `Made by nsfw-guard ${data.version}, ${day(data.made)}. This page works without a network and sends nothing anywhere.`;
};

const drawFolders = () => {
  const { rows, total, depth } = data.folders;
  const FIRST = 10;
  const section = byId("folders");
  const rate = ([, files, flagged, failed]) => (files > failed ? flagged / (files - failed) : 0);
  const columns = [
    ["Folder", (a, b) => (a[0] < b[0] ? -1 : 1)],
    ["Files", (a, b) => b[1] - a[1]],
    ["Flagged", (a, b) => b[2] - a[2] || rate(b) - rate(a)],
    ["Rate", (a, b) => rate(b) - rate(a) || b[2] - a[2]],
    ["Not read", (a, b) => b[3] - a[3]],
  ];
  let [sorted, all] = [2, false];
  const highest = Math.max(0.0001, ...rows.map(rate));
  const body = el("tbody");
  const heads = columns.map(([name], index) =>
    el("th", { scope: "col" }, el("button", { type: "button", click: () => { sorted = index; draw(); } }, name)));
  const more = el("button", { type: "button", click: () => { all = !all; draw(); } });
  const draw = () => {
    heads.forEach((head, index) => (index === sorted ? head.setAttribute("aria-sort", index ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    const ordered = [...rows].sort(columns[sorted][1]).slice(0, all ? rows.length : FIRST);
    body.replaceChildren(...ordered.map((row) => {
      const [folder, files, flagged, failed] = row;
      return el("tr", {},
        el("th", { scope: "row" }, el("button", { type: "button", class: "path link", title: visible(folder), click: () => review({ group: "all", folder }) }, visible(below(folder)))),
        el("td", {}, number(files)), el("td", { class: flagged ? "bad" : "none" }, number(flagged)),
        el("td", { class: "wide" }, bar(rate(row) / highest, "flagged"), el("span", {}, percent(flagged, files - failed))),
        el("td", { class: failed ? "warn" : "none" }, number(failed)));
    }));
    more.textContent = all ? `Show the first ${FIRST}` : `Show all ${number(rows.length)}`;
  };
  const notes = [];
  if (total > rows.length) notes.push(`${number(rows.length)} of ${number(total)} folders: most flagged, highest rates among 20 files or more, most files.`);
  if (depth !== null) notes.push("Folders that lie deeper are counted in the one above them.");
  if (total > 1 && data.folders.root !== "." && data.folders.root !== "/") notes.push(`All in ${visible(data.folders.root)}.`);
  section.append(el("div", { class: "heading" }, el("h2", { id: "folders-title" }, "Folders"), el("p", { class: "quiet" }, notes.join(" "))));
  if (!rows.length) {
    section.append(el("p", { class: "blank" }, "There are no files to tell by folder."));
    return;
  }
  draw();
  section.append(el("div", { class: "scroll" }, el("table", { class: "folders" }, el("thead", {}, el("tr", {}, ...heads)), body)));
  if (rows.length > FIRST) section.append(more);
};

const drawProblems = () => {
  byId("failed").append(el("h2", {}, "Could not be read"));
  if (!counts.failed) byId("failed").append(el("p", { class: "blank" }, counts.files ? "Every file could be read." : "Nothing was looked at."));
  else byId("failed").append(
    el("p", { class: "quiet" }, `${plural(counts.failed, "file was", "files were")} not checked. What is in ${counts.failed === 1 ? "it" : "them"} is not known.`),
    el("ul", { class: "failures" }, ...data.failures.map(([message, files, paths]) =>
      el("li", {}, el("details", {},
        el("summary", {}, el("b", {}, number(files)), el("span", {}, visible(message))),
        el("ul", {}, ...paths.map((path) => el("li", { class: "path" }, visible(shortened(path, 400))))),
        files > paths.length ? el("p", { class: "quiet" }, `and ${number(files - paths.length)} more`) : null)))),
    el("button", { type: "button", click: () => review({ group: "error" }) }, "See them in the review"),
  );
  byId("slowest").append(el("h2", {}, "Slowest to decode"));
  if (!data.slowest.length) byId("slowest").append(el("p", { class: "blank" }, "Nothing was decoded."));
  else byId("slowest").append(el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...["File", "Time", "Size"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, ...data.slowest.slice(0, 10).map(([path, taken, bytes]) =>
      el("tr", {}, el("th", { scope: "row", class: "path", title: visible(shortened(path, 400)) }, visible(shortened(nameOf(path), 80))),
        el("td", {}, taken >= 1000 ? `${(taken / 1000).toFixed(1)} s` : `${taken.toFixed(0)} ms`), el("td", {}, bytes === null ? "" : size(bytes))))))));
};
