"use strict";
// The first page: the heatmap, how far to trust it, and ways into features, images and graphs.

async function showOverview(args, params) {
  const maps = E.heatmaps;
  const chosen = maps.find((map) => map.tokens === params.tokens && map.kind === params.kind) ?? maps[0];
  const tabs = maps.map((map) =>
    link(
      "",
      `${map.rows}, ${map.kind}`,
      { tokens: map.tokens, kind: map.kind },
      { "aria-current": map === chosen ? "page" : null },
    ),
  );
  const example = await exampleGraph();
  return {
    title: "Overview",
    ready: example.draw,
    nodes: [
      make("h1", {}, E.title),
      make(
        "ol",
        { class: "findings" },
        ...E.story.findings.map((text) => make("li", {}, ...withAddresses(text))),
      ),
      make(
        "div",
        { class: "wide" },
        make(
          "section",
          {},
          make("h2", {}, chosen.title),
          make("nav", { class: "tabs", "aria-label": "Heatmaps" }, ...tabs),
          heatmap(chosen),
          make(
            "p",
            { class: "note" },
            `${chosen.bias.length ? "Share of y_l's reconstruction" : "Share of the variance of y_l's reconstruction"} ` +
              `that is decoded from features of layer s${chosen.bias.length ? "; with the bias (b) a row sums to 1" : "; a row sums to 1"}; ${chosen.rows}, L0 ${digits(chosen.l0)}; ${E.scores_on}. A cell leads to the features of its source, ordered by what they write at its target.`,
          ),
          ...E.meaning.map((text) => make("p", { class: "note" }, text)),
        ),
        make("section", {}, make("h2", {}, "How far to trust it"), make("p", {}, E.fit.line), fitTable()),
      ),
      make("div", { class: "wide" }, replacedTable(), auditText()),
      make(
        "h2",
        {},
        E.story.features.some(([, , , purity]) => purity !== null)
          ? "A few features: of these layers the ones with the purest images"
          : "A few features: of these layers the busiest that are not always on",
      ),
      fewFeatures(),
      ...(await steeredExample()),
      ...example.nodes,
      make("h2", {}, "Features by layer"),
      layerLinks(),
      make("h2", {}, "Images taken apart"),
      graphLinks(),
      ...(Object.keys(E.links).length ? [make("h2", {}, "Every study"), studyLinks()] : []),
      make("h2", {}, "Measured on"),
      facts(E.facts),
    ],
  };
}

function replacedTable() {
  if (!E.replaced.length) return "";
  const pair = ([top1, loss]) => `${(100 * top1).toFixed(1)} / ${loss.toFixed(3)}`;
  return make(
    "section",
    {},
    make("h2", {}, "All MLPs replaced by the CLT"),
    table(
      ["top-1 % / nats", "with CLT", "unaltered", "floor: mean", "floor: zero"],
      E.replaced.map((r) => [r.rows, pair([r.top1, r.loss]), pair(r.unaltered), pair(r.mean), pair(r.zero)]),
    ),
  );
}

function auditText() {
  const audit = E.bar.find((each) => each.name === "Audit");
  return make(
    "section",
    {},
    make("h2", {}, "Audit"),
    make("p", { class: audit.level }, ...withCode(audit.text)),
  );
}

function fitTable() {
  const kinds = Object.keys(E.fit.r2);
  const two = (v) => (v === null ? "–" : v.toFixed(2));
  return table(
    ["Layer", ...kinds.map((kind) => `R², ${kind}`), "L0", "Silent"],
    E.fit.l0.map((l0, s) => [
      String(s),
      ...kinds.map((kind) => {
        const value = E.fit.r2[kind][s];
        return make(
          "span",
          { class: value !== null && value < 0 ? "bad" : "" },
          value !== null && value < 0 ? `${two(value)} worse than the mean` : two(value),
        );
      }),
      digits(l0),
      `${(100 * E.fit.silent[s]).toFixed(1)} %`,
    ]),
    "tight",
  );
}

