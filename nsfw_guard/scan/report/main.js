// Everything put in its place.

const say = (text, kind = "calm") => {
  byId("message").hidden = !text;
  byId("message").className = `notice ${kind}`;
  byId("message").textContent = text;
};
const warnIfNotKept = () => {
  if (!decisions.kept) say("This browser does not let the page keep decisions: export them before you close it.", "warn");
};

const describeReview = () => {
  const { flagged, miss } = Object.fromEntries(groups.map(([group, , count]) => [group, count]));
  const covered = items.filter((item) => item.group === "flagged").reduce((sum, item) => sum + item.copies, 0);
  const parts = [];
  if (!counts.files) parts.push("The scan holds no files.");
  else if (!counts.flagged) parts.push(miss ? `Nothing was flagged. These ${number(miss)} come nearest to the threshold.` : "Nothing was flagged.");
  else if (covered < counts.flagged) parts.push(`The ${number(flagged)} highest scores, of ${number(counts.flagged)} flagged files.`);
  else parts.push(flagged < counts.flagged ? `All ${number(counts.flagged)} flagged files; copies are shown once.` : "Everything that was flagged.");
  if (counts.flagged && miss) parts.push(`And the ${number(miss)} nearest misses.`);
  if (curtained && data.pictures.count) parts.push("Pictures are blurred until you open them.");
  byId("review-note").textContent = parts.join(" ");
};

const wireDecisions = () => {
  byId("export").addEventListener("click", () => {
    const place = URL.createObjectURL(new Blob(["\ufeff", decisions.toCsv()], { type: "text/csv;charset=utf-8" }));
    el("a", { href: place, download: `decisions-${data.id}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(place), 60_000);
  });
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async () => {
    const [file] = byId("import-file").files;
    byId("import-file").value = "";
    if (!file) return;
    try {
      const { taken, elsewhere, older } = decisions.fromCsv(await file.text());
      const more = [
        elsewhere && `${plural(elsewhere, "is", "are")} about pictures that are not shown here; the next export has them too`,
        older && `${plural(older, "was", "were")} not newer than what is decided here`,
      ].filter(Boolean);
      say(`${plural(taken, "decision", "decisions")} taken over${more.length ? `; ${more.join("; ")}` : ""}.`);
    } catch (error) {
      say(`Nothing was imported. ${visible(error.message)}`, "warn");
    }
    gallery.redraw();
    showProgress();
    if (!decisions.kept) warnIfNotKept();
  });
  // The same page in another tab.
  addEventListener("storage", (event) => {
    if (event.key !== decisions.place && event.key !== null) return;
    decisions.load();
    gallery.redraw();
    detail.redraw();
    showProgress();
  });
};

const wireHelp = () => {
  const help = () => byId("help").showModal();
  byId("help-button").addEventListener("click", help);
  byId("help").addEventListener("click", (event) => { if (event.target === byId("help")) byId("help").close(); });
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === byId("text")) byId("grid").focus();
    if (typing) return;
    if (event.key === "?" && !byId("help").open) help();
    else if (event.key === "/" && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      byId("text").focus();
      byId("text").select();
    }
  });
};

drawStats();
drawHistogram();
drawAbout();
drawFolders();
drawProblems();
describeReview();
wireFilters();
gallery.wire();
detail.wire();
gallery.refill();
wireDecisions();
wireHelp();
showProgress();
warnIfNotKept();
document.documentElement.dataset.ready = "yes";
