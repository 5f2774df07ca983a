// Which items are shown, and in which order.

const items = data.items.map((item, index) => {
  const labels = Object.entries(item.labels || {}).sort((a, b) => b[1] - a[1]);
  const paths = [item.path, ...(item.paths || [])].join("\n");
  return { ...item, index, found: `${paths}\n${visible(paths)}`.toLowerCase(), ranked: labels };
});
const groups = [
  ["flagged", "Flagged"],
  ["miss", "Nearest misses"],
  ["error", "Not read"],
  ["all", "All"],
].map(([group, name]) => [group, name, group === "all" ? items.length : items.filter((item) => item.group === group).length]);
const labelNames = [...new Set(items.flatMap((item) => Object.keys(item.labels || {})))];
const folderNames = [...new Set(items.map((item) => item.folder))].sort();

const unfiltered = () => ({
  group: (groups.find(([, , count]) => count) || groups[3])[0],
  text: "",
  low: 0,
  high: 1,
  label: "",
  least: 0.5,
  folder: "",
  decision: "",
  sort: "high",
});
let filters = unfiltered();

const orders = {
  high: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  low: (a, b) => (a.score ?? 2) - (b.score ?? 2),
  near: (a, b) => distance(a) - distance(b),
  path: (a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0),
  size: (a, b) => (b.bytes ?? -1) - (a.bytes ?? -1),
};
const distance = (item) =>
  item.score === undefined ? 2 : Math.abs(item.score - (item.threshold ?? scan.threshold ?? 0.5));

const matching = () => {
  const { group, low, high, folder, decision, least } = filters;
  const text = filters.text.toLowerCase();
  const bounded = low > 0 || high < 1;
  const [how, which] = filters.label ? [filters.label[0], labelNames[Number(filters.label.slice(1))]] : [];
  return items
    .filter((item) => {
      if (group !== "all" && item.group !== group) return false;
      if (bounded && !(item.score >= low && item.score <= high)) return false;
      if (text && !item.found.includes(text)) return false;
      if (folder && item.folder !== folder) return false;
      if (how === "t" && item.ranked[0]?.[0] !== which) return false;
      if (how === "p" && !(item.labels?.[which] >= least)) return false;
      if (!decision) return true;
      const made = decisions.get(item.key);
      return decision === "none" ? !made && item.group !== "error" : decision === "any" ? !!made : made === decision;
    })
    .sort((a, b) => orders[filters.sort](a, b) || a.index - b.index);
};

// Filter from elsewhere on the page, and go there.
const review = (wanted) => {
  filters = { ...unfiltered(), ...wanted };
  showFilters();
  gallery.refill();
  byId("review").scrollIntoView();
  byId("grid").focus({ preventScroll: true });
};

const showFilters = () => {
  for (const name of ["text", "low", "high", "label", "least", "folder", "decision", "sort"]) byId(name).value = filters[name];
  byId("low").value = String(Number(filters.low.toFixed(4)));
  byId("high").value = String(Number(filters.high.toFixed(4)));
  byId("least").hidden = !filters.label.startsWith("p");
  for (const button of byId("groups").children) button.setAttribute("aria-pressed", button.dataset.group === filters.group);
  const used = [filters.low > 0 || filters.high < 1, filters.label, filters.folder, filters.decision].filter(Boolean).length;
  byId("more").textContent = used ? `Filters (${used})` : "Filters";
};

const wireFilters = () => {
  for (const [group, name, count] of groups) {
    byId("groups").append(
      el("button", { type: "button", "data-group": group, click: () => change({ group }) }, name, el("small", {}, number(count))));
  }
  byId("label").append(
    el("option", { value: "" }, "Any"),
    el("optgroup", { label: "Most likely" }, ...labelNames.map((label, at) => el("option", { value: `t${at}` }, visible(label)))),
    el("optgroup", { label: "Probability at least" }, ...labelNames.map((label, at) => el("option", { value: `p${at}` }, `p(${visible(label)}) ≥`))),
  );
  byId("folder").append(
    el("option", { value: "" }, "Any"),
    ...folderNames.map((folder) => el("option", { value: folder }, visible(shortened(below(folder), 60)))),
  );
  const change = (some) => {
    filters = { ...filters, ...some };
    showFilters();
    gallery.refill();
  };
  // A half-typed number is no bound yet.
  const bound = (name, otherwise) => {
    byId(name).addEventListener("input", () => {
      const value = byId(name).value === "" ? otherwise : Number(byId(name).value);
      if (!(value >= 0 && value <= 1)) return;
      filters[name] = value;
      gallery.refill();
    });
    byId(name).addEventListener("change", () => change({}));
  };
  bound("low", 0);
  bound("high", 1);
  bound("least", 0);
  byId("text").addEventListener("input", () => change({ text: byId("text").value }));
  for (const name of ["label", "folder", "decision", "sort"]) byId(name).addEventListener("change", () => change({ [name]: byId(name).value }));
  byId("reset").addEventListener("click", () => change({ ...unfiltered(), group: filters.group }));
  byId("more").addEventListener("click", () => {
    const open = byId("toolbar").classList.toggle("open");
    byId("more").setAttribute("aria-expanded", open);
  });
  showFilters();
};
