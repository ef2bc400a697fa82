"use strict";
// The graph of one image: nodes by layer and token row, pruned by a slider, pinned, grouped.

const SHARES = [20, 40, 60, 80, 90, 95, 100];
const EDGES = 160; // strongest ones that are drawn

async function showGraph([text], params) {
  const row = Number(text),
    graph = await graphOf(row);
  withIds(graph);
  const state = {
    share: SHARES.includes(Number(params.share)) ? Number(params.share) : 80,
    pins: new Set((params.pin ?? "").split(",").filter((id) => graph.ids.includes(id))),
    groups: params.group === undefined ? savedGroups(graph) : readGroups(params.group, graph),
    node: graph.ids.includes(params.node)
      ? params.node
      : (graph.ids.find((id) => params.node && id.startsWith(`${params.node}@`)) ?? ""),
  };
  if (state.node) state.pins.add(state.node); // what an address names is seen
  const drawing = make("div", { class: "graph" }),
    panel = make("section", { class: "panel", "aria-live": "polite" });
  const pinned = make("div", {}),
    shown = make("output", {});
  const slider = make("input", {
    type: "range",
    id: "share",
    min: 0,
    max: SHARES.length - 1,
    value: SHARES.indexOf(state.share),
  });
  const update = (change = {}) => {
    Object.assign(state, change);
    keep(`graph/${row}`, {
      share: state.share === 80 ? "" : state.share,
      pin: [...state.pins].join(","),
      group: writeGroups(state.groups, graph),
      node: state.node,
    });
    const visible = visibleNodes(graph, state);
    shown.textContent = ` ${state.share} % of the influence of these ${graph.ids.length} nodes: ${visible.size} of them`;
    drawGraph(drawing, graph, state, visible, update);
    panel.replaceChildren(...nodePanel(graph, row, state, update));
    pinned.replaceChildren(...pinnedList(graph, state, update));
  };
  slider.addEventListener("input", () => update({ share: SHARES[Number(slider.value)] }));
  drawing.redraw = () => update();
  const place = E.with_graph.indexOf(row);
  const beside = (n) =>
    E.with_graph[n] === undefined ? [] : [`graph/${E.with_graph[n]}`, `image ${E.with_graph[n]}`];
  return {
    title: `graph of image ${row}`,
    ready: update,
    nodes: [
      steps(beside(place - 1), beside(place + 1), [`image/${row}`, `image ${row}`]),
      make("h1", {}, `What drives ${graph.target} in image ${row}`),
      claim(),
      make(
        "div",
        { class: "row" },
        picture(row, 72, caption(row)),
        make(
          "p",
          {},
          `Logit ${digits(graph.logit)}; other classes ${digits(graph.floor)} on average. Norms ${graph.norms}. `,
          steerLink(row),
        ),
      ),
      make("label", { class: "slider" }, "Show ", slider, shown),
      make(
        "div",
        { class: "wide" },
        make(
          "section",
          {},
          drawing,
          rich(
            `${key("blue")} features, ${key("grey")} errors of the reconstruction, ` +
              `${key("amber")} patches, ${key("sky")} all biases, ${key("green")} the logit. Edges: direct effects, ${key("blue")} raising, ${key("orange")} lowering; width is their influence. ` +
              "Left to right: biases, class token, then patches; layers from below. Select a node to see what it is and to pin it; two that are pinned can be grouped. The address keeps all of it.",
          ),
          pinned,
        ),
        panel,
      ),
      make("p", { class: "note" }, graph.caption),
      ...graph.notes.map((note) => make("p", { class: "note" }, note)),
    ],
  };
}

// What interventions say of the effects that are drawn.
const claim = () => make("p", { class: `claim ${E.agreement.level}` }, E.agreement.text);

function withIds(graph) {
  graph.ids ??= graph.nodes.kind.map((_, n) => nodeId(graph, n));
}

function nodeId(graph, n) {
  const { kind, layer, token, feature } = graph.nodes;
  if (kind[n] === "feature") return `${address(layer[n], feature[n])}@${token[n]}`;
  if (kind[n] === "error") return `error-${layer[n]}@${token[n]}`;
  return kind[n] === "patch" ? `patch@${token[n]}` : kind[n];
}

