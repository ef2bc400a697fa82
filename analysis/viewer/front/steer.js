"use strict";
// One image before and after one of its features is scaled: class probabilities, beside chance.

async function showSteer([text, feature], params) {
  const row = Number(text),
    { steered } = await graphOf(row);
  if (!steered.features.length)
    throw new Error(`No feature of image ${row} was steered: those of its graph are always on.`);
  const names = steered.features.map((f) => address(f.layer, f.feature));
  if (feature !== undefined && !names.includes(feature))
    throw new Error(`Feature ${feature} was not steered on image ${row}; ${names.join(", ")} were.`);
  const chosen = steered.features[Math.max(0, names.indexOf(feature))];
  const factors = [...E.factors, 1].sort((a, b) => a - b);
  const change = (values) => Math.max(...values.map((p, j) => Math.abs(p - steered.clean[j])));
  const strongest =
    E.factors[chosen.p.map(change).reduce((best, v, at, all) => (v > all[best] ? at : best), 0)];
  const state = {
    factor: params.factor && factors.includes(Number(params.factor)) ? Number(params.factor) : strongest,
  };
  const after = make("section", {}),
    say = make("p", { role: "status" });
  const slider = make("input", {
    type: "range",
    id: "factor",
    min: 0,
    max: factors.length - 1,
    value: factors.indexOf(state.factor),
  });
  const shown = make("output", {});
  const name = address(chosen.layer, chosen.feature);
  const pairs = (values) => steered.classes.map((c, j) => [c, values[j]]);
  const label = E.images.label[row];
  const update = () => {
    keep(`steer/${row}/${name}`, { factor: state.factor });
    const at = E.factors.indexOf(state.factor),
      values = at < 0 ? steered.clean : chosen.p[at];
    shown.textContent = ` z × ${state.factor}${{ 0: ", silenced", 1: ", unchanged" }[state.factor] ?? ""}`;
    const most = values.map((p, j) => [Math.abs(p - steered.clean[j]), j]).sort((a, b) => b[0] - a[0])[0][1];
    const control = at < 0 ? 0 : chosen.control_change[at][most];
    say.textContent =
      at < 0
        ? "A factor of 1 is the model itself."
        : `${answerName(steered.classes[most])} changes most: ${percent(steered.clean[most])} before, ${percent(values[most])} after. ` +
          (control === null
            ? "No other feature of the layer fires here to compare with."
            : `The ${chosen.controls.length} features of layer ${chosen.layer} that write about as much on this image, scaled alike, ` +
              `change it by ${digits(100 * control, 2)} points on average.`);
    after.replaceChildren(
      make("h2", {}, `After: ${name} × ${state.factor}`),
      probabilities(pairs(values), label, "Probabilities after"),
    );
  };
  slider.addEventListener("input", () => {
    state.factor = factors[Number(slider.value)];
    update();
  });
  const place = names.indexOf(name);
  const beside = (n) => (names[n] ? [`steer/${row}/${names[n]}`, names[n]] : []);
  return {
    title: `steering image ${row}`,
    ready: update,
    nodes: [
      steps(beside(place - 1), beside(place + 1), [`graph/${row}`, `graph of image ${row}`, { node: name }]),
      make("h1", {}, `Image ${row} with feature ${called(chosen.layer, chosen.feature)} turned up or down`),
      make(
        "p",
        { class: "chips" },
        "Feature: ",
        ...names.map((each) =>
          link(
            `steer/${row}/${each}`,
            called(...each.split(":").map(Number)),
            {},
            { class: "chip", "aria-current": each === name ? "page" : null },
          ),
        ),
      ),
      make(
        "div",
        { class: "row" },
        picture(row, 110, caption(row)),
        make(
          "p",
          {},
          featureLink(chosen.layer, chosen.feature),
          " fires on this image. Every MLP is replaced by the CLT " +
            "with its errors added back, so that everything else is the model itself; all later layers answer to the change.",
        ),
      ),
      make("label", { class: "slider" }, "Scale ", slider, shown),
      say,
      make(
        "div",
        { class: "wide even" },
        make(
          "section",
          {},
          make("h2", {}, "Before"),
          probabilities(pairs(steered.clean), label, "Probabilities before"),
        ),
        after,
      ),
      make(
        "p",
        { class: "note" },
        "The factor shown first is the one of largest change; the features are those of the graph with the largest " +
          "total effects, without those that fire on more than 90 % of images.",
      ),
      make(
        "p",
        { class: "note" },
        `The ${steered.classes.length} classes that hold most before or after; ✓ is the image's own. ${E.context}.`,
      ),
    ],
  };
}
