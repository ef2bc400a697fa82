"use strict";
// The heatmap of scores as a table of links: keys move between its cells.

// Rows are targets, columns sources, as in the exported figure: a table of links.
function heatmap(map) {
  const n = map.values.length,
    most = Math.max(...map.values.flat().map((v) => Math.abs(v ?? 0)), 1e-9);
  const rows = map.values.map((values, l) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, `${l}`),
      ...values.map((value, s) => heatCell(map, s, l, value, most)),
      ...biasCell(map, l),
    ),
  );
  const foot = make(
    "tr",
    {},
    make("th", {}, "l / s"),
    ...map.values.map((_, s) => make("th", { scope: "col" }, `${s}`)),
    ...(map.bias.length ? [make("th", { scope: "col" }, "b")] : []),
  );
  const shown = make(
    "table",
    { class: `heat${n > 12 ? " small" : ""}`, "aria-label": map.title },
    make("tbody", {}, ...rows),
    make("tfoot", {}, foot),
  );
  shown.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const at = event.target.dataset?.cell?.split(",").map(Number);
    if (!step || !at) return;
    const next = shown.querySelector(`[data-cell="${at[0] + step[0]},${at[1] + step[1]}"]`);
    event.preventDefault();
    event.stopPropagation();
    next?.focus();
  });
  return make(
    "figure",
    { class: "heatmap" },
    shown,
    make(
      "figcaption",
      { class: "note" },
      "columns: source layer s; rows: target layer l; empty below 0.005 in size",
      legend(most),
    ),
  );
}

const cellText = (value) => (Math.abs(value) < 0.005 ? "" : value.toFixed(2).replace("0.", "."));

// What the decoders' bias adds has no source; its colour would hide that of the sources.
const biasCell = (map, l) =>
  map.bias.length
    ? [
        make(
          "td",
          { class: "bias", title: `bias of layer ${l}: ${digits(map.bias[l])}` },
          cellText(map.bias[l]),
        ),
      ]
    : [];

function heatCell(map, s, l, value, most) {
  if (value === null) return make("td", {});
  const share = Math.abs(value) / most;
  const style = `--share:${(100 * share).toFixed(0)}%`;
  const kind = `${value < 0 ? "below" : "above"}${share > 0.55 ? " strong" : ""}`;
  const text = cellText(value);
  const params = { target: l, tokens: map.tokens === "patch" ? "patch" : map.tokens === "cls" ? "cls" : "" };
  if (!(s in E.with_page)) return make("td", { class: kind, style }, text);
  return make(
    "td",
    { class: kind, style },
    make(
      "a",
      {
        href: href(`layer/${s}`, params),
        "data-cell": `${s},${l}`,
        title: `C(${s}→${l}) = ${digits(value)}`,
        "aria-label": `C(${s}→${l}) = ${digits(value)}`,
        tabindex: s === 0 && l === 0 ? "0" : "-1",
      },
      text,
    ),
  );
}

function legend(most) {
  const cells = [0, 0.25, 0.5, 0.75, 1].map((share) =>
    make(
      "span",
      { class: `swatch above${share > 0.55 ? " strong" : ""}`, style: `--share:${100 * share}%` },
      digits(share * most, 2),
    ),
  );
  return make("span", { class: "legend" }, ...cells);
}