const fewFeatures = () =>
  make(
    "div",
    { class: "few" },
    ...E.story.features.map(([s, i, images, purity, label, chance]) =>
      make(
        "section",
        {},
        make("h3", {}, featureLink(s, i)),
        make("div", {}, ...images.map(([place, map]) => imageLink(place, 56, caption(place), { map })), " "),
        make(
          "p",
          { class: "soft" },
          purity === null
            ? "no labels"
            : `${percent(purity)} of its top images are ${className(label)}, a random set of images ${percent(chance)}`,
        ),
      ),
    ),
  );

// One image before and after its feature is scaled, beside its graph.
async function steeredExample() {
  if (!E.story.steered) return [];
  const [row, name, factor] = E.story.steered,
    { steered } = await graphOf(row);
  const found = steered.features.find((f) => address(f.layer, f.feature) === name);
  const values = found.p[E.factors.indexOf(factor)],
    label = E.images.label[row];
  const most = steered.classes.map((_, j) => [Math.max(steered.clean[j], values[j]), j]);
  const five = most
    .sort((a, b) => b[0] - a[0])
    .slice(0, 5)
    .map(([, j]) => j)
    .sort((a, b) => a - b);
  const pairs = (shown) => five.map((j) => [steered.classes[j], shown[j]]);
  return [
    make("h2", {}, `Image ${row} with feature ${name} scaled by ${factor}`),
    make(
      "p",
      {},
      link(`steer/${row}/${name}`, "Other features and factors", { factor }),
      " · ",
      link(`graph/${row}`, "What drives its logit: graph", { node: name }),
    ),
    make(
      "div",
      { class: "trio" },
      picture(row, 110, caption(row)),
      make(
        "section",
        {},
        make("h3", {}, "Before"),
        probabilities(pairs(steered.clean), label, "Probabilities before"),
      ),
      make(
        "section",
        {},
        make("h3", {}, "After"),
        probabilities(pairs(values), label, "Probabilities after"),
      ),
    ),
  ];
}

// The strongest part of the same image's graph; a node leads to the graph itself.
async function exampleGraph() {
  if (!E.story.steered) return { draw: () => {}, nodes: [] };
  const [row] = E.story.steered,
    graph = await graphOf(row);
  withIds(graph);
  const drawing = make("div", { class: "graph" });
  const state = { share: 80, pins: new Set(), groups: [], node: "" };
  const open = ({ node }) => {
    location.hash = href(`graph/${row}`, { node });
  };
  drawing.redraw = () => drawGraph(drawing, graph, state, visibleNodes(graph, state), open);
  return {
    draw: drawing.redraw,
    nodes: [
      make("h2", {}, `What drives ${graph.target} on it`),
      claim(),
      drawing,
      make("p", {}, link(`graph/${row}`, "All of the graph, with what each node is")),
    ],
  };
}

const layerLinks = () =>
  make(
    "p",
    { class: "chips" },
    ...LAYERS.map((s) => link(`layer/${s}`, `layer ${s}: ${E.with_page[s]}`, {}, { class: "chip" })),
  );

function graphLinks() {
  if (!E.with_graph.length) return make("p", { class: "soft" }, E.no_graphs ?? "None: --graphs was 0.");
  return make(
    "div",
    { class: "shelf" },
    ...E.with_graph.map((row, j) =>
      make(
        "figure",
        {},
        make("a", { href: href(`graph/${row}`), class: "image" }, picture(row, 72, caption(row))),
        make("div", {}, link(`graph/${row}`, "graph"), " · ", link(`image/${row}`, "image")),
        make("div", { class: "soft" }, `what drives ${cut(E.graph_targets[j], 18)}`),
      ),
    ),
  );
}

const studyLinks = () =>
  make(
    "ul",
    {},
    ...Object.entries(E.links).map(([text, to]) => make("li", {}, make("a", { href: to }, text))),
  );

// A text in which every feature, as in 7:256, and every image leads to its page.
function withAddresses(text) {
  return text.split(/(\b\d+:\d+\b|\bimage \d+\b)/).map((part) => {
    if (/^\d+:\d+$/.test(part)) return featureLink(...part.split(":").map(Number));
    return /^image \d+$/.test(part) ? link(`image/${part.slice(6)}`, part) : part;
  });
}

const withCode = (text) =>
  text
    .split(/(vit-clt [a-z-]+|--[a-z-]+)/)
    .map((part) => (/^(vit-clt |--)/.test(part) ? make("code", {}, part) : part));
