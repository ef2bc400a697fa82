"use strict";
// Charts as SVG; their colours are classes, so that a dark page has dark charts.

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
  return make("figure", {}, make("h2", {}, title), svg, rich(note, "figcaption", "note"));
}

const line = (x1, y1, x2, y2, kind = "axis") => shape("line", { x1, y1, x2, y2, class: kind });
const bar = (x, y, width, height, colour, title) =>
  shape(
    "rect",
    { x, y, width: Math.max(0.5, width), height: Math.max(0, height), class: `fill-${colour}` },
    title,
  );

function words(x, y, text, anchor = "middle") {
  const node = shape("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

const cut = (text, n = 22) => (text.length > n ? "…" + text.slice(1 - n) : text);

function histogram(page) {
  const [low, high] = page.edges,
    width = 420,
    top = 20,
    left = 52,
    each = 96;
  const zero = -low / (high - low); // signed codes have it inside, if not too near to an end
  const marks =
    zero > 0 && zero < 1 ? [0, zero, 1].filter((s) => s === zero || Math.abs(s - zero) > 0.12) : [0, 0.5, 1];
  const shapes = [];
  page.counts.forEach((counts, kind) => {
    const base = top + each + kind * (each + 46),
      most = Math.max(...counts);
    const total = counts.reduce((a, b) => a + b, 0),
      w = (width - left - 16) / counts.length;
    const name = kind ? "patch rows" : "CLS rows";
    shapes.push(words(left, base - each - 6, `${name}: ${total} active`, "start"));
    counts.forEach((count, b) => {
      if (!count) return;
      const h = (count / most) * each,
        from = low + ((high - low) * b) / counts.length;
      shapes.push(
        bar(
          left + b * w,
          base - h,
          Math.max(1, w - 1),
          h,
          kind ? "orange" : "blue",
          `${count} ${name} with z from ${digits(from)} to ${digits(from + (high - low) / counts.length)}`,
        ),
      );
    });
    shapes.push(line(left, base, width - 16, base), words(left - 6, base, "0", "end"));
    if (most) shapes.push(words(left - 6, base - each + 10, String(most), "end"));
    for (const share of marks) {
      shapes.push(words(left + share * (width - left - 16), base + 15, digits(low + share * (high - low))));
    }
  });
  shapes.push(words(left + (width - left) / 2, top + 2 * each + 80, "activation z"));
  return chart(
    "Activations",
    `Token rows on which the feature is active, by z; N = ${E.n_images} images.`,
    width,
    top + 2 * each + 88,
    shapes,
  );
}

function writesChart(page) {
  const width = 420,
    top = 24,
    tall = 200,
    left = 60,
    base = top + tall;
  const most = Math.max(1e-9, ...page.writes.flatMap(([, a, b]) => [a ?? 0, b ?? 0]));
  const w = (width - left - 16) / page.writes.length;
  const shapes = [
    line(left, base, width - 16, base),
    words(left - 6, base, "0", "end"),
    words(left - 6, top + 10, percent(most), "end"),
    words(left + (width - left) / 2, base + 34, "target layer"),
  ];
  page.writes.forEach(([layer, ...strengths], j) => {
    const wide = Math.min(26, w * 0.42),
      middle = left + (j + 0.5) * w;
    strengths.forEach((value, kind) => {
      if (value === null) return;
      const h = (value / most) * tall;
      shapes.push(
        bar(
          middle + (kind - 1) * wide,
          base - h,
          wide - 1,
          h,
          kind ? "orange" : "blue",
          `layer ${layer}, ${kind ? "patch" : "CLS"} rows: ${percent(value)}`,
        ),
      );
    });
    shapes.push(words(middle, base + 16, String(layer)));
  });
  return chart(
    "Writes to",
    `Mean size of the feature's write on the rows where it is active, as a share of ` +
      `sqrt(E‖y‖²) there: ${key("blue")} CLS rows, ${key("orange")} patch rows.`,
    width,
    base + 44,
    shapes,
  );
}

function effectsChart(page) {
  const title = "Direct effect on class logits";
  const none = (why) => make("figure", {}, make("h2", {}, title), make("p", { class: "soft" }, why));
  if (!page.effects) {
    return none(
      E.effect_images
        ? `The feature is active on none of the first ${E.effect_images} images.`
        : "Not measured: no classes to read.",
    );
  }
  if (page.effects.every(([, , raw]) => raw === 0)) {
    return none(
      `Exactly 0 on every class, on the ${page.effect_images} of the first ${E.effect_images} images ` +
        "where it is active: from these rows and layers no logit is read directly.",
    );
  }
  const shown = page.effects,
    tall = 22,
    top = 10,
    left = 170,
    width = 420;
  const some = shown.length < E.effect_classes.length;
  const most = Math.max(1e-12, ...shown.flatMap(([, centred, raw]) => [Math.abs(centred), Math.abs(raw)]));
  const zero = left + (width - left - 14) / 2,
    unit = (width - left - 14) / 2 / most;
  const base = top + shown.length * tall,
    shapes = [line(zero, top, zero, base)];
  shown.forEach(([c, centred, raw], j) => {
    const y = top + j * tall,
      x = zero + Math.min(0, centred) * unit;
    const text = `${effectName(c)}: ${signed(centred)} centred, ${signed(raw)} raw`;
    shapes.push(
      words(left - 8, y + 15, cut(effectName(c)), "end"),
      bar(x, y + 3, Math.abs(centred) * unit, tall - 6, centred > 0 ? "green" : "grey", text),
      shape("circle", { cx: zero + raw * unit, cy: y + tall / 2, r: 4, class: "ring" }, text),
    );
  });
  shapes.push(
    words(left, base + 15, signed(-most), "start"),
    words(zero, base + 15, "0"),
    words(width - 14, base + 15, signed(most), "end"),
  );
  return chart(
    title,
    `In logits, a mean over the ${page.effect_images} of the first ${E.effect_images} ` +
      `images where it is active, attention held, norms differentiated. Bars: less the mean over classes; circles: ` +
      `as it is.${some ? " The ten highest and the ten lowest classes." : ""}`,
    width,
    base + 24,
    shapes,
  );
}

// Probabilities of classes as bars from 0 to 1; `marked` is the class of the image itself.
function probabilities(pairs, marked, label) {
  const tall = 22,
    left = 150,
    width = 380,
    unit = width - left - 60;
  const shapes = pairs.flatMap(([c, p], j) => {
    const y = j * tall,
      name = cut(answerName(c), 20);
    return [
      words(left - 8, y + 15, c === marked ? `${name} ✓` : name, "end"),
      bar(
        left,
        y + 4,
        p * unit,
        tall - 8,
        c === marked ? "green" : "blue",
        `${answerName(c)}: ${percent(p)}`,
      ),
      words(left + p * unit + 6, y + 15, percent(p), "start"),
    ];
  });
  const svg = shape("svg", {
    viewBox: `0 0 ${width} ${pairs.length * tall + 2}`,
    class: "bars",
    role: "img",
    "aria-label": label,
  });
  svg.append(...shapes);
  return svg;
}
