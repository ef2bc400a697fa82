"use strict";
// The page of one feature: what it fires on, writes and raises, and where it takes part.

async function showFeature([text]) {
  const found = /^(\d+):(\d+)$/.exec(text ?? "");
  if (!found) throw new Error(`“${text}” is no feature; 7:12 is feature 12 of layer 7.`);
  const [s, i] = [Number(found[1]), Number(found[2])];
  const layer = await layerOf(s),
    j = layer.at.get(i);
  if (j === undefined) throw new Error(`Feature ${text} has no page here.`);
  const page = await pageOf(layer, j);
  const around = listed.some(([t, k]) => t === s && k === i) ? listed : layer.feature.map((k) => [s, k]);
  const at = around.findIndex(([t, k]) => t === s && k === i);
  const beside = (n) => (around[n] ? [`feature/${address(...around[n])}`, address(...around[n])] : []);
  const note =
    `Frames: patches where the feature is active (${key("orange")} positive, ${key("blue")} ` +
    `negative); full colour is |z| = ${digits(page.scale)}. Below each image: z of its strongest ` +
    `row, and z of the class token (CLS). Images are numbered as in the data.`;
  return {
    title: text,
    nodes: [
      steps(beside(at - 1), beside(at + 1), [`layer/${s}`, `layer ${s}`]),
      make("h1", {}, `Feature ${text}`, nameOf(s, i) ? make("span", { class: "named" }, ` ${nameOf(s, i)}`) : ""),
      make("p", { class: "lead" }, sentence(layer, j)),
      facts(featureFacts(layer, j, page)),
      takesPart(s, i),
      make("div", { class: "row" }, make("h2", {}, "Most active images"), mapSwitch()),
      shelf(page.top, 118),
      rich(note),
      make("div", { class: "charts" }, writesChart(page), effectsChart(page), histogram(page)),
      make("h2", {}, "Images drawn at random"),
      make(
        "p",
        { class: "note" },
        "By the quarter of the active images they come from, ordered by " +
          "|z| of the strongest row; of at most 64 active images, drawn at random.",
      ),
      make(
        "div",
        { class: "bands" },
        ...page.bands.map(([low, high, some]) =>
          make(
            "section",
            {},
            make("h3", {}, `${100 * low} to ${100 * high} %`),
            some.length ? shelf(some, 86) : make("p", { class: "soft" }, "too few active images"),
          ),
        ),
      ),
      make("h2", {}, "Features that write alike"),
      near(page),
    ],
  };
}

function sentence(layer, j) {
  const fires = `Fires on ${percent(layer.images[j])} of images`;
  const pure =
    layer.purity[j] === null
      ? ""
      : `; ${percent(layer.purity[j])} of its top images are ${className(layer.label[j])} (by chance ${percent(layer.chance[j])})`;
  const raises =
    layer.effect[j] === null || layer.raised[j] < 0
      ? ""
      : `; directly raises ${effectName(layer.raised[j])} most, ${signed(layer.effect[j])} logits`;
  return `${fires}${pure}${raises}.`;
}

function featureFacts(layer, j, page) {
  return {
    "Active on":
      `${percent(layer.images[j])} of images (${page.active} of ${E.n_images}), ` +
      `${percent(layer.cls[j])} of CLS rows, ${percent(layer.patch[j])} of patch rows`,
    "Top images":
      layer.purity[j] === null
        ? "no labels"
        : `${percent(layer.purity[j])} ${className(layer.label[j])}, which is ${percent(layer.base[j])} of all ` +
          `images; the most common class of as many random images: ${percent(layer.chance[j])}`,
    Name: naming(page.naming),
    Data: E.context,
  };
}

// The text tested as its name on held-out images, beside what chance gives.
function naming(found) {
  if (!found) return "not sought";
  if (found.auc === null) {
    const reasons = {
      rare: `none: to test one it must fire on 5 images of either half (on ${found.fires} of the ${found.n} held out)`,
      "always on": `none: to test one it must be silent on 5 images of either half (it fires on ${found.fires} of the ${found.n} held out)`,
      "no evidence": "none: nothing it writes or fires on proposes a text",
    };
    return reasons[found.reason] ?? `none: ${found.reason}`;
  }
  const chance =
    `other texts ${digits(found.texts_mean)}, 95 % of them up to ${digits(found.texts_high)}` +
    (found.features_mean === null
      ? ""
      : `; this text for features of equal rate ${digits(found.features_mean)}, at most ${digits(found.features_high)}`);
  const start = found.name ? found.text : `none: “${found.text}” was tested and is ${found.reason}`;
  return (
    `${start}. It foretells where the feature fires with an AUC of ${digits(found.auc)} [${digits(found.auc_low)}, ` +
    `${digits(found.auc_high)}] on ${found.n} held-out images, on ${found.fires} of which it fires (${chance}). ` +
    `Proposed by: ${found.evidence}.`
  );
}

function takesPart(s, i) {
  const rows = E.in_graphs?.[address(s, i)] ?? [];
  if (!rows.length) return "";
  const links = rows.slice(0, 12).map((row) => link(`graph/${row}`, `image ${row}`, { node: address(s, i) }));
  return make("p", {}, "In the graphs of ", ...links.flatMap((each, n) => (n ? [", ", each] : [each])), ".");
}

function shelf(examples, side) {
  return make(
    "div",
    { class: "shelf" },
    ...examples.map(([place, value, cls, map]) => {
      const text = `z ${digits(value)}${cls === null ? "" : `, CLS ${digits(cls)}`}`;
      return make(
        "figure",
        {},
        imageLink(place, side, `${caption(place)}; ${text}`, { map }),
        make("div", {}, text),
        make("div", { class: "soft" }, className(E.images.label[place]), make("br"), imageName(place)),
      );
    }),
  );
}

function near(page) {
  if (!page.near.length) return make("p", { class: "soft" }, "None: no other feature shares a target.");
  const rows = page.near.map(([layer, feature, cosine, targets, together, shown]) => [
    shown ? featureLink(layer, feature) : `${address(layer, feature)} (no page)`,
    digits(cosine),
    String(targets),
    together === null ? "not measured" : percent(together),
  ]);
  return make(
    "div",
    {},
    table(["Feature", "Cosine of writes", "Shared targets", "Active together"], rows),
    make(
      "p",
      { class: "note" },
      "(no page): not one of the features shown here. Not " +
        "measured: its layer was not looked at, or neither feature is active.",
    ),
  );
}
