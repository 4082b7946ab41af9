// A device's latency, losses and queue over time, each on a small canvas.

import { count, element, span, step } from "./format.js";
import { prepare, theme } from "./section.js";

const SPANS = [
  ["hour", "1 h"],
  ["days", "2 days"],
  ["months", "90 days"],
];
const HEIGHT = 104;
const MARGIN = { left: 52, right: 8, top: 8, bottom: 20 };
const CHARTS = [
  { title: "Latency", note: "longest from recording to centre", column: 1, show: (ms) => span(ms / 1000) },
  { title: "Lost records", note: "in all", column: 2, show: count, whole: true },
  { title: "Queue", note: "most records waiting on the device", column: 3, show: count, whole: true },
];
const REFRESH_MS = 10_000;

/** The history of one device; `refresh` asks the centre for it and draws it. */
export class History {
  constructor({ survey, device, interval_s }) {
    this.address = `/api/history/${survey}/${device}`;
    this.silent_s = 3 * interval_s; // A device counts as late after that.
    this.span = "hour";
    this.asked = 0;
    this.refreshedMs = 0;
    this.element = element("div");
    const choice = element("span", "", "joined");
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", "How far back");
    for (const [name, label] of SPANS) {
      const button = element("button", label);
      button.setAttribute("aria-pressed", String(name === this.span));
      button.addEventListener("click", () => {
        for (const other of choice.children) other.setAttribute("aria-pressed", String(other === button));
        this.span = name;
        this.refresh();
      });
      choice.append(button);
    }
    const head = element("div", "", "tools");
    this.note = element("small");
    head.append(choice, this.note);
    const charts = element("div", "", "charts");
    this.canvases = CHARTS.map(({ title, note }) => {
      const figure = element("figure");
      const caption = element("figcaption", title);
      caption.append(" ", element("small", note));
      const canvas = element("canvas");
      canvas.setAttribute("role", "img");
      figure.append(caption, canvas);
      charts.append(figure);
      return canvas;
    });
    this.element.append(head, charts);
  }

  /** Ask again if the last answer is old enough to differ. */
  refreshIfOld() {
    if (Date.now() - this.refreshedMs > REFRESH_MS) this.refresh();
  }

  async refresh() {
    const question = ++this.asked;
    this.refreshedMs = Date.now();
    let content;
    try {
      const answer = await fetch(`${this.address}?span=${this.span}`);
      content = await answer.json();
      if (!answer.ok) throw new Error(content.error);
    } catch (error) {
      this.note.textContent = error.message;
      return;
    }
    if (question !== this.asked) return;
    this.content = content;
    this.note.textContent = content.samples.length ? "" : "No records in this period.";
    this.draw();
  }

  draw() {
    if (this.content) CHARTS.forEach((chart, i) => drawChart(this.canvases[i], chart, this.content, this.silent_s));
  }
}

function drawChart(canvas, { title, column, show, whole }, { from_s, until_s, step_s, samples }, silent_s) {
  const points = samples.filter((sample) => sample[column] !== null).map((sample) => [sample[0], sample[column]]);
  const { context: g, width } = prepare(canvas, () => HEIGHT);
  const ink = theme();
  const wide = width - MARGIN.left - MARGIN.right;
  const tall = HEIGHT - MARGIN.top - MARGIN.bottom;
  const most = Math.max(0, ...points.map(([, value]) => value));
  const by = Math.max(step(Math.max(most, 1), 2), whole ? 1 : 0);
  const top = Math.max(Math.ceil(most / by), 1) * by;
  const x = (at) => MARGIN.left + (wide * (at - from_s)) / (until_s - from_s);
  const y = (value) => MARGIN.top + tall * (1 - Math.max(value, 0) / top);
  const range = points.length ? `${show(points.at(-1)[1])} last, ${show(most)} at most` : "none in this time";
  canvas.setAttribute("aria-label", `${title}: ${range}`);
  g.fillStyle = ink("soft");
  g.strokeStyle = ink("line");
  g.lineWidth = 1;
  g.textBaseline = "middle";
  if (!points.length) {
    g.textAlign = "center";
    g.fillText("none in this time", MARGIN.left + wide / 2, MARGIN.top + tall / 2);
    g.strokeRect(MARGIN.left, MARGIN.top + tall + 0.5, wide, 0);
    return;
  }
  g.textAlign = "right";
  for (let value = 0; value <= top + by / 2; value += by) {
    g.strokeRect(MARGIN.left, Math.round(y(value)) + 0.5, wide, 0);
    g.fillText(show(value), MARGIN.left - 6, y(value));
  }
  g.textBaseline = "top";
  g.textAlign = "left";
  g.fillText(`${span(until_s - from_s)} ago`, MARGIN.left, HEIGHT - MARGIN.bottom + 6);
  g.textAlign = "right";
  g.fillText("now", width - MARGIN.right, HEIGHT - MARGIN.bottom + 6);
  // A device that says nothing leaves a gap.
  const gap_s = Math.max(2.5 * step_s, silent_s);
  g.strokeStyle = g.fillStyle = ink("accent");
  g.lineWidth = 1.5;
  g.beginPath();
  points.forEach(([at, value], i) => {
    const joined = i > 0 && at - points[i - 1][0] <= gap_s;
    if (joined) g.lineTo(x(at), y(value));
    else g.moveTo(x(at), y(value));
  });
  g.stroke();
  for (const [at, value] of points) g.fillRect(x(at) - 1.5, y(value) - 1.5, 3, 3);
}
