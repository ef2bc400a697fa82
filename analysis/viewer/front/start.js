"use strict";
// Which view is shown, what is always in sight, and the keys.

const VIEWS = {
  "": E.heatmaps ? showOverview : showList,
  features: showList,
  layer: showList,
  feature: showFeature,
  image: showImage,
  graph: showGraph,
  steer: showSteer,
};
const scrolls = new Map();
let turn = 0,
  shownHash = null;

function parsed() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    name: path.split("/")[0],
    args: path.split("/").slice(1).map(decodeURIComponent),
    params: Object.fromEntries(new URLSearchParams(query.replace(/\+/g, "%2B"))),
  };
}

async function route() {
  const mine = ++turn,
    { name, args, params } = parsed();
  if (shownHash !== null) scrolls.set(shownHash, scrollY);
  let found;
  try {
    if (!Object.hasOwn(VIEWS, name) || (!E.heatmaps && ["image", "graph", "steer"].includes(name)))
      throw new Error(`There is no page “${name}” here.`);
    found = await VIEWS[name](args, params);
  } catch (error) {
    found = {
      title: "not found",
      nodes: [steps([], [], ["", "overview"]), make("p", { role: "alert", class: "bad" }, error.message)],
    };
  }
  if (mine !== turn) return; // another view was asked for meanwhile
  const view = byId("view");
  view.dataset.view = name || "overview";
  view.replaceChildren(...found.nodes.filter((node) => node !== ""));
  found.ready?.();
  document.title = `${found.title} · ${E.title}`;
  shownHash = location.hash;
  scrollTo(0, scrolls.get(shownHash) ?? 0);
  view.dataset.shown = location.hash || "#/";
}

// ---- always in sight -------------------------------------------------------------------------

function showBar() {
  byId("bar").append(
    ...(E.bar ?? []).map(({ name, short, text, level }) =>
      make(
        "details",
        { class: level ?? "", name: "bar" },
        make("summary", {}, make("b", {}, name), ` ${short}`),
        make("p", {}, ...withCode(text)),
      ),
    ),
  );
}

// ---- finding ---------------------------------------------------------------------------------

function jump(text) {
  const asked = text.trim();
  if (/^\d+:\d+$/.test(asked)) return `feature/${asked}`;
  const numbered = /^(image|layer|graph)\s*(\d+)$/i.exec(asked);
  if (numbered) return `${numbered[1].toLowerCase()}/${numbered[2]}`;
  if (/^\d+:$/.test(asked)) return `layer/${asked.slice(0, -1)}`;
  return null;
}

function find(text) {
  const path = jump(text);
  location.hash = path ? href(path) : href("features", { q: text.trim() });
}

// ---- keys ------------------------------------------------------------------------------------

const KEYS = {
  "/": "find a feature, image, layer or class",
  "← →": "previous and next",
  u: "up",
  o: "overview",
  f: "all features",
  "arrows in the heatmap": "move between cells; Enter opens one",
  "?": "this help",
};

function keyed(event) {
  if (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
  )
    return;
  const follow = (name) => document.querySelector(`#view [data-key="${name}"]`)?.click();
  const acts = {
    "/": () => byId("goto").focus(),
    "?": () => byId("help").showModal(),
    o: () => {
      location.hash = "#/";
    },
    f: () => {
      location.hash = "#/features";
    },
    u: () => follow("up"),
    ArrowLeft: () => follow("left"),
    ArrowRight: () => follow("right"),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

function start() {
  for (const [name, colour] of Object.entries(E.palette))
    document.documentElement.style.setProperty(`--${name}`, colour);
  showBar();
  byId("home").textContent = E.heatmaps ? "Overview" : "Features";
  byId("all").hidden = !E.heatmaps;
  byId("help").append(
    make("h2", {}, "Keys"),
    facts(KEYS),
    make("form", { method: "dialog" }, make("button", {}, "Close")),
  );
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("jump").addEventListener("submit", (event) => {
    event.preventDefault();
    find(byId("goto").value);
    byId("goto").value = "";
  });
  document.addEventListener("keydown", keyed);
  // within a frame of a notebook a plain link would lead out of it
  document.addEventListener("click", (event) => {
    const to = event.target.closest?.('a[href^="#"]');
    if (!to || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    if (to.getAttribute("href") === location.hash) route();
    else location.hash = to.getAttribute("href");
  });
  window.addEventListener("hashchange", route);
  let wide = innerWidth;
  window.addEventListener("resize", () => {
    if (innerWidth === wide) return;
    wide = innerWidth;
    document.querySelector(".graph")?.redraw();
  });
  route();
  // sheets are decoded while nobody waits; of thousands of images only those that are seen
  const n = Math.min(16, Math.ceil(E.images.row.length / (E.sheet * E.sheet)));
  (window.requestIdleCallback ?? setTimeout)(() => {
    for (let i = 0; i < n; i++) sheet(i);
  });
}

start();
