// The recording of an event, one shot at a time: traces along the line, time downwards, and each receiver's misfit.

import { colourTable } from "./colours.js";
import { MARGIN, distanceAxis, percentile, picture, prepare, theme, verticalAxis } from "./section.js";

const CLIP = 0.95; // The direct wave would make the rest white.
const STRIP = 40;

export class Gather {
  constructor(canvas) {
    this.canvas = canvas;
    this.table = colourTable("vik");
    this.data = null;
  }

  /** `data`: {values, nt, nr, survey, misfits (one a receiver, or null), label, like (the canvas that it is beside)}. */
  show(data) {
    this.data = data;
    const most = percentile(data.values.map(Math.abs), CLIP) || 1;
    this.image = picture(data.values, data.nt, data.nr, this.table, -most, most);
    this.canvas.setAttribute("aria-label", data.label);
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { survey, misfits, like, nr } = this.data;
    const sized = prepare(this.canvas, (width) => like.clientHeight || width);
    const g = sized.context;
    const ink = theme();
    const margin = { ...MARGIN, right: 14 };
    const strip = misfits ? STRIP : 0;
    const cell = (sized.width - margin.left - margin.right) / survey.n_width;
    const wide = cell * survey.n_width;
    const deep = sized.height - margin.top - margin.bottom - strip;
    // Receivers are drawn where they stand, half the distance to the next on either side.
    const first = survey.receiver_cells[0];
    const apart = nr > 1 ? (survey.receiver_cells[nr - 1] - first) / (nr - 1) : 1;
    const x = margin.left + (first + 0.5 - apart / 2) * cell;
    const across = apart * nr * cell;
    g.imageSmoothingEnabled = false;
    g.save();
    g.beginPath();
    g.rect(margin.left, margin.top, wide, deep);
    g.clip();
    // Receivers without samples stay in this colour.
    g.fillStyle = ink("line");
    g.fillRect(margin.left, margin.top, wide, deep);
    g.drawImage(this.image, x, margin.top, across, deep);
    g.restore();
    g.strokeStyle = ink("soft");
    g.lineWidth = 1;
    g.strokeRect(margin.left, margin.top, wide, deep);
    const below = margin.top + deep + strip;
    distanceAxis(g, ink, { x: margin.left, y: below, wide, cells: survey.n_width, dx: survey.dx_m });
    const timeAxis = { x: margin.left, y: margin.top, tall: deep, length: survey.n_time * survey.dt_s, title: "time (s)" };
    verticalAxis(g, ink, timeAxis);
    if (misfits) this.strip(g, ink, { x, y: margin.top + deep, apart: apart * cell, misfits, left: margin.left, wide });
  }

  /** Bars from 0 to 1: how far waves through the map are from what each receiver recorded. */
  strip(g, ink, { x, y, apart, misfits, left, wide }) {
    const tall = STRIP - 8;
    const base = y + STRIP;
    misfits.forEach((misfit, i) => {
      if (misfit === null) return;
      const size = Math.min(misfit, 1) * tall;
      g.fillStyle = misfit > 0.5 ? ink("bad") : ink("accent");
      g.fillRect(x + i * apart + 0.5, base - size, Math.max(apart - 1, 1), size);
    });
    g.strokeStyle = ink("soft");
    g.strokeRect(left, base, wide, 0);
    g.fillStyle = ink("ink");
    g.textAlign = "right";
    g.textBaseline = "middle";
    g.fillText("misfit", left - 7, base - tall / 2);
  }
}
