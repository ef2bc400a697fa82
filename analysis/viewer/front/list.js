"use strict";
// The features of one layer, or of all: found by class, sorted by any column, a part at a time.

const ROWS = 40; // features a part
const KINDS = {
  "": "any row",
  cls: "CLS rows",
  patch: "patch rows",
  "cls-only": "CLS rows alone",
  "patch-only": "patch rows alone",
};
let listed = []; // what the list last showed: [layer, place in its columns]

const COLUMNS = [
  { key: "feature", title: "Feature", hint: "layer:feature" },
  { key: null, title: "Most active images" },
  { key: "write", title: "Writes", hint: "mean size of what it adds to an MLP's output, over all rows" },
  { key: "images", title: "Images", hint: "share of images on which it is active" },
  { key: "cls", title: "CLS rows", hint: "share of class-token rows on which it is active" },
  { key: "patch", title: "Patch rows", hint: "share of patch rows on which it is active" },
  { key: "purity", title: "Purity of top", hint: "share of its top images with their most common class" },
  { key: "effect", title: "Raises most, logits", hint: "largest direct effect on a class logit" },
];

async function showList(args, params) {
  const layers = args.length ? [Number(args[0])] : LAYERS;
  await layerOf(layers[0]); // the others come while the first is read
  const ready = () => layers.filter((s) => E.layers[s]?.at);
  const path = args.length ? `layer/${args[0]}` : "features";
  const one = args.length > 0;
  const targets = one ? E.layers[layers[0]].write.targets : [];
  const state = {
    q: params.q ?? "",
    kind: params.kind ?? "",
    sort: params.sort ?? "",
    down: params.down ?? "",
    part: Number(params.part ?? 0),
    target: targets.includes(Number(params.target)) ? params.target : "",
    tokens: ["cls", "patch"].includes(params.tokens) ? params.tokens : E.has_cls ? "cls" : "patch",
  };
  if (!COLUMNS.some(({ key: name }) => name === state.sort)) state.sort = "";
  if (state.target !== "" && !params.sort) Object.assign(state, { sort: "write", down: "1" });
  const view = {
    found: make("p", { role: "status", id: "found" }),
    heads: make("tr", { id: "heads" }),
    rows: make("tbody", { id: "rows" }),
    part: make("span", { id: "part" }),
    before: make("button", { type: "button", id: "before" }, "← previous"),
    after: make("button", { type: "button", id: "after" }, "next →"),
  };
  const update = (change) => {
    Object.assign(state, change);
    keep(path, { ...state, part: state.part || "", tokens: state.target === "" ? "" : state.tokens });
    fillList(ready(), state, view, update);
  };
  view.before.addEventListener("click", () => update({ part: state.part - 1 }));
  view.after.addEventListener("click", () => update({ part: state.part + 1 }));
  view.pager = make("nav", { "aria-label": "Parts of the list" }, view.before, view.part, view.after);
  const form = listControls(state, targets, update);
  fillList(ready(), state, view, update);
  if (ready().length < layers.length) {
    Promise.all(layers.map(layerOf)).then(
      () => fillList(layers, state, view, update),
      (error) => (view.found.textContent = error.message),
    );
  }
  const title = one ? `Features of layer ${layers[0]}` : "Features";
  const head = one || E.heatmaps ? make("h1", {}, title) : make("h1", {}, E.title);
  const place = LAYERS.indexOf(layers[0]);
  const beside = (j) => (LAYERS[j] === undefined ? [] : [`layer/${LAYERS[j]}`, `layer ${LAYERS[j]}`]);
  return {
    title,
    nodes: [
      ...(one
        ? [
            steps(
              beside(place - 1),
              beside(place + 1),
              E.heatmaps ? ["", "overview"] : ["features", "all features"],
            ),
          ]
        : []),
      head,
      ...(E.heatmaps ? [] : [facts(E.facts)]),
      form,
      view.found,
      make(
        "div",
        { class: "scroll", tabindex: "0", "aria-label": "Features" },
        make("table", { class: "cards" }, make("thead", {}, view.heads), view.rows),
      ),
      view.pager,
      make("p", { class: "note" }, listMeaning(one)),
    ],
  };
}

