// Figures of a page follow the reader: dark colours on dark pages, one column on narrow ones.
"use strict";

const NARROW = 700; // pixels
const GAP = 84; // between panels in one column: tick labels, axis title, and the next panel's title

// The palette of vit_clt.analysis.reporting.style and plotly's white template, for a dark card.
const DARK = {
  "#222222": "#ececec", "#2a3f5f": "#d5d8dd", "#777777": "#a7adb5", "#bbbbbb": "#5d636c",
  "#ffffff": "#22252a", "#ebf0f8": "#3a3f47", "#f2f2f2": "#2d3138", "#eeeeee": "#2d3138",
  "#0072b2": "#3fa0e0", "#d55e00": "#f58742", "#009e73": "#27bd93",
};

const OF_COLOURS = /color(s|way|scales?)?$/i; // names of what holds colours, such as plot_bgcolor

// What is no colour, such as a class called "white", stays as it is.
function recoloured(value, key = "", colours = OF_COLOURS.test(key)) {
  if (typeof value === "string") {
    if (!colours) return value;
    const named = { white: "#ffffff", black: "#222222" }[value] || value.toLowerCase();
    return DARK[named] || (key === "color" ? lightened(value) : value);
  }
  if (Array.isArray(value)) return value.map((each) => recoloured(each, key, colours));
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) =>
    [name, recoloured(inner, name, colours || OF_COLOURS.test(name))]));
}

// The dark end of a scale, such as Viridis' first colours, as lines on a dark card.
function lightened(colour) {
  const parts = colour.match(/^rgb\((\d+), *(\d+), *(\d+)\)$/);
  if (!parts) return colour;
  const [red, green, blue] = parts.slice(1).map(Number);
  if (0.3 * red + 0.6 * green + 0.1 * blue > 90) return colour;
  return `rgb(${[red, green, blue].map((part) => Math.round(0.6 * part + 102)).join(",")})`;
}

// Panels: pairs of an x and a y axis that have a place of their own, in reading order.
function panels(layout) {
  const found = [];
  for (const name of Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key))) {
    const x = layout[name];
    const y = layout[`yaxis${(x.anchor || "y").slice(1)}`];
    if (y && x.domain && y.domain && !x.overlaying && !y.overlaying) found.push({ x, y });
  }
  const places = found.map(({ x, y }) => ({ x, y, at: [...x.domain, ...y.domain] }));
  return places.sort((a, b) => b.at[3] - a.at[3] || a.at[0] - b.at[0]);
}

// Put what has a place on the figure where its panel has gone.
function follow(item, moved, height) {
  if (typeof item.x !== "number" || typeof item.y !== "number") return;
  const off = ({ at }) =>
    Math.max(at[0] - item.x, item.x - at[1], 0) + Math.max(at[2] - item.y, item.y - at[3], 0);
  const panel = moved.reduce((best, each) => (off(each) < off(best) ? each : best));
  const [left, right, bottom, top] = panel.at;
  const [to, from] = panel.y.domain;
  if (item.len) item.len *= (from - to) / (top - bottom);
  item.x = (item.x - left) / (right - left);
  // above and below a panel distances stay what they were in pixels
  if (item.y > top) item.y = from + ((item.y - top) * height.before) / height.after;
  else if (item.y < bottom) item.y = to - ((bottom - item.y) * height.before) / height.after;
  else item.y = to + ((item.y - bottom) / (top - bottom)) * (from - to);
}

// Lines of at most so many letters, where words are not longer.
function wrapped(text, letters) {
  if (text.includes("<br>")) {
    return text.split("<br>").map((line) => wrapped(line, letters)).join("<br>");
  }
  const lines = [""];
  for (const word of text.split(" ")) {
    const line = lines.at(-1);
    if (line && line.length + word.length >= letters) lines.push(word);
    else lines[lines.length - 1] = line ? `${line} ${word}` : word;
  }
  return lines.join("<br>");
}

function onPaper(item) {
  return item.xref === "paper" && item.yref === "paper";
}

