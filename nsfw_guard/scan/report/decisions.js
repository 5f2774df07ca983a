// What the reviewer decided: kept in the browser under the scan's identity, taken out and in as CSV.

const decisions = (() => {
  const place = `nsfw-guard-report:${data.id}`;
  const items = new Map(data.items.filter((item) => item.group !== "error").map((item) => [item.key, item]));
  let made = new Map(); // key → {decision, at, record}; record: what a file said of a content that is not shown here
  let kept = true;

  const load = () => {
    try {
      const stored = Object.entries(JSON.parse(localStorage.getItem(place)) ?? {});
      made = new Map(stored.filter(([, entry]) => ["unsafe", "safe"].includes(entry?.decision)));
    } catch (error) {
      kept = error instanceof SyntaxError; // damaged: begin anew; blocked: in memory only
    }
  };
  const save = () => {
    if (!kept) return;
    try {
      localStorage.setItem(place, JSON.stringify(Object.fromEntries(made)));
    } catch {
      kept = false;
    }
  };
  load();

  const set = (key, decision) => {
    if (decision) made.set(key, { decision, at: new Date().toISOString() });
    else made.delete(key);
    save();
  };

  // CSV. A ' before what a spreadsheet would run, or before a ' itself; reading takes exactly one away.
  const COLUMNS = ["path", "sha256", "score", "flagged", "decision", "model", "threshold", "reviewed_at"];
  const cell = (value) => {
    let text = value === undefined || value === null ? "" : String(value);
    if (/^[=+\-@'\s\uff0b\uff0d\uff1d\uff20]/.test(text)) text = `'${text}`;
    return /[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const record = (key, { decision, at, record }) => {
    const item = items.get(key);
    if (!item) return { ...record, decision, reviewed_at: at };
    return {
      path: item.path,
      sha256: item.sha256,
      score: item.score,
      flagged: item.group === "flagged",
      decision,
      model: item.model || data.scan.model,
      threshold: item.threshold ?? data.scan.threshold,
      reviewed_at: at,
    };
  };
  const toCsv = () => {
    const rows = [...made].map(([key, entry]) => record(key, entry));
    return [COLUMNS, ...rows.map((row) => COLUMNS.map((name) => row[name]))]
      .map((cells) => `${cells.map(cell).join(",")}\r\n`)
      .join("");
  };

  const parse = (text) => {
    const rows = [[""]];
    let quoted = false;
    for (let at = 0; at < text.length; at++) {
      const mark = text[at];
      const row = rows[rows.length - 1];
      if (quoted) {
        if (mark !== '"') row[row.length - 1] += mark;
        else if (text[at + 1] === '"') row[row.length - 1] += text[++at];
        else quoted = false;
      } else if (mark === '"' && row[row.length - 1] === "") quoted = true;
      else if (mark === ",") row.push("");
      else if (mark === "\n") rows.push([""]);
      else if (mark !== "\r") row[row.length - 1] += mark;
    }
    if (quoted) throw new Error("It ends within a quoted cell.");
    return rows.filter((row) => row.length > 1 || row[0] !== "");
  };

  // All of a file or nothing of it: a line that makes no sense could be anybody's decision.
  const fromCsv = (text) => {
    const [names = [], ...lines] = parse(text.replace(/^\ufeff/, ""));
    const missing = COLUMNS.find((name) => !names.includes(name));
    if (missing) throw new Error(`It has no column "${missing}"; expected a file that this page, or one like it, exported.`);
    const rows = lines.map((cells, index) => {
      const where = `Line ${index + 2}`;
      if (cells.length !== names.length) throw new Error(`${where} has ${cells.length} cells; expected ${names.length}.`);
      const row = Object.fromEntries(names.map((name, at) => [name, cells[at].replace(/^'/, "")]));
      if (!["unsafe", "safe"].includes(row.decision)) throw new Error(`${where}: the decision is "${row.decision}"; expected unsafe or safe.`);
      if (!row.sha256 && !row.path) throw new Error(`${where} has neither a path nor a sha256.`);
      return row;
    });
    const counts = { taken: 0, elsewhere: 0, older: 0 };
    for (const row of rows) {
      const key = row.sha256 || `path:${row.path}`;
      const before = made.get(key);
      if (before && before.at >= row.reviewed_at) {
        counts.older++;
        continue;
      }
      const entry = { decision: row.decision, at: row.reviewed_at };
      counts[items.has(key) ? "taken" : "elsewhere"]++;
      made.set(key, items.has(key) ? entry : { ...entry, record: row });
    }
    save();
    return counts;
  };

  return {
    get: (key) => made.get(key)?.decision,
    set,
    load,
    place,
    toCsv,
    fromCsv,
    get kept() {
      return kept;
    },
    get total() {
      return made.size;
    },
    count: (group, decision) =>
      data.items.filter((item) => item.group === group && made.get(item.key)?.decision === decision).length,
  };
})();
