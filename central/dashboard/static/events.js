// Events of the past, a page at a time, each with a small picture of its section.

import { colourTable } from "./colours.js";
import { element, utc } from "./format.js";

// So few that a list is not longer than two screens of a phone.
const SIZE = matchMedia("(max-width: 620px)").matches ? 8 : 12;
const SOON_MS = 1000;
const table = colourTable("batlow");

function picture({ shape: [nz, nx], hex }) {
  const canvas = document.createElement("canvas");
  canvas.width = nx;
  canvas.height = nz;
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  const image = context.createImageData(nx, nz);
  for (let i = 0; i < nz * nx; i++) {
    const place = 3 * parseInt(hex.slice(2 * i, 2 * i + 2), 16);
    image.data.set([table[place], table[place + 1], table[place + 2], 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The address of an event's page. */
export const address = (map) => `/events/${map.survey}/${map.event}`;

export class Events {
  /** `onChoose(map)` is called with the summary of the event that is chosen. */
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.query = { only: "all", survey: null };
    this.pages = [null]; // Ids before which the pages up to this one begin.
    this.after = null;
    this.marked = null;
    this.soon = 0;
    this.asked = 0;
    const turn = (change) => () => {
      change();
      this.refresh();
    };
    document.getElementById("older").addEventListener("click", turn(() => this.pages.push(this.after)));
    document.getElementById("newer").addEventListener("click", turn(() => this.pages.pop()));
    for (const button of document.querySelectorAll("[data-only]")) {
      button.addEventListener("click", () => this.choose({ only: button.dataset.only }));
    }
  }

  choose(query) {
    this.query = { ...this.query, ...query };
    this.pages = [null];
    for (const button of document.querySelectorAll("[data-only]")) {
      button.setAttribute("aria-pressed", String(button.dataset.only === this.query.only));
    }
    this.refresh();
  }

  /** After news; many within a moment are one. Older pages stay as they are. */
  refreshSoon() {
    if (this.soon || this.pages.length > 1) return;
    this.soon = setTimeout(() => {
      this.soon = 0;
      this.refresh();
    }, SOON_MS);
  }

  async refresh() {
    const question = ++this.asked;
    const query = new URLSearchParams({ size: SIZE, only: this.query.only, preview: 1 });
    if (this.query.survey !== null) query.set("survey", this.query.survey);
    if (this.pages.at(-1) !== null) query.set("before", this.pages.at(-1));
    let content;
    try {
      content = await (await fetch(`/api/events?${query}`)).json();
    } catch {
      return; // The feed says that the centre is away.
    }
    if (question !== this.asked || !content.events) return;
    this.after = content.before;
    document.getElementById("older").disabled = content.before === null;
    document.getElementById("newer").disabled = this.pages.length === 1;
    document.getElementById("e-none").hidden = content.events.length > 0;
    const list = document.getElementById("events");
    // Who moves through the list by keyboard stays where they were.
    const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    list.replaceChildren(...content.events.map((map) => this.entry(map)));
    if (focused) list.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  entry(map) {
    const item = document.createElement("li");
    const link = element("a");
    link.href = address(map);
    link.dataset.key = `${map.survey}-${map.event}`;
    const text = document.createElement("div");
    text.append(element("b", `Event ${map.event}`));
    if (map.partial) text.append(" ", element("small", "partial", "warn"));
    text.append(element("span", utc(map.sample_time_us), "sub"));
    text.append(element("span", `${map.devices.length} of ${map.n_devices} devices, ±${Math.round(map.uncertainty_mean_mps)} m/s`, "sub"));
    // The kind of each reason; the event itself has them in full.
    if (map.flags.length) text.append(element("span", `flagged: ${map.flags.map((flag) => flag.split(":")[0]).join(", ")}`, "why"));
    link.title = map.flags.join("\n");
    link.append(picture(map.preview), text);
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.onChoose(map);
      document.getElementById("section").scrollIntoView({ block: "start" });
    });
    if (link.dataset.key === this.marked) link.setAttribute("aria-current", "true");
    item.append(link);
    return item;
  }

  mark(map) {
    this.marked = `${map.survey}-${map.event}`;
    for (const link of document.querySelectorAll("#events a")) {
      if (link.dataset.key === this.marked) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}