function nodeName(graph, n) {
  const { kind, layer, token, feature } = graph.nodes;
  if (kind[n] === "feature") return `${called(layer[n], feature[n])} at ${tokenName(token[n])}`;
  if (kind[n] === "error") return `error of layer ${layer[n]} at ${tokenName(token[n])}`;
  if (kind[n] === "patch") return `image ${tokenName(token[n])}`;
  return kind[n] === "logit" ? `logit of ${graph.target}` : "all biases";
}

// ---- groups: name~id+id, several joined by a comma; "none" where saved ones were taken apart --

// Those that the graph was saved with.
const savedGroups = (graph) => Object.entries(graph.groups).map(([name, ids]) => ({ name: plainName(name), ids }));
const plainName = (name) => name.replace(/[~,+]/g, " ").trim();

function readGroups(text, graph) {
  return text
    .split(",")
    .filter(Boolean)
    .map((each) => {
      const [name, ids = ""] = each.split("~");
      return { name, ids: ids.split("+").filter((id) => graph.ids.includes(id)) };
    })
    .filter(({ ids }) => ids.length > 1);
}

function writeGroups(groups, graph) {
  if (!groups.length) return Object.keys(graph.groups).length ? "none" : "";
  return groups.map(({ name, ids }) => `${name}~${ids.join("+")}`).join(",");
}

// The file that `vit-clt graph --group` and `vit-clt explore --group` take.
function groupsFile(groups) {
  const found = Object.create(null); // a group may have any name, even "constructor"
  for (const { name, ids } of groups) {
    let free = name;
    for (let n = 2; free in found; n++) free = `${name} ${n}`;
    found[free] = ids;
  }
  return JSON.stringify(found, null, 1);
}

const groupOf = (state, id) => state.groups.findIndex(({ ids }) => ids.includes(id));

// ---- which nodes, and where ------------------------------------------------------------------

function visibleNodes(graph, state) {
  const { influence, kind } = graph.nodes;
  const ranked = influence
    .map((v, n) => [v ?? 0, n])
    .filter(([, n]) => n > 0)
    .sort((a, b) => b[0] - a[0]);
  const enough = (state.share / 100) * ranked.reduce((sum, [v]) => sum + v, 0);
  const visible = new Set([0]);
  let sum = 0;
  for (const [v, n] of ranked) {
    if (sum < enough - 1e-9) visible.add(n);
    sum += v;
  }
  graph.ids.forEach((id, n) => (state.pins.has(id) || groupOf(state, id) >= 0) && kind[n] && visible.add(n));
  return visible;
}

function units(graph, state, visible) {
  const found = state.groups.map(({ name, ids }) => ({
    name,
    group: true,
    members: ids.map((id) => graph.ids.indexOf(id)),
  }));
  for (const n of visible) if (groupOf(state, graph.ids[n]) < 0) found.push({ members: [n] });
  const top = LAYERS.at(-1);
  const height = (n) =>
    ({ logit: top + 1, patch: -1, bias: -1 })[graph.nodes.kind[n]] ?? graph.nodes.layer[n];
  for (const unit of found) {
    const levels = unit.members.map(height);
    unit.level = Math.round(levels.reduce((a, b) => a + b, 0) / levels.length);
    unit.order = Math.min(
      ...unit.members.map((n) => (graph.nodes.token[n] ?? -1) + (graph.nodes.kind[n] === "error" ? 0.5 : 0)),
    );
  }
  return found;
}

function drawGraph(frame, graph, state, visible, update) {
  const width = Math.max(300, frame.clientWidth || 640),
    gap = 46;
  const all = units(graph, state, visible),
    top = LAYERS.at(-1) + 1,
    height = (top + 2) * gap + 20;
  const levels = new Map();
  for (const unit of all) levels.set(unit.level, [...(levels.get(unit.level) ?? []), unit]);
  const left = 58;
  for (const [level, row] of levels) {
    row.sort((a, b) => a.order - b.order);
    row.forEach((unit, j) => {
      unit.x = left + ((j + 0.5) * (width - left - 10)) / row.length;
      unit.y = 18 + (top - level) * gap;
    });
  }
  const unitOf = new Map(all.flatMap((unit) => unit.members.map((n) => [n, unit])));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Graph" });
  svg.style.height = `${height}px`;
  for (const [level] of levels) {
    const name = level < 0 ? "image" : level === top ? "logit" : `layer ${level}`;
    svg.append(words(4, 22 + (top - level) * gap, name, "start"));
  }
  const chosen = unitOf.get(graph.ids.indexOf(state.node));
  svg.append(
    ...drawEdges(graph, unitOf, chosen),
    ...all.map((unit) => drawUnit(graph, state, unit, chosen, update)),
  );
  frame.replaceChildren(svg);
}

