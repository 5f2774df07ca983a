// Draws the verdict on the nodes: the text that they put out, as ui.text, with each run, from the cache too.
import { app } from "../../../scripts/app.js";

const WIDGET = "verdict";
const STORE = "nsfw_guard.verdicts";
const MOST_LINES = 12;
// In pixels.
const LINE = 16;
const CHARACTER = 6.7;
const PADDING = 6;
const MARGIN = 10; // that the frontend leaves around an element
const RED = "#f2484d";
const GREEN = "#30a46c";

// Of this browser tab, by node; kept over a reload of the page, and never in a workflow's file.
const verdicts = stored();

app.registerExtension({
  name: "nsfw_guard.verdict",

  setup() {
    window.addEventListener("pagehide", () => sessionStorage.setItem(STORE, JSON.stringify([...verdicts])));
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("NSFWG_")) return;
    after(nodeType.prototype, "onExecuted", function (output) {
      if (!output?.text) return;
      verdicts.set(keyOf(this), output.text.join("\n"));
      draw(this, verdicts.get(keyOf(this)), { current: true });
    });
    // It is pale until this run has said the same again.
    after(nodeType.prototype, "onExecutionStart", function () {
      fade(this.widgets?.find((widget) => widget.name === WIDGET));
    });
  },

  // A reload, another tab, an undo: the nodes are made anew.
  loadedGraphNode(node) {
    const text = node.type?.startsWith("NSFWG_") && verdicts.get(keyOf(node));
    if (text) draw(node, text, { current: false });
  },
});

function draw(node, text, { current }) {
  const widget = node.widgets?.find((widget) => widget.name === WIDGET) ?? add(node);
  widget.value = text;
  widget.element.style.opacity = 1;
  if (!current) fade(widget);
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

function add(node) {
  const element = document.createElement("div");
  element.className = "nsfw-guard-verdict";
  // The mouse goes through, to the node.
  element.style.cssText =
    `box-sizing: border-box; padding: ${PADDING}px 8px; overflow: hidden; pointer-events: none; border-radius: 6px; ` +
    "min-height: max-content; max-height: max-content; white-space: pre-wrap; " +
    `font: 11px/${LINE}px ui-monospace, Consolas, "DejaVu Sans Mono", monospace; ` +
    "color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); border-left: 3px solid transparent;";
  let value = "";
  const widget = node.addDOMWidget(WIDGET, "nsfw_guard_verdict", element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => value,
    setValue: (text) => {
      value = String(text ?? "");
      element.replaceChildren(...shortened(value.split("\n")).map(lineOf));
      element.style.borderLeftColor = value.includes("FLAGGED") ? RED : GREEN;
    },
    getMinHeight: () => heightOf(element, node.size[0]),
  });
  widget.serialize = false;
  return widget;
}

// What it will need, before it is in the page and can be measured.
function heightOf(element, width) {
  const columns = Math.floor((width - 4 * MARGIN) / CHARACTER);
  const rows = [...element.children].map((line) => Math.ceil(line.textContent.length / columns) || 1);
  return rows.reduce((sum, count) => sum + count, 0) * LINE + 2 * (PADDING + MARGIN);
}

function lineOf(text) {
  const line = document.createElement("div");
  line.textContent = text;
  if (text.includes("FLAGGED")) {
    line.style.cssText = `font-weight: 600; color: color-mix(in srgb, ${RED} 75%, var(--input-text, #ddd));`;
  }
  return line;
}

function shortened(lines) {
  if (lines.length <= MOST_LINES) return lines;
  return [...lines.slice(0, MOST_LINES - 1), `... and ${lines.length - MOST_LINES + 1} more lines in the report`];
}

function fade(widget) {
  if (widget) widget.element.style.opacity = 0.5;
}

function keyOf(node) {
  return `${node.graph.id}/${node.id}`;
}

function after(prototype, name, then) {
  const before = prototype[name];
  prototype[name] = function (...given) {
    const result = before?.apply(this, given);
    then.apply(this, given);
    return result;
  };
}

function stored() {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]"));
  } catch {
    return new Map();
  }
}
