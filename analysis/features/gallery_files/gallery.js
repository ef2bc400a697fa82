"use strict";
// Everything is drawn from window.GALLERY (data.js); pages come from pages/*.js when asked for.
const G = window.GALLERY;
const F = G.features;
const BLUE = "#0072B2", ORANGE = "#D55E00", GREEN = "#009E73", GREY = "#777777";
const ROWS = 40; // features a part of the list
const STEPS = 99; // of an activation map
const state = { query: "", layer: "", kind: "", sort: null, down: false, part: 0, maps: true, scroll: 0 };
let listed = []; // what the list shows: places in F's columns

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const digits = (value, n = 3) =>
  value === null ? "undefined" : value === 0 ? "0" : String(Number(value.toPrecision(n)));
const percent = (value) => (value === null ? "–" : digits(100 * value) + " %");
const signed = (value) => (value > 0 ? "+" : "") + digits(value);
const className = (label) => (label < 0 ? "no class" : G.classes[label] ?? `class ${label}`);
const effectName = (c) => (c < 0 ? "no class" : G.effect_classes[c]); // the classes effects were read on
const address = (i) => `${F.layer[i]}:${F.feature[i]}`;
const placeOf = new Map(F.layer.map((_, i) => [address(i), i]));

// ---- images ----------------------------------------------------------------------------------

G.sheets = {};

function sheet(number) {
  if (!G.sheets[number]) {
    const image = new Image();
    image.src = `images/sheet-${String(number).padStart(3, "0")}.png`;
    G.sheets[number] = image;
  }
  return G.sheets[number];
}

// An image and, where `map` is given, the feature's activation on each patch laid over it.
function picture(place, side, label, map = null) {
  const { width, height, sheet: across } = G.image;
  const scale = side / Math.max(width, height);
  const canvas = make("canvas", { role: "img", "aria-label": label, title: label });
  const sharp = Math.min(3, window.devicePixelRatio || 1);
  canvas.width = Math.round(width * scale * sharp);
  canvas.height = Math.round(height * scale * sharp);
  canvas.style.width = `${Math.round(width * scale)}px`;
  canvas.style.height = `${Math.round(height * scale)}px`;
  const at = place % (across * across);
  const image = sheet(Math.floor(place / (across * across)));
  const draw = () => {
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = canvas.width < width; // enlarged pixels stay pixels
    const x = (at % across) * width, y = Math.floor(at / across) * height;
    pen.drawImage(image, x, y, width, height, 0, 0, canvas.width, canvas.height);
    if (map && state.maps) overlay(pen, canvas, map);
    canvas.dataset.drawn = "yes";
  };
  if (image.complete && image.naturalWidth) draw();
  else image.addEventListener("load", draw, { once: true });
  canvas.redraw = draw;
  return canvas;
}

function overlay(pen, canvas, map) {
  const { down, across } = G.grid;
  const w = canvas.width / across, h = canvas.height / down;
  map.forEach((step, i) => {
    if (!step) return;
    const share = Math.abs(step) / STEPS;
    const x = (i % across) * w, y = Math.floor(i / across) * h;
    pen.fillStyle = pen.strokeStyle = step > 0 ? ORANGE : BLUE;
    pen.globalAlpha = 0.1 + 0.6 * share;
    pen.fillRect(x, y, w, h);
    pen.globalAlpha = 0.9; // the frame tells a weak patch from a silent one
    pen.lineWidth = Math.max(1, canvas.width / 100);
    pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
  });
  pen.globalAlpha = 1;
}

// ---- the list --------------------------------------------------------------------------------

const COLUMNS = [
  { key: "feature", title: "Feature" },
  { key: null, title: "Most active images" },
  { key: "images", title: "Images" },
  { key: "cls", title: "CLS rows" },
  { key: "patch", title: "Patch rows" },
  { key: "purity", title: "Purity of top" },
  { key: "effect", title: "Raises most, logits" },
];