function drawEdges(graph, unitOf, chosen) {
  const merged = new Map(),
    { source, target, effect, influence } = graph.edges;
  source.forEach((from, e) => {
    const [a, b] = [unitOf.get(from), unitOf.get(target[e])];
    if (!a || !b || a === b) return;
    if (!merged.has(a)) merged.set(a, new Map());
    const sum = merged.get(a).get(b) ?? { a, b, effect: 0, influence: 0 };
    sum.effect += effect[e];
    sum.influence += influence[e];
    merged.get(a).set(b, sum);
  });
  const edges = [...merged.values()].flatMap((ends) => [...ends.values()]);
  const most = Math.max(...edges.map((edge) => edge.influence), 1e-12);
  const mine = (edge) => chosen && (edge.a === chosen || edge.b === chosen);
  const drawn = edges.sort((x, y) => y.influence - x.influence).filter((edge, e) => e < EDGES || mine(edge));
  return drawn.reverse().map((edge) => {
    const middle = (edge.a.y + edge.b.y) / 2;
    return shape("path", {
      d: `M${edge.a.x},${edge.a.y} C${edge.a.x},${middle} ${edge.b.x},${middle} ${edge.b.x},${edge.b.y}`,
      class: `edge ${edge.effect > 0 ? "raises" : "lowers"}${chosen ? (mine(edge) ? " mine" : " faint") : ""}`,
      "stroke-width": (0.4 + 4.6 * Math.sqrt(edge.influence / most)).toFixed(2),
    });
  });
}

const KIND_COLOURS = { feature: "blue", error: "grey", patch: "amber", logit: "green", bias: "sky" };

function drawUnit(graph, state, unit, chosen, update) {
  const n = unit.members[0],
    id = graph.ids[n];
  const name = unit.group ? `group ${unit.name}: ${unit.members.length} nodes` : nodeName(graph, n);
  const node = shape(
    "g",
    {
      class: `node${unit === chosen ? " chosen" : ""}${state.pins.has(id) ? " pinned" : ""}`,
      tabindex: 0,
      role: "button",
      "aria-label": name,
      "data-id": id,
    },
    name,
  );
  if (unit.group) {
    const wide = Math.min(120, 16 + 7 * unit.name.length);
    node.append(
      shape("rect", {
        x: unit.x - wide / 2,
        y: unit.y - 11,
        width: wide,
        height: 22,
        rx: 8,
        class: "fill-purple",
      }),
    );
    const text = words(unit.x, unit.y + 4, cut(unit.name, 16));
    text.setAttribute("class", "inside");
    node.append(text);
  } else {
    const kind = graph.nodes.kind[n],
      r = 4 + 6 * Math.sqrt(Math.min(1, (graph.nodes.influence[n] ?? 0) * 4));
    const drawn =
      kind === "feature" || kind === "logit"
        ? shape("circle", { cx: unit.x, cy: unit.y, r, class: `fill-${KIND_COLOURS[kind]}` })
        : shape("rect", {
            x: unit.x - r * 0.85,
            y: unit.y - r * 0.85,
            width: 1.7 * r,
            height: 1.7 * r,
            class: `fill-${KIND_COLOURS[kind]}`,
          });
    // a target of 24 pixels is large enough for a finger
    node.append(shape("circle", { cx: unit.x, cy: unit.y, r: 12, class: "target" }), drawn);
  }
  const choose = () => update({ node: state.node === id ? "" : id });
  node.addEventListener("click", choose);
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose();
    document.querySelector(`.graph [data-id="${id}"]`)?.focus();
  });
  return node;
}
