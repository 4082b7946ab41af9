// The devices along the line, and how far a rollout has got.

import { bytes, count, element, span, utc } from "./format.js";
import { History } from "./history.js";

const STATES = { "on time": "good", late: "warn", silent: "bad", "never seen": "", revoked: "bad" };
const RANK = ["silent", "revoked", "late", "never seen", "on time"];
const ROWS = 10; // Shown at first; a section is not longer than two screens of a phone.

const $ = (id) => document.getElementById(id);
const known = (value, show) => (value === null || value === undefined ? "–" : show(value));

/** Records that never arrived, that the device dropped, and that the store lost. */
const lost = (d) => d.loss + (d.dropped ?? 0) + d.acknowledged_lost;

/** Bytes of a latent, and what they are set to until the device confirms it. */
function latent(device) {
  const made = device.latent_bytes === null ? "–" : `${device.latent_bytes} B`;
  const set = device.set_bytes;
  return set === null || set === device.latent_bytes ? made : `${made} → ${set} B`;
}

/** "0–130 m" from the survey of a map, where that is of the device's survey. */
function stretch(device, map) {
  const survey = map?.survey === device.survey ? map.provenance.acquisition : null;
  const receivers = survey?.device_receivers[device.device];
  if (!receivers) return "–";
  const cells = receivers.map((i) => survey.receiver_cells[i] * survey.dx_m);
  return `${Math.min(...cells)}–${Math.max(...cells)} m`;
}

// `text` is what the cell shows, `order` what it is sorted by; unknown comes last. `down`: the largest first.
const COLUMNS = [
  { id: "device", title: "Device", order: (d) => d.survey * 65536 + d.device },
  { id: "state", title: "State", text: (d) => d.state, order: (d) => RANK.indexOf(d.state) },
  { id: "seen", title: "Last seen", text: (d, at) => (d.last_seen_us ? `${span(Math.max(at.nowUs - d.last_seen_us, 0) / 1e6)} ago` : "never"), order: (d) => -d.last_seen_us },
  { id: "receivers", title: "Receivers", text: (d, at) => stretch(d, at.map) },
  { id: "lag", title: "Latency", number: true, down: true, text: (d) => known(d.lag_s, span), order: (d) => d.lag_s },
  { id: "lost", title: "Lost", number: true, down: true, text: (d) => count(lost(d)), order: lost },
  { id: "queue", title: "Queue", number: true, down: true, text: (d) => known(d.queue_depth, count), order: (d) => d.queue_depth },
  { id: "latent", title: "Latent", number: true, text: latent, order: (d) => d.latent_bytes },
  { id: "received", title: "Received", number: true, down: true, text: (d) => known(d.bytes_received || null, bytes), order: (d) => d.bytes_received },
];

function facts(d, at) {
  return [
    ["Receivers", stretch(d, at.map)],
    ["Model", d.model_hash ?? "–"],
    ["Firmware", [d.firmware, d.board].filter(Boolean).join(", ") || "–"],
    ["Latent", latent(d)],
    ["Records kept", `${count(d.records)}${d.gaps ? `, in ${count(d.gaps)} gaps ${count(d.loss)} missing` : ""}`],
    ["Bytes in, out", `${bytes(d.bytes_received)}, ${bytes(d.bytes_sent)}`],
    ["Encoding", known(d.encode_s, span)],
    ["Round trip", known(d.round_trip_s, span)],
    ["Clock", known(d.clock_offset_s, (s) => `${s > 0 ? "behind" : "ahead"} by ${span(Math.abs(s))}`)],
    ["Running for", known(d.uptime_s, span)],
    ["Temperature", known(d.temperature_c, (c) => `${c.toFixed(1)} °C`)],
    ["Free disk, memory", `${known(d.disk_free_bytes, bytes)}, ${known(d.memory_free_bytes, bytes)}`],
  ];
}

function troubles(d) {
  return [
    d.refusal && `Refused ${count(d.refused)}: ${d.refusal}`,
    d.rejected && `Rejected ${count(d.rejected)} recordings: ${d.rejection}`,
    d.last_error && `Had to start anew: ${d.last_error}`,
    d.dropped && `Dropped ${count(d.dropped)} records for lack of space`,
    d.acknowledged_lost && `The store lost ${count(d.acknowledged_lost)} records that it had acknowledged`,
  ].filter(Boolean);
}

/** The table of devices: sorted by a column, with a device's history and details below its row. */
export class Devices {
  constructor() {
    this.sorted = { id: "device", down: false };
    this.all = false;
    this.open = new Map(); // Key of a device to what is below its row.
    this.rows = new Map();
    this.last = null;
    const head = $("devices").tHead.rows[0];
    for (const column of COLUMNS) {
      const cell = element("th", column.order ? "" : column.title, column.number ? "n" : "");
      cell.dataset.column = column.id;
      if (column.order) {
        const button = element("button", column.title);
        button.addEventListener("click", () => this.sort(column.id));
        cell.append(button);
        $("sort").append(new Option(column.title, column.id));
      }
      head.append(cell);
    }
    $("sort").addEventListener("change", () => this.sort($("sort").value));
    $("d-all").addEventListener("click", () => {
      this.all = !this.all;
      this.draw();
    });
  }

  /** Sort by a column; the other way round where it is sorted by it already. */
  sort(id, again = true) {
    const column = COLUMNS.find((one) => one.id === id);
    const turned = again && this.sorted.id === id ? !this.sorted.down : Boolean(column.down);
    this.sorted = { id, down: turned };
    this.draw();
  }

  /** `nowUs` is the centre's clock, `map` one of the survey. */
  show(devices, nowUs, map) {
    this.last = { devices, nowUs, map };
    this.draw();
  }