function matches(i) {
  if (state.layer !== "" && F.layer[i] !== Number(state.layer)) return false;
  const cls = F.cls[i] > 0, patch = F.patch[i] > 0;
  if (state.kind === "cls" && !cls) return false;
  if (state.kind === "patch" && !patch) return false;
  if (state.kind === "cls-only" && (!cls || patch)) return false;
  if (state.kind === "patch-only" && (!patch || cls)) return false;
  const text = state.query.trim().toLowerCase();
  if (!text) return true;
  if (/^\d+:\d*$/.test(text)) return address(i).startsWith(text);
  const names = [effectName(F.raised[i]), className(F.label[i])];
  return names.some((name) => name !== "no class" && name.toLowerCase().includes(text));
}

function refresh() {
  listed = F.layer.map((_, i) => i).filter(matches);
  if (state.sort) { // else as they were chosen
    const values = F[state.sort], sign = state.down ? -1 : 1;
    const layers = (a, b) => (state.sort === "feature" ? F.layer[a] - F.layer[b] : 0);
    // what is undefined comes last either way
    listed.sort((a, b) => (values[a] === null) - (values[b] === null) ||
      sign * (layers(a, b) || values[a] - values[b]) || a - b);
  }
  state.part = Math.max(0, Math.min(state.part, Math.ceil(listed.length / ROWS) - 1));
  showList();
}

function showList() {
  const first = state.part * ROWS;
  byId("rows").replaceChildren(...listed.slice(first, first + ROWS).map(row));
  const n = F.layer.length;
  byId("found").textContent = listed.length
    ? `${listed.length} of ${n} features`
    : `No feature fits. ${state.query.trim() ? `“${state.query.trim()}” is looked for in the names of the class raised most and of the most common class among the top images; 7:12 is a feature's address.` : "Choose another layer or token kind."}`;
  const parts = Math.ceil(listed.length / ROWS);
  byId("pager").hidden = parts < 2;
  byId("part").textContent = `part ${state.part + 1} of ${parts}`;
  byId("before").disabled = state.part === 0;
  byId("after").disabled = state.part >= parts - 1;
  byId("heads").replaceChildren(...COLUMNS.map(head));
}

function head({ key, title }) {
  if (!key) return make("th", { scope: "col", class: "left" }, title);
  const on = state.sort === key;
  const sort = on ? (state.down ? "descending" : "ascending") : "none";
  const mark = on ? (state.down ? " ↓" : " ↑") : "";
  const button = make("button", { type: "button", "data-sort": key }, title + mark);
  button.addEventListener("click", () => {
    state.down = on ? !state.down : key !== "feature"; // numbers: largest first
    Object.assign(state, { sort: key, part: 0 });
    refresh();
    document.querySelector(`[data-sort="${key}"]`).focus();
  });
  return make("th", { scope: "col", "aria-sort": sort }, button);
}

function row(i) {
  const images = F.top[i].map((place) => picture(place, 44, caption(place)));
  const under = (text, small) => make("td", {}, text, make("div", { class: "soft" }, small));
  const none = () => make("td", {}, "–");
  return make("tr", {},
    make("td", {}, make("a", { href: `#/${address(i)}` }, address(i))),
    make("td", { class: "left" }, ...images),
    ...[F.images[i], F.cls[i], F.patch[i]].map((rate) => make("td", {}, percent(rate))),
    F.purity[i] === null ? none()
      : under(`${percent(F.purity[i])} ${className(F.label[i])}`, `of all ${percent(F.base[i])}, by chance ${percent(F.chance[i])}`),
    F.effect[i] === null ? none() : under(signed(F.effect[i]), effectName(F.raised[i])));
}

const caption = (place) => `${className(G.images.label[place])}, row ${G.images.row[place]}`;

// ---- one feature -----------------------------------------------------------------------------

function showPage(i) {
  const number = Math.floor(i / G.pages_per_file);
  const draw = () => drawPage(i, G.blocks[number][i % G.pages_per_file]);
  if (G.blocks[number]) return draw();
  const script = make("script", { src: `pages/pages-${String(number).padStart(3, "0")}.js` });
  script.addEventListener("load", () => location.hash === `#/${address(i)}` && draw());
  script.addEventListener("error", () => lost(`The file ${script.getAttribute("src")} is missing.`));
  document.head.append(script);
}

