// The devices along the line, and how far a rollout has got.

import { bytes, count, element, span, utc } from "./format.js";

const STATES = { "on time": "good", late: "warn", silent: "bad", "not heard": "warn", revoked: "bad" };

function fill(table, columns, rows) {
  table.tBodies[0].replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      cells.forEach(([text, name = ""], i) => {
        const cell = element("td", text, name);
        cell.dataset.label = columns[i];
        row.append(cell);
      });
      return row;
    }),
  );
}

const titles = (table) => [...table.tHead.rows[0].cells].map((cell) => cell.textContent);

/** "0–130 m" from the survey of a map, where that is of the device's survey. */
function stretch(device, map) {
  const survey = map?.survey === device.survey ? map.provenance.acquisition : null;
  const receivers = survey?.device_receivers[device.device];
  if (!receivers) return "–";
  const cells = receivers.map((i) => survey.receiver_cells[i] * survey.dx_m);
  return `${Math.min(...cells)}–${Math.max(...cells)} m`;
}

/** Records that never came, that the device gave up, and that the store lost after it had them. */
const lost = (d) => d.loss + (d.dropped ?? 0) + d.acknowledged_lost;

/** Bytes of a latent, and what they are set to until the device says that it has heard it. */
function latent(device) {
  const made = device.latent_bytes === null ? "–" : `${device.latent_bytes} B`;
  const set = device.set_bytes;
  return set === null || set === device.latent_bytes ? made : `${made} → ${set} B`;
}

/** `nowUs` is the centre's clock. */
export function showDevices(devices, nowUs, map) {
  const table = document.getElementById("devices");
  document.getElementById("d-none").hidden = devices.length > 0;
  table.hidden = devices.length === 0;
  const several = new Set(devices.map((d) => d.survey)).size > 1;
  const known = (value, show) => (value === null || value === undefined ? "–" : show(value));
  fill(
    table,
    titles(table),
    devices.map((d) => [
      [several ? `${d.survey} / ${d.device}` : `${d.device}`],
      [[d.state, d.refusal && `refused: ${d.refusal}`, d.rejected && `rejected ${d.rejected}: ${d.rejection}`].filter(Boolean).join(", "), STATES[d.state]],
      [d.last_heard_us ? `${span(Math.max(nowUs - d.last_heard_us, 0) / 1e6)} ago` : "never"],
      [stretch(d, map)],
      [known(d.lag_s, span), "n"],
      [count(lost(d)), lost(d) ? "n bad" : "n"],
      [known(d.queue_depth, count), "n"],
      [known(d.model_hash, (hash) => hash.slice(0, 8)), "code"],
      [latent(d), "n"],
      [known(d.temperature_c, (c) => `${c.toFixed(1)} °C`), "n"],
      [known(d.bytes_received || null, bytes), "n"],
    ]),
  );
}

/** The newest rollout; null before the first. */
export function showRollout(rollout) {
  document.getElementById("rollout-card").hidden = !rollout;
  if (!rollout) return;
  const stage = { canary: `${rollout.canaries} first`, all: "all devices", stopped: "stopped", superseded: "superseded" }[rollout.stage];
  const reason = rollout.reason ? ` (${rollout.reason})` : "";
  document.getElementById("r-text").textContent =
    `Version ${rollout.version}, ${rollout.name} ${rollout.model_hash}: ${stage}${reason}; since ${utc(rollout.created_us)} UTC`;
  const table = document.getElementById("rollout");
  table.hidden = rollout.devices.length === 0;
  const names = { running: "good", failed: "bad", declined: "warn" };
  fill(
    table,
    titles(table),
    rollout.devices.map((d) => [
      [`${d.survey} / ${d.device}`],
      [d.state, names[d.state] ?? ""],
      [bytes(d.bytes), "n"],
      [utc(d.changed_us)],
      [d.reason || "–"],
    ]),
  );
}
