"use strict";
// What all views share: elements, numbers, addresses, and data files, read when first asked for.
const E = window.EXPLORER;
const LAYERS = Object.keys(E.with_page)
  .map(Number)
  .sort((a, b) => a - b);

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children);
  return node;
}

// ---- numbers and names -----------------------------------------------------------------------

const digits = (value, n = 3) =>
  value === null ? "undefined" : value === 0 ? "0" : String(Number(value.toPrecision(n)));
const percent = (value) => (value === null ? "–" : digits(100 * value) + " %");
const signed = (value) => (value > 0 ? "+" : "") + digits(value);
const className = (label) => (label < 0 ? "no class" : (E.classes[label] ?? `class ${label}`));
const effectName = (c) => (c < 0 ? "no class" : E.effect_classes[c]); // those effects were read on
const answerName = (c) => E.classes[c] ?? `class ${c}`;
const address = (s, i) => `${s}:${i}`;
const imageName = (place) => `image ${E.images.row[place]}`;
const caption = (place) =>
  E.images.label[place] < 0 ? imageName(place) : `${className(E.images.label[place])}, ${imageName(place)}`;
const tokenName = (token) => {
  if (E.has_cls && token === 0) return "CLS";
  const patch = token - (E.has_cls ? 1 : 0);
  return `patch ${Math.floor(patch / E.grid.across)},${patch % E.grid.across}`;
};

// ---- addresses: every view and its choices stand after the #, to be sent or kept -------------

function href(path, params = {}) {
  const query = Object.entries(params)
    .filter(([, value]) => value !== "" && value !== null && value !== undefined)
    .map(
      ([name, value]) =>
        `${name}=${encodeURIComponent(value).replace(/%3A/g, ":").replace(/%2C/g, ",").replace(/%40/g, "@")}`,
    );
  return `#/${path}${query.length ? "?" + query.join("&") : ""}`;
}

const link = (path, text, params = {}, more = {}) => make("a", { href: href(path, params), ...more }, text);
const nameOf = (s, i) => E.names[address(s, i)] ?? "";
// The address of a feature, and its name where it has one.
const called = (s, i) => (nameOf(s, i) ? `${address(s, i)} ${nameOf(s, i)}` : address(s, i));
const withName = (node, s, i) =>
  nameOf(s, i) ? make("span", {}, node, make("span", { class: "named" }, ` ${nameOf(s, i)}`)) : node;
const featureLink = (s, i) =>
  withName(link(`feature/${address(s, i)}`, address(s, i), {}, { class: "address" }), s, i);
// One that may have no page here.
const featureName = (s, i, has) =>
  has ? featureLink(s, i) : withName(make("span", { class: "address" }, address(s, i)), s, i);

// A choice within a view changes the address without a new entry in the history.
function keep(path, params) {
  const found = href(path, params);
  if (found === location.hash) return;
  try {
    history.replaceState(null, "", found);
    shownHash = found; // of start.js: what is shown now has this address
  } catch {
    // a frame without an address of its own, as in a notebook, keeps none
  }
}

// ---- data files ------------------------------------------------------------------------------

const reads = new Map();

function read(src) {
  if (!reads.has(src)) {
    reads.set(
      src,
      new Promise((done, fail) => {
        const script = make("script", { src });
        script.addEventListener("load", done);
        script.addEventListener("error", () => {
          reads.delete(src);
          fail(new Error(`The file ${src} is missing.`));
        });
        document.head.append(script);
      }),
    );
  }
  return reads.get(src);
}

const padded = (number, n) => String(number).padStart(n, "0");

async function layerOf(s) {
  if (!(s in E.with_page)) throw new Error(`Layer ${s} is not shown here; there are ${LAYERS.join(", ")}.`);
  if (!E.layers[s]) await read(`layers/layer-${padded(s, 2)}.js`);
  const layer = E.layers[s];
  layer.feature ??= [];
  layer.at ??= new Map(layer.feature.map((feature, j) => [feature, j]));
  return layer;
}

async function pageOf(layer, j) {
  const block = Math.floor(layer.page[j] / E.pages_per_file);
  if (!E.pages[block]) await read(`pages/pages-${padded(block, 3)}.js`);
  return E.pages[block][layer.page[j] % E.pages_per_file];
}

async function readingsOf(row) {
  const block = Math.floor(row / E.images_per_file);
  if (!E.imageBlocks[block]) await read(`blocks/images-${padded(block, 3)}.js`);
  return E.imageBlocks[block][row % E.images_per_file];
}

async function graphOf(row) {
  if (!E.with_graph.includes(row)) throw new Error(`Image ${row} has no graph here.`);
  if (!E.graphs[row]) await read(`graphs/graph-${padded(row, 5)}.js`);
  return E.graphs[row];
}

// ---- text ------------------------------------------------------------------------------------

const key = (colour) => `\u0000${colour}\u0000`; // a patch of colour within a text

function rich(text, tag = "p", kind = "note") {
  const parts = text
    .split("\u0000")
    .map((part) => (E.palette[part] ? make("span", { class: `key fill-${part}` }) : part));
  return make(tag, { class: kind }, ...parts);
}

function facts(pairs) {
  return make(
    "dl",
    {},
    ...Object.entries(pairs).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]),
  );
}

// A table whose cells name their column: a narrow page shows a row as a card, or all in small print.
function table(heads, rows, narrow = "cards") {
  const body = rows.map((cells) =>
    make(
      "tr",
      {},
      ...cells.map((cell, j) => {
        const content = Array.isArray(cell) ? cell : [cell];
        return make("td", { "data-label": heads[j] }, ...content);
      }),
    ),
  );
  return make(
    "div",
    { class: "scroll" },
    make(
      "table",
      { class: narrow },
      make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, ...body),
    ),
  );
}

function steps(before, after, back) {
  const one = ([path, text] = [], name, keyName) =>
    path === undefined
      ? make("span", { class: "soft" }, name)
      : link(path, name, {}, { title: text, "data-key": keyName });
  return make(
    "nav",
    { class: "steps", "aria-label": "Neighbours" },
    ...(back ? [link(back[0], `← ${back[1]}`, back[2] ?? {}, { "data-key": "up" })] : []),
    one(before, "previous", "left"),
    one(after, "next", "right"),
  );
}
