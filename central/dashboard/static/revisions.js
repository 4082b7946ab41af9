// The maps of an event side by side: one colour scale for all velocities, and one for all uncertainties.

import { colourTable } from "./colours.js";
import { count, element } from "./format.js";
import { percentile, picture } from "./section.js";

const MOST = 8; // Maps shown, the newest; the list above the section has all.
const CLIP = 0.98; // Of the uncertainties, as in the section.
const SCALES = { velocity: "batlow", uncertainty: "lajolla" };

/** `read(map)` resolves to {velocity, uncertainty}; `onChoose(map)` is called with the map that is clicked. */
export class Revisions {
  constructor(root, read, onChoose) {
    this.root = root;
    this.read = read;
    this.onChoose = onChoose;
    this.values = new Map(); // Of one event, by the id of the map.
    this.shown = [];
  }

  /** Shows `maps`, newest first, from the oldest to the newest; `chosen` is the id of the one above. */
  async show(maps, chosen, fit) {
    const question = (this.question = {});
    this.root.hidden = maps.length < 2;
    if (this.root.hidden) return;
    const newest = maps.slice(0, MOST).reverse();
    // A map that cannot be read any more is left out.
    const found = await Promise.all(newest.map((map) => this.values.get(map.id) ?? this.read(map).catch(() => null)));
    if (question !== this.question) return;
    const few = newest.filter((_, i) => found[i]);
    this.values = new Map(newest.map((map, i) => [map.id, found[i]]));
    this.shown = few;
    const left = maps.length - few.length;
    this.root.querySelector("small").textContent = left ? `the newest ${few.length} of ${maps.length}` : "";
    this.root.querySelector("ul").replaceChildren(...few.map((map) => this.item(map, map.id === chosen)));
    this.draw(fit);
  }

  item(map, chosen) {
    const made = element("li");
    const several = new Set(this.shown.map((one) => one.model_hash)).size > 1;
    const link = element("a", `Revision ${map.revision}${several ? `, model ${map.model_hash.slice(0, 8)}` : ""}`);
    link.href = `/events/${map.survey}/${map.event}?map=${map.id}`;
    if (chosen) link.setAttribute("aria-current", "true");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.onChoose(map);
    });
    made.append(link);
    for (const name of Object.keys(SCALES)) {
      const canvas = element("canvas");
      canvas.dataset.of = name;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${name} of revision ${map.revision}`);
      made.append(canvas);
    }
    made.append(...facts(map).map((text) => element("span", text)));
    return made;
  }

  /** Draws what is shown; with `fit` the colours of the velocities span those of all maps, else the survey's. */
  draw(fit) {
    if (this.root.hidden || !this.shown.length) return;
    const surveys = this.shown.map((map) => map.provenance.acquisition);
    const all = this.shown.map((map) => this.values.get(map.id));
    const least = (lists) => lists.reduce((low, list) => list.reduce((a, b) => Math.min(a, b), low), Infinity);
    const most = (lists) => lists.reduce((high, list) => list.reduce((a, b) => Math.max(a, b), high), -Infinity);
    const speeds = fit
      ? all.map((one) => one.velocity)
      : surveys.map((survey) => [survey.velocity_min_mps, survey.velocity_max_mps]);
    const limits = {
      velocity: [least(speeds), Math.max(most(speeds), least(speeds) + 10)],
      uncertainty: [0, Math.max(1, ...all.map((one) => percentile(one.uncertainty, CLIP)))],
    };
    for (const [name, colours] of Object.entries(SCALES)) {
      const table = colourTable(colours);
      const [low, high] = limits[name];
      const scale = this.root.querySelector(`[data-scale="${name}"]`);
      scale.querySelector("b").textContent = count(low);
      scale.querySelector("i").textContent = `${count(high)} m/s`;
      paint(scale.querySelector("canvas"), picture(Float32Array.from({ length: 256 }, (_, i) => i), 1, 256, table, 0, 255));
      this.root.querySelectorAll(`li [data-of="${name}"]`).forEach((canvas, i) => {
        const { n_depth: nz, n_width: nx } = surveys[i];
        paint(canvas, picture(all[i][name], nz, nx, table, low, high));
      });
    }
  }
}

function paint(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").drawImage(image, 0, 0);
}

/** How a map was made, its misfit, and its uncertainty. */
function facts(map) {
  const made = map.provenance.refinement;
  const uncertain = `±${count(map.uncertainty_mean_mps)} m/s on average`;
  if (!made) return ["Predicted by the decoder", `${map.devices.length} of ${map.n_devices} devices`, uncertain];
  const by = made.by === "latents" ? "its latents" : made.fetched ? "the fetched recording" : "the given recording";
  const [before, after] = made.misfit.map((size) => size.toFixed(3));
  return [
    `Refined by ${by}, ${made.iterations} iterations`,
    `Misfit ${before} to ${after} ${made.misfit_unit}`,
    uncertain,
  ];
}