function inOneColumn(data, layout, width) {
  const margin = { t: 60, b: 60, ...layout.margin, l: 52, r: 14 };
  const before = (layout.height || 450) - margin.t - margin.b;
  const all = panels(layout);
  for (const { x, y } of all) {
    for (const axis of [x, y]) axis.tickfont = { ...axis.tickfont, size: 10 };
  }
  const columns = new Set(all.map(({ at }) => at[0]));
  const bars = [...data, ...Object.entries(layout).filter(([key]) => /^coloraxis/.test(key))
    .map(([, axis]) => axis)].map((each) => each.colorbar).filter(Boolean);
  let after = before;
  if (columns.size > 1) {
    const heights = all.map(({ at }) => Math.max(150, (at[3] - at[2]) * before));
    after = heights.reduce((sum, each) => sum + each, GAP * (all.length - 1));
    let top = after;
    all.forEach((panel, i) => {
      panel.x.domain = [0, 1];
      panel.y.domain = [(top - heights[i]) / after, top / after];
      for (const axis of [panel.x, panel.y]) axis.showticklabels = true;
      top -= heights[i] + GAP;
    });
    const placed = [...(layout.annotations || []), ...(layout.images || [])].filter(onPaper);
    for (const each of [...placed, ...bars]) follow(each, all, { before, after });
  }
  // titles of panels may be wider than a panel: they begin where it does, and wrap
  for (const each of layout.annotations || []) {
    if (onPaper(each) && each.yanchor === "bottom" && !each.textangle) {
      const text = wrapped(each.text, (width - margin.l) / 6.5);
      Object.assign(each, { text, x: 0, xanchor: "left", align: "left" });
      each.font = { ...each.font, size: 12 };
    }
  }
  for (const bar of bars) {
    Object.assign(bar, { thickness: 8 });
    margin.r = 62;
  }
  const legend = layout.legend || {};
  const beside = legend.orientation !== "h";
  for (const trace of data) if (trace.name) trace.name = wrapped(trace.name, (width - 70) / 6.5);
  const names = new Set(data.filter((trace) => trace.showlegend !== false).map((t) => t.name));
  const entries = [...names].reduce((sum, name) => sum + (name || "").split("<br>").length, 0);
  const gap = beside ? 64 : Math.max(64, -(legend.y || 0) * before);
  if (beside) margin.b += 21 * entries;
  else margin.b += 21 * Math.max(0, entries - 2);
  layout.legend = { ...legend, orientation: "h", x: 0, xanchor: "left", y: -gap / after,
    yanchor: "top" };
  return { ...layout, margin, width, height: after + margin.t + margin.b };
}

function draw(figure, original) {
  const card = figure.closest("figure");
  const style = getComputedStyle(card);
  const width = card.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  let { data, layout } = structuredClone(original);
  if (matchMedia("(prefers-color-scheme: dark)").matches) {
    data = recoloured(data);
    const plate = layout.plot_bgcolor ? recoloured(layout.plot_bgcolor, "plot_bgcolor") : "#22252a";
    layout = { ...recoloured(layout), paper_bgcolor: "#22252a", plot_bgcolor: plate };
  }
  if (innerWidth < NARROW) layout = inOneColumn(data, layout, width);
  else layout.width = Math.min(layout.width || width, width);
  for (const box of [figure, figure.parentElement]) {
    box.style.height = layout.height ? `${layout.height}px` : "";
    box.style.width = `${layout.width}px`;
  }
  // margins that an earlier drawing took for its legend would stay otherwise
  Plotly.purge(figure);
  return Plotly.react(figure, data, layout, { displaylogo: false });
}

const originals = new Map();
for (const figure of document.querySelectorAll(".js-plotly-plot")) {
  originals.set(figure, structuredClone({ data: figure.data, layout: figure.layout }));
}
function drawAll() {
  originals.forEach((original, figure) => draw(figure, original));
}
let waiting = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(drawAll);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
drawAll();