function drawPage(i, page) {
  const n = G.n_images;
  const around = listed.includes(i) ? listed : F.layer.map((_, j) => j);
  const at = around.indexOf(i);
  const step = (j, text) => (j === undefined ? make("span", { class: "soft" }, text)
    : make("a", { href: `#/${address(j)}` }, text));
  const facts = {
    "Active on": `${percent(F.images[i])} of images (${page.active} of ${n}), ` +
      `${percent(F.cls[i])} of CLS rows, ${percent(F.patch[i])} of patch rows`,
    "Top images": F.purity[i] === null ? "no labels"
      : `${percent(F.purity[i])} ${className(F.label[i])}, which is ${percent(F.base[i])} of all ` +
        `images; the most common class of as many random images: ${percent(F.chance[i])}`,
    "Data": G.context,
  };
  const note = `Frames: patches where the feature is active (${key(ORANGE)} positive, ${key(BLUE)} ` +
    `negative); full colour is |z| = ${digits(page.scale)}. Below each image: z of its strongest ` +
    `row, and z of the class token (CLS). Row numbers are those of the data.`;
  byId("page").replaceChildren(
    make("nav", { "aria-label": "Features" },
      make("a", { href: "#/", id: "back" }, "← all features"),
      step(around[at - 1], "previous"), step(around[at + 1], "next"),
      maps()),
    make("h1", {}, `Layer ${F.layer[i]}, feature ${F.feature[i]}`),
    make("dl", {}, ...Object.entries(facts).flatMap(([name, text]) =>
      [make("dt", {}, name), make("dd", {}, text)])),
    make("h2", {}, "Most active images"),
    shelf(page.top, 118),
    rich(note),
    make("h2", {}, "Images drawn at random"),
    make("p", { class: "note" }, "By the quarter of the active images they come from, ordered by " +
      "|z| of the strongest row; of at most 64 active images, drawn at random."),
    make("div", { class: "bands" }, ...page.bands.map(([low, high, some]) =>
      make("section", {}, make("h3", {}, `${100 * low} to ${100 * high} %`),
        some.length ? shelf(some, 86) : make("p", { class: "soft" }, "too few active images")))),
    make("div", { class: "charts" },
      histogram(page), writes(page), effects(page)),
    make("h2", {}, "Features that write alike"),
    near(page));
  document.title = `${address(i)} · ${G.title}`;
  scrollTo(0, 0);
}

const key = (colour) => `\u0000${colour}\u0000`; // a patch of colour within a text

function rich(text) {
  const parts = text.split("\u0000").map((part) => (/^#/.test(part)
    ? make("span", { class: "key", style: `background:${part}` }) : part));
  return make("p", { class: "note" }, ...parts);
}

function maps() {
  const box = make("input", { type: "checkbox", checked: state.maps });
  box.addEventListener("change", () => {
    state.maps = box.checked;
    document.querySelectorAll("#page canvas").forEach((canvas) => canvas.redraw());
  });
  return make("label", {}, box, " activation maps");
}

function shelf(examples, side) {
  return make("div", { class: "shelf" }, ...examples.map(([place, value, cls, map]) => {
    const of = cls === null ? "" : `, CLS ${digits(cls)}`;
    const text = `z ${digits(value)}${of}`;
    return make("figure", {}, picture(place, side, `${caption(place)}; ${text}`, map),
      make("div", {}, text),
      make("div", { class: "soft" }, className(G.images.label[place]), make("br"),
        `row ${G.images.row[place]}`));
  }));
}

function near(page) {
  if (!page.near.length) return make("p", { class: "soft" }, "None: no other feature shares a target.");
  const rows = page.near.map(([layer, feature, cosine, targets, together, listed]) => {
    const text = `${layer}:${feature}`;
    return make("tr", {},
      make("td", {}, listed ? make("a", { href: `#/${text}` }, text) : text + " (no page)"),
      ...[digits(cosine), String(targets), together === null ? "not measured" : percent(together)]
        .map((cell) => make("td", {}, cell)));
  });
  const heads = ["Feature", "Cosine of writes", "Shared targets", "Active together"];
  return make("div", {}, make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...heads.map((t) => make("th", { scope: "col" }, t)))),
    make("tbody", {}, ...rows))),
    make("p", { class: "note" }, "(no page): not one of the features this gallery shows. Not " +
      "measured: its layer was not looked at, or neither feature is active."));
}

