"use strict";
// Beside the drawing of a graph: what is pinned and grouped, and what the selected node is.

function pinnedList(graph, state, update) {
  const pins = [...state.pins].filter((id) => groupOf(state, id) < 0);
  const parts = [];
  if (pins.length) {
    parts.push(
      make(
        "p",
        { class: "chips" },
        "Pinned: ",
        ...pins.map((id) =>
          button(`${nodeName(graph, graph.ids.indexOf(id))} ×`, () => {
            state.pins.delete(id);
            update();
          }),
        ),
      ),
    );
  }
  if (pins.length > 1) {
    const name = make("input", {
      id: "group-name",
      placeholder: "name of the group",
      "aria-label": "Name of the group",
    });
    const form = make(
      "form",
      {},
      name,
      make("button", { type: "submit" }, `Group the ${pins.length} pinned`),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const given = plainName(name.value) || `group ${state.groups.length + 1}`;
      state.groups.push({ name: given, ids: pins });
      update({ pins: new Set(), node: "" });
    });
    parts.push(form);
  }
  if (state.groups.length) {
    parts.push(
      make(
        "p",
        { class: "chips" },
        "Groups: ",
        ...state.groups.map((group, g) =>
          button(`${group.name} (${group.ids.length}) ×`, () => {
            state.groups.splice(g, 1);
            update();
          }),
        ),
        make(
          "a",
          {
            class: "button",
            download: "groups.json",
            href: `data:application/json,${encodeURIComponent(groupsFile(state.groups))}`,
          },
          "Save for --group",
        ),
      ),
    );
  }
  return parts;
}

function button(text, act) {
  const node = make("button", { type: "button" }, text);
  node.addEventListener("click", act);
  return node;
}

function nodePanel(graph, row, state, update) {
  const n = graph.ids.indexOf(state.node);
  if (n < 0)
    return [
      make("h2", {}, "No node selected"),
      make("p", { class: "soft" }, "Select one to see what it is and what drives it."),
    ];
  const g = groupOf(state, state.node);
  if (g >= 0) return groupPanel(graph, state.groups[g]);
  const { kind, layer, token, feature, value, effect, total, influence } = graph.nodes;
  const about = { Influence: percent(influence[n]) };
  if (value[n] !== null)
    about[kind[n] === "feature" ? "Activation z" : kind[n] === "logit" ? "Value" : "Norm"] = digits(value[n]);
  if (effect[n] !== null) about["Direct effect"] = `${signed(effect[n])} logits`;
  if (total[n] !== null) about["With later features"] = `${signed(total[n])} logits`;
  const measured = graph.measured.find(
    ([s, t, i]) => kind[n] === "feature" && s === layer[n] && t === token[n] && i === feature[n],
  );
  about["Silenced in the model"] = measured
    ? `the logit changes by ${signed(-measured[4])}; foretold ${signed(-measured[3])}`
    : "not tried";
  const patch = token[n] === null ? -1 : token[n] - (E.has_cls ? 1 : 0);
  const pinned = state.pins.has(state.node);
  const actions = [
    button(pinned ? "Unpin" : "Pin", () => {
      if (pinned) state.pins.delete(state.node);
      else state.pins.add(state.node);
      update();
    }),
  ];
  if (kind[n] === "feature") {
    if (graph.steered.features.some((f) => f.layer === layer[n] && f.feature === feature[n])) {
      actions.push(
        link(`steer/${row}/${address(layer[n], feature[n])}`, "Steer it", {}, { class: "button" }),
      );
    }
  }
  return [
    make("h2", {}, nodeName(graph, n)),
    ...(patch >= 0 ? [picture(row, 120, `image ${row}`, { marks: [patch] })] : []),
    make("p", { class: "chips" }, ...actions),
    facts(about),
    ...(kind[n] === "feature" ? [topImages(layer[n], feature[n])] : []),
    edgeList(graph, n, "source", "Drives", update),
    edgeList(graph, n, "target", "Driven by", update),
  ];
}

function groupPanel(graph, group) {
  const members = group.ids.map((id) => graph.ids.indexOf(id));
  const sum = (column) => members.reduce((all, n) => all + (column[n] ?? 0), 0);
  return [
    make("h2", {}, `Group ${group.name}`),
    facts({
      Influence: percent(sum(graph.nodes.influence)),
      "Direct effect": `${signed(sum(graph.nodes.effect))} logits`,
    }),
    make("ul", {}, ...members.map((n) => make("li", {}, nodeName(graph, n)))),
  ];
}

// Pictures come when the layer has been read.
function topImages(s, i) {
  const shelfOf = make("div", { class: "shelf small" });
  layerOf(s).then(
    (layer) => {
      const j = layer.at.get(i);
      if (j === undefined) return;
      shelfOf.append(
        ...layer.top[j].map((place) => imageLink(place, 48, caption(place))),
        link(`feature/${address(s, i)}`, "What it fires on", {}, { class: "button" }),
      );
    },
    () => {},
  );
  return shelfOf;
}

function edgeList(graph, n, side, title, update) {
  const other = side === "source" ? "target" : "source";
  const edges = graph.edges[side]
    .flatMap((end, e) => (end === n ? [e] : []))
    .sort((a, b) => Math.abs(graph.edges.effect[b]) - Math.abs(graph.edges.effect[a]))
    .slice(0, 6);
  if (!edges.length) return "";
  return make(
    "div",
    {},
    make("h3", {}, title),
    make(
      "ul",
      { class: "edges" },
      ...edges.map((e) => {
        const m = graph.edges[other][e];
        return make(
          "li",
          {},
          button(nodeName(graph, m), () => update({ node: graph.ids[m] })),
          ` ${signed(graph.edges.effect[e])}`,
        );
      }),
    ),
  );
}
