"use strict";
// Images, cut out of the sheets, with what a feature does on their patches laid over them.

const sheetImages = {};
const shows = { maps: true };

function sheet(number) {
  if (!sheetImages[number]) {
    const image = new Image();
    // a page in a notebook carries its sheets with it
    image.src = E.sheet_data?.[number] ?? `images/sheet-${padded(number, 3)}.png`;
    sheetImages[number] = image;
  }
  return sheetImages[number];
}

// An activation map as text: a letter a patch, a number for a run of silent ones.
function unfolded(text) {
  const found = new Array(E.grid.down * E.grid.across).fill(0);
  let at = 0;
  for (const [part] of text.matchAll(/\d+|[A-Za-z]/g)) {
    if (part <= "9") at += Number(part);
    else found[at++] = part <= "Z" ? part.charCodeAt(0) - 64 : 96 - part.charCodeAt(0);
  }
  return found;
}

// An image; with `map` a feature's activation on each patch, with `marks` patches by number.
function picture(place, side, label, { map = null, marks = [] } = {}) {
  const { width, height } = E.image,
    across = E.sheet;
  const scale = side / Math.max(width, height);
  const canvas = make("canvas", { role: "img", "aria-label": label, title: label });
  const sharp = Math.min(3, window.devicePixelRatio || 1);
  canvas.width = Math.round(width * scale * sharp);
  canvas.height = Math.round(height * scale * sharp);
  canvas.style.width = `${Math.round(width * scale)}px`;
  canvas.style.height = `${Math.round(height * scale)}px`;
  const at = place % (across * across);
  const image = sheet(Math.floor(place / (across * across)));
  canvas.redraw = () => {
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = canvas.width < width; // enlarged pixels stay pixels
    const x = (at % across) * width,
      y = Math.floor(at / across) * height;
    pen.drawImage(image, x, y, width, height, 0, 0, canvas.width, canvas.height);
    if (map && shows.maps) overlay(pen, canvas, unfolded(map));
    for (const patch of marks) frame(pen, canvas, patch);
    canvas.dataset.drawn = "yes";
  };
  if (image.complete && image.naturalWidth) canvas.redraw();
  else image.addEventListener("load", canvas.redraw, { once: true });
  return canvas;
}

function box(canvas, patch) {
  const w = canvas.width / E.grid.across,
    h = canvas.height / E.grid.down;
  return [(patch % E.grid.across) * w, Math.floor(patch / E.grid.across) * h, w, h];
}

function overlay(pen, canvas, map) {
  map.forEach((step, i) => {
    if (!step) return;
    const [x, y, w, h] = box(canvas, i);
    pen.fillStyle = pen.strokeStyle = step > 0 ? E.palette.orange : E.palette.blue;
    pen.globalAlpha = 0.1 + (0.6 * Math.abs(step)) / E.steps;
    pen.fillRect(x, y, w, h);
    pen.globalAlpha = 0.9; // the frame tells a weak patch from a silent one
    pen.lineWidth = Math.max(1, canvas.width / 100);
    pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
  });
  pen.globalAlpha = 1;
}

function frame(pen, canvas, patch) {
  const [x, y, w, h] = box(canvas, patch);
  pen.strokeStyle = E.palette.orange;
  pen.lineWidth = Math.max(2, canvas.width / 60);
  pen.strokeRect(x + 1, y + 1, w - 2, h - 2);
}

// A picture that leads to the page of its image, where there is one.
function imageLink(place, side, label, more = {}) {
  const canvas = picture(place, side, label, more);
  return E.imageBlocks
    ? make("a", { href: href(`image/${E.images.row[place]}`), class: "image" }, canvas)
    : canvas;
}

function mapSwitch() {
  const toggle = make("input", { type: "checkbox", checked: shows.maps });
  toggle.addEventListener("change", () => {
    shows.maps = toggle.checked;
    document.querySelectorAll("#view canvas").forEach((canvas) => canvas.redraw());
  });
  return make("label", {}, toggle, " activation maps");
}
