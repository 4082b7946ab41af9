// A section on a canvas: true axes in metres, one scale for both, the devices and shots along the surface.

import { colourTable } from "./colours.js";
import { step } from "./format.js";

const FONT = "12px system-ui, 'DejaVu Sans', sans-serif";
export const MARGIN = { left: 48, right: 66, top: 30, bottom: 40 };

/** `theme()(name)` is a colour of the style sheet. */
export const theme = () => {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
};

/** A canvas of the width its page gives it and `height(width)`, sharp on any screen. */
export function prepare(canvas, height) {
  const width = canvas.clientWidth || 300;
  const tall = Math.round(height(width));
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(tall * ratio);
  canvas.style.height = `${tall}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = FONT;
  return { context, width, height: tall };
}

/** The value below which `share` of the finite values lie; 0 where there is none. */
export function percentile(values, share) {
  const finite = values.filter(Number.isFinite).sort();
  return finite.length ? finite[Math.round(share * (finite.length - 1))] : 0;
}

/** Values, row by row, as a picture of one pixel each in the colours of a table. */
export function picture(values, nz, nx, table, low, high) {
  const made = new OffscreenCanvas(nx, nz);
  const context = made.getContext("2d");
  const image = context.createImageData(nx, nz);
  for (let i = 0; i < nz * nx; i++) {
    if (!Number.isFinite(values[i])) continue; // Clear: what is below shows.
    const place = Math.min(Math.max(Math.round((255 * (values[i] - low)) / (high - low)), 0), 255);
    image.data.set([table[3 * place], table[3 * place + 1], table[3 * place + 2], 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return made;
}

/** Draws one quantity of a map. `onMove({row, column})` says where the pointer or the arrow keys are. */
export class Section {
  constructor(canvas, colours, onMove) {
    this.canvas = canvas;
    this.table = colourTable(colours);
    this.data = null;
    this.cursor = null;
    const move = (event) => {
      if (!this.data) return;
      const box = canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - this.x) / this.cell);
      const row = Math.floor((event.clientY - box.top - this.y) / this.cell);
      if (row >= 0 && column >= 0 && row < this.data.nz && column < this.data.nx) onMove({ row, column });
    };
    canvas.addEventListener("pointermove", move);
    canvas.addEventListener("pointerdown", move);
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!way || !this.data) return;
      event.preventDefault();
      const { nz, nx } = this.data;
      const from = this.cursor ?? { row: nz >> 1, column: nx >> 1 };
      const far = event.shiftKey ? 10 : 1;
      const within = (n, limit) => Math.min(Math.max(n, 0), limit - 1);
      onMove({ row: within(from.row + way[0] * far, nz), column: within(from.column + way[1] * far, nx) });
    });
  }

  /** `data`: {values, nz, nx, low, high, clipped (whether values are above high), survey (the acquisition), present (device numbers), label}. */
  show(data) {
    this.data = data;
    this.image = picture(data.values, data.nz, data.nx, this.table, data.low, data.high);
    this.canvas.setAttribute("aria-label", data.label);
    this.draw();
  }

  point(cursor) {
    this.cursor = cursor;
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { nz, nx, survey } = this.data;
    const inner = (width) => (width - MARGIN.left - MARGIN.right) / nx;
    const sized = prepare(this.canvas, (width) => inner(width) * nz + MARGIN.top + MARGIN.bottom);
    const g = sized.context;
    const ink = theme();
    this.cell = inner(sized.width);
    this.x = MARGIN.left;
    this.y = MARGIN.top;
    const wide = this.cell * nx;
    const deep = this.cell * nz;
    g.imageSmoothingEnabled = false;
    g.drawImage(this.image, this.x, this.y, wide, deep);
    g.strokeStyle = ink("soft");
    g.lineWidth = 1;
    g.strokeRect(this.x, this.y, wide, deep);
    this.axes(g, ink, survey.dx_m, wide, deep);
    this.devices(g, ink, survey);
    this.bar(g, ink, wide, deep);
    if (this.cursor) {
      const x = this.x + (this.cursor.column + 0.5) * this.cell;
      const y = this.y + (this.cursor.row + 0.5) * this.cell;
      for (const [colour, width] of [["#000a", 3], [ink("cross"), 1]]) {
        g.strokeStyle = colour;
        g.lineWidth = width;
        g.beginPath();
        g.moveTo(x, this.y);
        g.lineTo(x, this.y + deep);
        g.moveTo(this.x, y);
        g.lineTo(this.x + wide, y);
        g.stroke();
      }
    }
  }

  axes(g, ink, dx, wide, deep) {
    const { nz, nx } = this.data;
    distanceAxis(g, ink, { x: this.x, y: this.y + deep, wide, cells: nx, dx });
    verticalAxis(g, ink, { x: this.x, y: this.y, tall: deep, length: nz * dx, title: "depth (m)" });
  }

  devices(g, ink, survey) {
    const present = new Set(this.data.present);
    survey.device_receivers.forEach((receivers, device) => {
      const cells = receivers.map((i) => survey.receiver_cells[i]);
      const first = this.x + Math.min(...cells) * this.cell + 1;
      const last = this.x + (Math.max(...cells) + 1) * this.cell - 1;
      const y = this.y - 9;
      const here = present.has(device);
      g.fillStyle = g.strokeStyle = here ? ink("ink") : ink("bad");
      if (here) g.fillRect(first, y, last - first, 5);
      else {
        g.setLineDash([4, 3]);
        g.lineWidth = 2;
        g.strokeRect(first, y, last - first, 5);
        g.setLineDash([]);
      }
      g.textAlign = "center";
      g.textBaseline = "bottom";
      const name = here ? `${device}` : last - first > 60 ? `${device} missing` : `${device} ✕`;
      g.fillText(name, (first + last) / 2, y - 1);
    });
    for (const cell of survey.source_cells) {
      const x = this.x + (cell + 0.5) * this.cell;
      const y = this.y + (survey.source_row + 0.5) * this.cell;
      g.beginPath();
      g.moveTo(x - 5, y - 4);
      g.lineTo(x + 5, y - 4);
      g.lineTo(x, y + 5);
      g.closePath();
      g.fillStyle = "#d1495b";
      g.fill();
      g.strokeStyle = "#fff";
      g.lineWidth = 1;
      g.stroke();
    }
  }

  bar(g, ink, wide, deep) {
    const { low, high, clipped } = this.data;
    const x = this.x + wide + 10;
    if (clipped) {
      // As in printed colour bars: an arrow says that there is more above.
      g.fillStyle = `rgb(${this.table.slice(-3).join(" ")})`;
      g.strokeStyle = ink("soft");
      g.lineWidth = 1;
      g.beginPath();
      g.moveTo(x, this.y);
      g.lineTo(x + 6, this.y - 9);
      g.lineTo(x + 12, this.y);
      g.fill();
      g.stroke();
    }
    for (let i = 0; i < deep; i++) {
      const place = 3 * Math.round(255 * (1 - i / (deep - 1)));
      g.fillStyle = `rgb(${this.table[place]} ${this.table[place + 1]} ${this.table[place + 2]})`;
      g.fillRect(x, this.y + i, 12, 1.5);
    }
    g.fillStyle = ink("ink");
    g.textAlign = "left";
    g.textBaseline = "middle";
    const by = step(high - low, 6);
    for (let v = Math.ceil(low / by) * by; v <= high + 1e-6; v += by) {
      const y = this.y + deep * (1 - (v - low) / (high - low));
      g.fillRect(x + 12, y, 4, 1);
      g.fillText(Math.round(v), x + 18, y);
    }
    g.textBaseline = "bottom";
    g.textAlign = "center";
    g.fillText("m/s", x + 30, this.y - 8);
  }
}

/** Distance along the line from the centre of the first cell, below a picture that begins at `x` and ends at `y`. */
export function distanceAxis(g, ink, { x, y, wide, cells, dx }) {
  g.fillStyle = ink("ink");
  g.textBaseline = "top";
  g.textAlign = "center";
  for (let m = 0, by = step(cells * dx, wide / 70); m <= (cells - 0.5) * dx + 1e-6; m += by) {
    const at = x + ((m / dx + 0.5) / cells) * wide;
    g.fillRect(at, y, 1, 4);
    g.fillText(m, at, y + 6);
  }
  g.fillText("distance (m)", x + wide / 2, y + 22);
}

/** Depth or time from 0 to `length`, on the left of a picture whose upper left corner is `x`, `y`. */
export function verticalAxis(g, ink, { x, y, tall, length, title }) {
  g.fillStyle = ink("ink");
  g.textBaseline = "middle";
  g.textAlign = "right";
  for (let value = 0, by = step(length, tall / 50); value <= length * (1 + 1e-9); value += by) {
    const at = y + (value / length) * tall;
    g.fillRect(x - 4, at, 4, 1);
    g.fillText(String(Number(value.toFixed(6))), x - 7, at);
  }
  g.save();
  g.translate(8, y + tall / 2);
  g.rotate(-Math.PI / 2);
  g.textAlign = "center";
  g.fillText(title, 0, 0);
  g.restore();
}

/** Velocity with depth below one column, in its band of uncertainty; the depth axis is the section's. */
export function drawProfile(canvas, map, column, row, like) {
  const { nz, nx, dx, velocity, uncertainty } = map;
  const sized = prepare(canvas, () => (like.clientWidth > 0 ? like.clientHeight : 300));
  const g = sized.context;
  const ink = theme();
  const left = MARGIN.left;
  const wide = sized.width - left - 14;
  const deep = sized.height - MARGIN.top - MARGIN.bottom;
  const [low, high] = [map.low, map.high];
  const x = (v) => left + (wide * (Math.min(Math.max(v, low), high) - low)) / (high - low);
  const y = (r) => MARGIN.top + (deep * r) / nz;
  g.strokeStyle = ink("line");
  g.fillStyle = ink("ink");
  g.lineWidth = 1;
  g.textAlign = "center";
  g.textBaseline = "top";
  for (let by = step(high - low, wide / 55), v = Math.ceil(low / by) * by; v <= high + 1e-6; v += by) {
    g.strokeRect(x(v), MARGIN.top, 0, deep);
    g.fillText(Math.round(v), x(v), MARGIN.top + deep + 6);
  }
  g.fillText("m/s", left + wide / 2, MARGIN.top + deep + 22);
  g.textAlign = "right";
  g.textBaseline = "middle";
  for (let by = step(nz * dx, deep / 50), m = 0; m <= nz * dx + 1e-6; m += by) {
    g.strokeRect(left, y(m / dx), wide, 0);
    g.fillText(m, left - 7, y(m / dx));
  }
  const trace = (value, from, to, by) => {
    for (let r = from; r !== to; r += by) {
      const i = r * nx + column;
      for (const edge of by > 0 ? [r, r + 1] : [r + 1, r]) g.lineTo(x(value(i)), y(edge));
    }
  };
  g.beginPath();
  trace((i) => velocity[i] - uncertainty[i], 0, nz, 1);
  trace((i) => velocity[i] + uncertainty[i], nz - 1, -1, -1);
  g.closePath();
  g.fillStyle = ink("accent");
  g.globalAlpha = 0.25;
  g.fill();
  g.globalAlpha = 1;
  g.beginPath();
  trace((i) => velocity[i], 0, nz, 1);
  g.strokeStyle = ink("accent");
  g.lineWidth = 2;
  g.stroke();
  g.strokeStyle = ink("soft");
  g.lineWidth = 1;
  g.strokeRect(left, y(row + 0.5), wide, 0);
}