  draw() {
    if (!this.last) return;
    const { devices } = this.last;
    const table = $("devices");
    $("d-none").hidden = devices.length > 0;
    table.hidden = devices.length === 0;
    $("sort-choice").hidden = devices.length < 2;
    const states = Object.keys(STATES).map((state) => [state, devices.filter((d) => d.state === state).length]);
    $("d-count").replaceChildren(
      ...states.filter(([, n]) => n).map(([state, n]) => element("span", `${n} ${state}`, `badge ${STATES[state]}`)),
    );
    $("sort").value = this.sorted.id;
    for (const cell of table.tHead.rows[0].cells) {
      if (cell.dataset.column === this.sorted.id) cell.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    const { order } = COLUMNS.find((column) => column.id === this.sorted.id);
    const way = this.sorted.down ? -1 : 1;
    const unknown = (d) => order(d) === null || order(d) === undefined;
    const sorted = [...devices].sort((a, b) => unknown(a) - unknown(b) || way * (order(a) - order(b)) || a.survey - b.survey || a.device - b.device);
    const shown = this.all ? sorted : sorted.slice(0, ROWS);
    $("d-all").hidden = devices.length <= ROWS;
    $("d-all").textContent = this.all ? `Show ${ROWS}` : `Show all ${count(devices.length)}`;
    const several = new Set(devices.map((d) => d.survey)).size > 1;
    const rows = shown.flatMap((d) => {
      const key = `${d.survey}-${d.device}`;
      const row = this.row(key, d, several);
      const open = this.open.get(key);
      if (open) this.detail(open, d);
      return open ? [row, open.row] : [row];
    });
    // Only where the order changed: what has the focus stays where it is.
    const body = table.tBodies[0];
    if (rows.length !== body.rows.length || rows.some((row, i) => row !== body.rows[i])) {
      const focused = document.activeElement;
      body.replaceChildren(...rows);
      if (body.contains(focused)) focused.focus();
    }
  }

  row(key, d, several) {
    let row = this.rows.get(key);
    if (!row) {
      row = element("tr", "", "row");
      row.dataset.key = key;
      for (const column of COLUMNS) {
        const cell = element("td", "", `c-${column.id}${column.number ? " n" : ""}`);
        cell.dataset.label = column.title;
        if (column.id === "device") {
          const button = element("button");
          button.setAttribute("aria-expanded", "false");
          cell.append(button);
        }
        row.append(cell);
      }
      row.addEventListener("click", () => this.toggle(key));
      this.rows.set(key, row);
    }
    COLUMNS.forEach((column, i) => {
      const cell = row.cells[i];
      if (column.id === "device") {
        cell.firstChild.textContent = several ? `${d.survey} / ${d.device}` : `${d.device}`;
      } else if (column.id === "state") {
        const trouble = troubles(d).map((text) => element("span", text, "trouble"));
        cell.replaceChildren(element("span", d.state, `state ${STATES[d.state]}`), ...trouble);
      } else {
        cell.textContent = column.text(d, this.last);
      }
      if (column.id === "lost") cell.classList.toggle("bad", lost(d) > 0);
    });
    return row;
  }

  toggle(key) {
    const button = this.rows.get(key).querySelector("button");
    if (this.open.delete(key)) {
      button.setAttribute("aria-expanded", "false");
    } else {
      button.setAttribute("aria-expanded", "true");
      const d = this.last.devices.find((one) => `${one.survey}-${one.device}` === key);
      const row = element("tr", "", "detail");
      const cell = element("td");
      cell.colSpan = COLUMNS.length;
      const history = new History(d);
      const list = element("dl", "", "facts");
      cell.append(history.element, list);
      row.append(cell);
      this.open.set(key, { row, history, list });
    }
    this.rows.get(key).classList.toggle("open", this.open.has(key));
    this.draw();
    this.open.get(key)?.history.refresh();
  }

  detail({ history, list }, d) {
    history.refreshIfOld();
    list.replaceChildren(...facts(d, this.last).map(([name, value]) => pair(name, value)));
  }

  /** Canvases are of the width of the page. */
  redraw() {
    for (const { history } of this.open.values()) history.draw();
  }
}

/** A name and its value in a list of facts. */
export function pair(name, value) {
  const made = element("div");
  made.append(element("dt", name), element("dd", value));
  return made;
}

/** The newest rollout; null before the first. */
export function showRollout(rollout) {
  $("rollout-card").hidden = !rollout;
  if (!rollout) return;
  const stage = {
    canary: `${rollout.canaries} device${rollout.canaries > 1 ? "s" : ""} first`,
    all: "all devices",
    stopped: "stopped",
    superseded: "superseded",
  }[rollout.stage];
  const reason = rollout.reason ? ` (${rollout.reason})` : "";
  $("r-text").textContent = `Version ${rollout.version}, ${rollout.name} ${rollout.model_hash}: ${stage}${reason}; since ${utc(rollout.created_us)} UTC`;
  const table = $("rollout");
  table.hidden = rollout.devices.length === 0;
  $("r-none").hidden = rollout.devices.length > 0 || !["canary", "all"].includes(rollout.stage);
  const names = { running: "good", failed: "bad", declined: "warn" };
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  table.tBodies[0].replaceChildren(
    ...rollout.devices.map((d) => {
      const row = element("tr");
      const cells = [
        [`${d.survey} / ${d.device}`],
        [d.state, names[d.state] ?? ""],
        [bytes(d.bytes), "n"],
        [utc(d.changed_us)],
        [d.reason || "–"],
      ];
      cells.forEach(([text, name = ""], i) => {
        const cell = element("td", text, name);
        cell.dataset.label = titles[i];
        row.append(cell);
      });
      return row;
    }),
  );
}