// ---- charts ----------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, title = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (title) {
    const name = document.createElementNS(SVG, "title");
    name.textContent = title;
    node.append(name);
  }
  return node;
}

function chart(title, note, width, height, shapes) {
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  svg.append(...shapes);
  const caption = rich(note);
  return make("figure", {}, make("h2", {}, title), svg, make("figcaption", {}, ...caption.childNodes));
}

const line = (x1, y1, x2, y2, colour = "#999") => shape("line", { x1, y1, x2, y2, stroke: colour });

function words(x, y, text, anchor = "middle") {
  const node = shape("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

function histogram(page) {
  const [low, high] = page.edges, width = 420, top = 20, left = 52, each = 96;
  const zero = -low / (high - low); // signed codes have it inside, if not too near to an end
  const marks = zero > 0 && zero < 1 ? [0, zero, 1].filter((s) => s === zero || Math.abs(s - zero) > 0.12)
    : [0, 0.5, 1];
  const shapes = [];
  page.counts.forEach((counts, kind) => {
    const base = top + each + kind * (each + 46), most = Math.max(...counts);
    const total = counts.reduce((a, b) => a + b, 0), w = (width - left - 16) / counts.length;
    const name = kind ? "patch rows" : "CLS rows";
    shapes.push(words(left, base - each - 6, `${name}: ${total} active`, "start"));
    counts.forEach((count, b) => {
      if (!count) return;
      const h = (count / most) * each, from = low + ((high - low) * b) / counts.length;
      shapes.push(shape("rect", { x: left + b * w, y: base - h, width: Math.max(1, w - 1), height: h,
        fill: kind ? ORANGE : BLUE },
      `${count} ${name} with z from ${digits(from)} to ${digits(from + (high - low) / counts.length)}`));
    });
    shapes.push(line(left, base, width - 16, base), words(left - 6, base, "0", "end"));
    if (most) shapes.push(words(left - 6, base - each + 10, String(most), "end"));
    for (const share of marks) {
      shapes.push(words(left + share * (width - left - 16), base + 15, digits(low + share * (high - low))));
    }
  });
  shapes.push(words(left + (width - left) / 2, top + 2 * each + 80, "activation z"));
  return chart("Activations", `Token rows on which the feature is active, by z; N = ${G.n_images} images.`,
    width, top + 2 * each + 88, shapes);
}

function writes(page) {
  const width = 420, top = 24, tall = 200, left = 60, base = top + tall;
  const most = Math.max(1e-9, ...page.writes.flatMap(([, a, b]) => [a ?? 0, b ?? 0]));
  const w = (width - left - 16) / page.writes.length;
  const shapes = [line(left, base, width - 16, base), words(left - 6, base, "0", "end"),
    words(left - 6, top + 10, percent(most), "end"), words(left + (width - left) / 2, base + 34, "target layer")];
  page.writes.forEach(([layer, ...strengths], j) => {
    const wide = Math.min(26, w * 0.42), middle = left + (j + 0.5) * w;
    strengths.forEach((value, kind) => {
      if (value === null) return;
      const h = (value / most) * tall;
      shapes.push(shape("rect", { x: middle + (kind - 1) * wide, y: base - h, width: wide - 1, height: h,
        fill: kind ? ORANGE : BLUE },
      `layer ${layer}, ${kind ? "patch" : "CLS"} rows: ${percent(value)}`));
    });
    shapes.push(words(middle, base + 16, String(layer)));
  });
  return chart("Writes to", `Mean size of the feature's write on the rows where it is active, as a share of ` +
    `sqrt(E‖y‖²) there: ${key(BLUE)} CLS rows, ${key(ORANGE)} patch rows.`, width, base + 44, shapes);
}

function effects(page) {
  const title = "Direct effect on class logits";
  if (!page.effects) {
    const why = G.effect_images ? `The feature is active on none of the first ${G.effect_images} images.`
      : "Not measured: no classes to read.";
    return make("figure", {}, make("h2", {}, title), make("p", { class: "soft" }, why));
  }
  if (page.effects.every(([, , raw]) => raw === 0)) {
    return make("figure", {}, make("h2", {}, title), make("p", { class: "soft" },
      `Exactly 0 on every class, on the ${page.effect_images} of the first ${G.effect_images} images ` +
      "where it is active: from these rows and layers no logit is read directly."));
  }
  const shown = page.effects, tall = 22, top = 10, left = 170, width = 420;
  const cut = shown.length < G.effect_classes.length;
  const most = Math.max(1e-12, ...shown.flatMap(([, centred, raw]) => [Math.abs(centred), Math.abs(raw)]));
  const zero = left + (width - left - 14) / 2, unit = (width - left - 14) / 2 / most;
  const base = top + shown.length * tall, shapes = [line(zero, top, zero, base)];
  shown.forEach(([c, centred, raw], j) => {
    const y = top + j * tall, x = zero + Math.min(0, centred) * unit;
    const name = effectName(c);
    const text = `${name}: ${signed(centred)} centred, ${signed(raw)} raw`;
    shapes.push(words(left - 8, y + 15, name.length > 22 ? "…" + name.slice(-21) : name, "end"),
      shape("rect", { x, y: y + 3, width: Math.max(0.5, Math.abs(centred) * unit), height: tall - 6,
        fill: centred > 0 ? GREEN : GREY }, text),
      shape("circle", { cx: zero + raw * unit, cy: y + tall / 2, r: 4, fill: "none", stroke: "#222" }, text));
  });
  shapes.push(words(left, base + 15, signed(-most), "start"), words(zero, base + 15, "0"),
    words(width - 14, base + 15, signed(most), "end"));
  return chart(title, `In logits, a mean over the ${page.effect_images} of the first ${G.effect_images} ` +
    `images where it is active, attention held, norms differentiated. Bars: less the mean over classes; circles: ` +
    `as it is.${cut ? " The ten highest and the ten lowest classes." : ""}`, width, base + 24, shapes);
}

// ---- which of the two is shown ---------------------------------------------------------------

function lost(text) {
  byId("page").replaceChildren(make("nav", {}, make("a", { href: "#/" }, "← all features")),
    make("p", { role: "alert" }, text));
}

function route() {
  const found = /^#\/(\d+:\d+)$/.exec(location.hash);
  if (!byId("list").hidden) state.scroll = scrollY;
  byId("list").hidden = Boolean(found);
  byId("page").hidden = !found;
  if (!found) {
    document.title = G.title;
    byId("page").replaceChildren();
    scrollTo(0, state.scroll);
  } else if (placeOf.has(found[1])) showPage(placeOf.get(found[1]));
  else lost(`Feature ${found[1]} has no page here.`);
}

function start() {
  document.querySelector("#list h1").textContent = G.title;
  byId("facts").append(...Object.entries(G.facts).flatMap(([name, text]) =>
    [make("dt", {}, name), make("dd", {}, text)]));
  byId("layer").append(...[...new Set(F.layer)].map((l) => make("option", { value: l }, String(l))));
  byId("meaning").textContent = "Images, CLS rows, patch rows: the share on which the feature is " +
    "active. Purity: the share of its top images with their most common class, beside that class' " +
    "share of all images and the purity of as many random images. The class raised most is the one with the largest direct effect, centred " +
    "over classes. Rows stand in the order they were chosen in; select a column's name to sort by it.";
  for (const id of ["query", "layer", "kind"]) {
    byId(id).addEventListener("input", () => {
      Object.assign(state, { [id]: byId(id).value, part: 0 });
      refresh();
    });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [id, step] of [["before", -1], ["after", 1]]) {
    byId(id).addEventListener("click", () => { state.part += step; showList(); });
  }
  window.addEventListener("hashchange", route);
  refresh();
  route();
}

start();
