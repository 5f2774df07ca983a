// Elements and text. What comes from a scan is only ever set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const byId = (id) => document.getElementById(id);

const build = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
};
const el = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
const drawn = (name, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const number = (value) => value.toLocaleString("en");
const plural = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

const percent = (part, whole) => {
  if (!whole || !part) return "0 %";
  const share = (100 * part) / whole;
  // Rounding must make neither nothing of something nor everything of nearly everything.
  if (share < 0.01) return "<0.01 %";
  if (part < whole && share >= 99) return `${(Math.floor(10 * share) / 10).toFixed(1)} %`;
  return `${share.toFixed(share >= 10 ? 0 : share >= 0.1 ? 1 : 2)} %`;
};

const size = (bytes) => {
  for (const [unit, by] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= by) return `${(bytes / by).toFixed(bytes >= 10 * by ? 0 : 1)} ${unit}`;
  }
  return plural(bytes, "byte", "bytes");
};

const duration = (seconds) => {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
};

const score = (value, digits = 3) => {
  if (value === undefined || value === null) return "none";
  const text = value.toFixed(digits);
  // Rounding must not make a near miss of 0.9996 a certainty.
  if (text === (1).toFixed(digits) && value < 1) return `>${(1 - 10 ** -digits).toFixed(digits)}`;
  return text === (0).toFixed(digits) && value > 0 ? `<${(10 ** -digits).toFixed(digits)}` : text;
};

const day = (text) => {
  const at = new Date(text);
  return isNaN(at) ? text : at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
};

// Characters that could make a name look like another are shown as what they are.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]/gu;
const visible = (text) =>
  text.replace(HIDDEN, (mark) => {
    const code = mark.codePointAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
const shortened = (text, most = 140) =>
  text.length > most ? `${text.slice(0, most / 2)} … ${text.slice(-most / 2)}` : text;

const nameOf = (path) => {
  const inner = path.split("::")[0];
  return inner.split(/^[A-Za-z]:\\|^\\\\/.test(inner) ? /[/\\]/ : "/").pop() || path;
};

// Folders are told apart by what comes after the root that all of them share.
const below = (folder) => {
  const root = data.folders.root;
  if (!root || root === "." || data.folders.total < 2) return folder;
  if (folder === root) return "./";
  return folder.startsWith(root === "/" ? root : `${root}/`) ? folder.slice(root === "/" ? 1 : root.length + 1) : folder;
};

const bar = (share, kind, label) => {
  const filled = el("i", { class: kind });
  filled.style.width = `${Math.max(share > 0 ? 1 : 0, 100 * share)}%`;
  return el("span", { class: "bar", "aria-hidden": label ? null : "true", role: label ? "img" : null, "aria-label": label }, filled);
};