function listControls(state, targets, update) {
  const query = make("input", {
    id: "query",
    type: "search",
    autocomplete: "off",
    value: state.q,
    placeholder: "a class, or 7:",
  });
  query.addEventListener("input", () => update({ q: query.value, part: 0 }));
  const kind = choice("kind", KINDS, state.kind, (value) => update({ kind: value, part: 0 }));
  const form = make(
    "form",
    { id: "controls", role: "search" },
    make("label", {}, "Find a class or layer:feature", query),
    make("label", {}, "Fires on", kind),
  );
  if (targets.length) {
    const names = { "": "all layers", ...Object.fromEntries(targets.map((l) => [l, `layer ${l}`])) };
    form.append(
      make(
        "label",
        {},
        "Writes to",
        choice("target", names, state.target, (target) =>
          update({
            target,
            part: 0,
            ...(target === "" ? { sort: "", down: "" } : { sort: "write", down: "1" }),
          }),
        ),
      ),
    );
    if (E.has_cls) {
      form.append(
        make(
          "label",
          {},
          "on",
          choice("tokens", { cls: "CLS rows", patch: "patch rows" }, state.tokens, (tokens) =>
            update({ tokens, part: 0 }),
          ),
        ),
      );
    }
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  return form;
}

function choice(id, names, value, changed) {
  const select = make(
    "select",
    { id },
    ...Object.entries(names).map(([name, text]) =>
      make("option", { value: name, selected: String(value) === name }, text),
    ),
  );
  select.addEventListener("input", () => changed(select.value));
  return select;
}

function fits(layer, s, j, state) {
  const cls = layer.cls[j] > 0,
    patch = layer.patch[j] > 0;
  if (state.kind === "cls" && !cls) return false;
  if (state.kind === "patch" && !patch) return false;
  if (state.kind === "cls-only" && (!cls || patch)) return false;
  if (state.kind === "patch-only" && (!patch || cls)) return false;
  const text = state.q.trim().toLowerCase();
  if (!text) return true;
  if (/^\d+:\d*$/.test(text)) return address(s, layer.feature[j]).startsWith(text);
  const names = [effectName(layer.raised[j]), className(layer.label[j]), nameOf(s, layer.feature[j])];
  return names.some((name) => name !== "no class" && name.toLowerCase().includes(text));
}

// Of a feature, the size of its write at one target on one kind of rows, or the largest of all.
function writeOf(s, j, state) {
  const { targets, ...kinds } = E.layers[s].write;
  if (state.target !== "") return kinds[state.tokens][targets.indexOf(Number(state.target))][j];
  return Math.max(...["cls", "patch"].flatMap((kind) => kinds[kind].map((column) => column[j] ?? 0)));
}

function fillList(layers, state, view, update) {
  const chosen = [];
  let n = 0;
  for (const s of layers) {
    const layer = E.layers[s];
    n += layer.feature.length;
    layer.feature.forEach((_, j) => fits(layer, s, j, state) && chosen.push([s, j]));
  }
  const valueOf =
    state.sort === "write" ? ([s, j]) => writeOf(s, j, state) : ([s, j]) => E.layers[s][state.sort][j];
  if (state.sort) {
    // else as they were chosen
    const sign = state.down ? -1 : 1;
    const byLayer = (a, b) => (state.sort === "feature" ? a[0] - b[0] : 0);
    const keyed = chosen.map((each, place) => [valueOf(each), place, each]);
    // what is undefined comes last either way
    keyed.sort(
      ([a, i, x], [b, j, y]) => (a === null) - (b === null) || sign * (byLayer(x, y) || a - b) || i - j,
    );
    keyed.forEach(([, , each], place) => {
      chosen[place] = each;
    });
  } else chosen.sort((a, b) => E.layers[a[0]].page[a[1]] - E.layers[b[0]].page[b[1]]);
  listed = chosen.map(([s, j]) => [s, E.layers[s].feature[j]]);
  const parts = Math.ceil(chosen.length / ROWS);
  state.part = Math.max(0, Math.min(state.part, parts - 1));
  const first = state.part * ROWS;
  view.rows.replaceChildren(...chosen.slice(first, first + ROWS).map(([s, j]) => featureRow(s, j, state)));
  view.found.textContent = chosen.length
    ? `${chosen.length} of ${n} features`
    : `No feature fits. ${
        state.q.trim()
          ? `“${state.q.trim()}” is looked for in the features' names, and in those of the class raised most and of the most common class among the top images; 7:12 is a feature's address.`
          : "Choose another layer or token kind."
      }`;
  view.pager.hidden = parts < 2;
  view.part.textContent = `part ${state.part + 1} of ${parts}`;
  view.before.disabled = state.part === 0;
  view.after.disabled = state.part >= parts - 1;
  view.heads.replaceChildren(...COLUMNS.map((column) => head(column, state, view, update)));
}

function head({ key: name, title, hint }, state, view, update) {
  if (!name) return make("th", { scope: "col", class: "left" }, title);
  const on = state.sort === name;
  const mark = on ? (state.down ? " ↓" : " ↑") : "";
  const button = make("button", { type: "button", "data-sort": name, title: hint }, title + mark);
  button.addEventListener("click", () => {
    const down = on ? !state.down : name !== "feature"; // numbers: largest first
    update({ sort: name, down: down ? "1" : "", part: 0 });
    view.heads.querySelector(`[data-sort="${name}"]`).focus();
  });
  return make(
    "th",
    { scope: "col", "aria-sort": on ? (state.down ? "descending" : "ascending") : "none" },
    button,
  );
}

function featureRow(s, j, state) {
  const layer = E.layers[s];
  const images = layer.top[j].map((place) => picture(place, 44, caption(place)));
  const cell = (label, ...content) => make("td", { "data-label": label }, ...content);
  const under = (label, text, small) => cell(label, text, make("div", { class: "soft" }, small));
  return make(
    "tr",
    {},
    cell("Feature", featureLink(s, layer.feature[j])),
    make(
      "td",
      { class: "left" },
      make(
        "a",
        { href: href(`feature/${address(s, layer.feature[j])}`), tabindex: "-1", class: "image" },
        ...images,
      ),
    ),
    cell("Writes", percent(writeOf(s, j, state))),
    cell("Images", percent(layer.images[j])),
    cell("CLS rows", percent(layer.cls[j])),
    cell("Patch rows", percent(layer.patch[j])),
    layer.purity[j] === null
      ? cell("Purity of top", "–")
      : under(
          "Purity of top",
          `${percent(layer.purity[j])} ${className(layer.label[j])}`,
          `of all images ${percent(layer.base[j])}, by chance ${percent(layer.chance[j])}`,
        ),
    layer.effect[j] === null
      ? cell("Raises most", "–")
      : under("Raises most", signed(layer.effect[j]), effectName(layer.raised[j])),
  );
}

const listMeaning = (one) =>
  "Images, CLS rows, patch rows: the share on which the feature is active. " +
  "Writes: mean size of what it adds over all rows, those where it is silent too, as a share of sqrt(E‖y‖²) there" +
  `${one ? "; at the layer chosen, else" : ","} the largest of all layers and kinds of rows. Purity: the share of its top images with their most common ` +
  "class, beside that class' share of all images and the purity of as many random images. The class raised most is the " +
  "one with the largest direct effect, centred over classes. Rows stand in the order they were chosen in; select a column's name to sort by it.";
