"use strict";
// One image: the model's answer, the features that write most on it, and its neighbours by layer.

async function showImage([text]) {
  const row = Number(text);
  if (!Number.isInteger(row) || row < 0 || row >= E.images.row.length) {
    throw new Error(`“${text}” is no image; there are images 0 to ${E.images.row.length - 1}.`);
  }
  const readings = await readingsOf(row);
  const beside = (n) => (n < 0 || n >= E.images.row.length ? [] : [`image/${n}`, `image ${n}`]);
  const label = E.images.label[row];
  return {
    title: `image ${row}`,
    nodes: [
      steps(beside(row - 1), beside(row + 1), ["", "overview"]),
      make("h1", {}, label < 0 ? `Image ${row}` : `Image ${row}: ${className(label)}`),
      make(
        "div",
        { class: "wide even" },
        make("section", {}, picture(row, 220, caption(row)), imageActions(row)),
        make("section", {}, make("h2", {}, "The model's answer"), answer(readings, label)),
      ),
      make("h2", {}, "Features that write most, by layer"),
      make(
        "p",
        { class: "note" },
        "The largest of |z| over the image's rows, times the norm of the feature's decoder over all " +
          "its targets; z in brackets. Codes of the teacher trajectory.",
      ),
      make(
        "dl",
        { class: "layers" },
        ...LAYERS.flatMap((s) => [
          make("dt", {}, link(`layer/${s}`, `layer ${s}`)),
          make("dd", { class: "chips" }, ...strongest(readings, s)),
        ]),
      ),
      make("h2", {}, `Nearest images, by the codes of each layer's ${E.near_tokens}`),
      make("p", { class: "note" }, "Cosine of codes, the image itself left out; ✓ is of its class."),
      make(
        "dl",
        { class: "layers" },
        ...LAYERS.flatMap((s) => [
          make("dt", {}, `layer ${s}`),
          make("dd", {}, neighbours(readings, s, label)),
        ]),
      ),
    ],
  };
}

function imageActions(row) {
  if (E.with_graph.includes(row)) {
    return make(
      "p",
      {},
      link(`graph/${row}`, "What drives its logit: graph", {}, { class: "button" }),
      " ",
      steerLink(row, "button"),
    );
  }
  if (E.no_graphs) return make("p", { class: "soft" }, E.no_graphs);
  return make(
    "p",
    { class: "soft" },
    "It has no graph here. ",
    make("code", {}, "vit-clt explore"),
    " with a larger --graphs takes more images apart, ",
    make("code", {}, "vit-clt graph"),
    " those that are named.",
  );
}

// Where something was steered: the features of a graph may all be always on.
const steerLink = (row, kind = null) =>
  E.with_steering.includes(row)
    ? link(`steer/${row}`, "Turn its features up or down", {}, { class: kind })
    : "";

function answer(readings, label) {
  if (!readings.classes) return make("p", { class: "soft" }, "Not read: there is no readout of classes.");
  const first = readings.classes[0][0];
  const own = readings.own === null ? "" : ` Its own class has ${percent(readings.own)}.`;
  // an image of several classes has more than one right answer
  const right = label < 0 || !E.one_label ? "" : first === label ? " It is right." : " It is wrong.";
  return make(
    "div",
    {},
    make(
      "p",
      {},
      `${answerName(first)}, with a probability of ${percent(readings.classes[0][1])}.${right}${own}`,
    ),
    probabilities(readings.classes, label, "Probabilities of classes"),
  );
}

function strongest(readings, s) {
  const found = readings.strong[s] ?? [];
  if (!found.length) return [make("span", { class: "soft" }, "none fires")];
  return found.map(([i, z, has]) =>
    make(
      "span",
      { class: "chip" },
      featureName(s, i, has),
      make("span", { class: "soft" }, ` (${digits(z)})`),
    ),
  );
}

function neighbours(readings, s, label) {
  const found = readings.near[s] ?? [];
  if (!found.length) return make("span", { class: "soft" }, "none");
  return make(
    "div",
    { class: "shelf small" },
    ...found.map(([row, similarity]) =>
      make(
        "figure",
        {},
        imageLink(row, 56, `${caption(row)}; cosine ${digits(similarity)}`),
        make(
          "div",
          { class: "soft" },
          `${digits(similarity, 2)}${label >= 0 && E.images.label[row] === label ? " ✓" : ""}`,
        ),
      ),
    ),
  );
}
