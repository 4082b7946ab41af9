// The page: what the feed says, the section that is looked at, the devices, the events of the past.

import { showDevices, showRollout } from "./devices.js";
import { Events } from "./events.js";
import { listen } from "./feed.js";
import { bytes, count, element, span, utc } from "./format.js";
import { Section, drawProfile } from "./section.js";

const $ = (id) => document.getElementById(id);

let newest = null; // The last map drawn, as the feed tells it.
let totals = null;
let devices = [];
let rollout = null;
let clockMs = 0; // How far the centre's clock is ahead of the browser's.
let live = true;
let shown = null; // {map, velocity, uncertainty} on the canvases.
let around = { previous: null, next: null };
let cursor = null;
let checked = null; // The last check of a map by its waves, {id}.
let asked = 0; // Answers to earlier questions are dropped.

const velocity = new Section($("velocity"), "batlow", point);
const uncertainty = new Section($("uncertainty"), "lajolla", point);
const events = new Events((map) => look(map.survey, map.event));
const survey = () => ($("survey").value === "" ? null : Number($("survey").value));

async function read(path, binary = false) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? answer.statusText);
  return binary ? answer.arrayBuffer() : answer.json();
}

function hear(kind, content) {
  if (kind === "totals") showTotals((totals = content));
  if (kind === "devices") refreshDevices((devices = content));
  if (kind === "rollout") showRollout((rollout = content));
  if (kind === "problem") alarm(content ? `The centre's store cannot be read: ${content}` : "");
  if (kind === "checked" && content) {
    checked = content;
    recheck();
  }
  if (kind === "section" && content) {
    newest = content;
    if (live) follow();
    events.refreshSoon();
  }
}

let following = false;
/** Show the newest map; while one is fetched only the newest after it is remembered. */
async function follow() {
  if (following) return;
  following = true;
  try {
    while (live && newest && newest.id !== shown?.map.id) {
      let map = newest;
      if (survey() !== null && map.survey !== survey()) {
        const last = (await read(`/api/events?size=1&survey=${survey()}`)).events[0];
        if (!last || last.id === shown?.map.id) break;
        map = (await read(`/api/events/${last.survey}/${last.event}`)).maps[0];
      }
      around = { previous: null, next: null };
      await show(map, [map]);
      if (map !== newest && survey() !== null) break;
    }
  } catch (error) {
    say(error.message);
  } finally {
    following = false;
  }
}

/** What a check found that came after its map is added to what is shown. */
async function recheck() {
  const map = shown?.map;
  if (!map || (map.consistency && map.id !== checked.id)) return;
  try {
    const { maps } = await read(`/api/events/${map.survey}/${map.event}`);
    const now = maps.find((one) => one.id === map.id);
    if (now && shown?.map.id === map.id) describe((shown.map = now));
  } catch (error) {
    say(error.message);
  }
}

/** Look at an event of the past, or at one of its maps. */
async function look(number, event, id = null) {
  setLive(false);
  const question = ++asked;
  try {
    const found = await read(`/api/events/${number}/${event}`);
    if (question !== asked) return;
    around = found;
    await show(found.maps.find((map) => map.id === id) ?? found.maps[0], found.maps);
  } catch (error) {
    say(error.message);
  }
}

async function show(map, maps) {
  const question = ++asked;
  const before = checked;
  const data = new Float32Array(await read(`/api/map/${map.survey}/${map.event}?format=float32&id=${map.id}`, true));
  if (question !== asked) return;
  const a = map.provenance.acquisition;
  const cells = a.n_depth * a.n_width;
  shown = { map, velocity: data.subarray(0, cells), uncertainty: data.subarray(cells) };
  $("revision-choice").hidden = maps.length < 2;
  $("revision").replaceChildren(
    ...maps.map((m) => new Option(`revision ${m.revision}${m.partial ? ", partial" : ""}, ${m.model_hash.slice(0, 8)}`, m.id)),
  );
  $("revision").value = map.id;
  $("previous").disabled = !live && around.previous === null;
  $("next").disabled = live || around.next === null;
  describe(map);
  draw();
  events.mark(map);
  if (checked !== before) recheck();
}

function describe(map) {
  const p = map.provenance;
  $("s-title").textContent = `Event ${map.event}${totals?.surveys.length > 1 ? `, survey ${map.survey}` : ""}`;
  const badges = [map.partial ? ["partial", "warn"] : ["complete", "good"]];
  if (map.flags.length) badges.push(["flagged", "bad"]);
  if (map.revision > 1) badges.push([`revision ${map.revision}`, ""]);
  $("s-badges").replaceChildren(...badges.map(([text, name]) => element("span", text, `badge ${name}`)));
  $("s-flags").hidden = !map.flags.length;
  $("s-flags").textContent = map.flags.length ? `Flagged: ${map.flags.join("; ")}.` : "";
  const facts = [
    ["Recorded (UTC)", utc(map.sample_time_us)],
    ["Devices heard", `${map.devices.join(", ")} of ${map.n_devices}`],
    ["On the wire", `${bytes(map.received_bytes)} for ${bytes(map.raw_bytes)} of samples`],
    ["Mean velocity", `${count(map.velocity_mean_mps)} m/s`],
    ["Mean uncertainty", `±${count(map.uncertainty_mean_mps)} m/s`],
    ["Model", map.model_hash],
  ];
  if (p.decoded_us && p.first_received_us) facts.push(["First latent to map", span((p.decoded_us - p.first_received_us) / 1e6)]);
  if (p.refinement) {
    const [before, after] = p.refinement.misfit.map((size) => size.toFixed(2));
    facts.push(["Refined by", `${p.refinement.by === "gather" ? "its recording" : "its latents"}, of revision ${p.refinement.of_revision}: misfit ${before} to ${after}`]);
  }
  if (Number.isFinite(map.consistency?.latents)) {
    const { latents, gather } = map.consistency;
    const recording = Number.isFinite(gather) ? `; recording ${(100 * gather).toFixed(0)} % off` : "";
    facts.push(["Waves through the map", `latents ${latents.toFixed(2)} σ off (0 agrees, 1.4 is unrelated)${recording}`]);
  }
  $("s-facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    }),
  );
}

function draw() {
  if (!shown) return;
  const { map } = shown;
  const a = map.provenance.acquisition;
  const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  let [low, high] = $("fit").checked ? range(shown.velocity) : [a.velocity_min_mps, a.velocity_max_mps];
  if (high - low < 10) [low, high] = [low - 5, high + 5];
  shown.limits = { low, high };
  const common = { nz: a.n_depth, nx: a.n_width, survey: a, heard: map.devices };
  const size = `${a.n_width * a.dx_m} m long, ${a.n_depth * a.dx_m} m deep`;
  const absent = map.n_devices - map.devices.length;
  const missing = absent ? `, ${absent} device${absent > 1 ? "s" : ""} missing` : "";
  velocity.show({ ...common, values: shown.velocity, low, high, label: `Velocity section of event ${map.event}, ${size}${missing}` });
  const most = Math.max(range(shown.uncertainty)[1], 1);
  uncertainty.show({ ...common, values: shown.uncertainty, low: 0, high: most, label: `Uncertainty of event ${map.event}, ${size}` });
  $("velocity").dataset.event = map.event;
  point(cursor ?? { row: a.n_depth >> 1, column: a.n_width >> 1 }, cursor === null);
}

function point(at, quietly = false) {
  const a = shown.map.provenance.acquisition;
  at = { row: Math.min(at.row, a.n_depth - 1), column: Math.min(at.column, a.n_width - 1) };
  if (!quietly) {
    cursor = at;
    velocity.point(at);
    uncertainty.point(at);
    const i = at.row * a.n_width + at.column;
    const metres = (cell) => Math.round((cell + 0.5) * a.dx_m);
    say(`${metres(at.column)} m along, ${metres(at.row)} m deep: ${count(shown.velocity[i])} ± ${count(shown.uncertainty[i])} m/s`);
  }
  $("p-where").textContent = `at ${Math.round((at.column + 0.5) * a.dx_m)} m`;
  const map = { nz: a.n_depth, nx: a.n_width, dx: a.dx_m, ...shown.limits, velocity: shown.velocity, uncertainty: shown.uncertainty };
  drawProfile($("profile"), map, at.column, at.row, $("velocity"));
}

const say = (text) => ($("readout").textContent = text);

function alarm(text) {
  $("lost").hidden = !text;
  $("lost").textContent = text;
}

function showTotals(t) {
  $("t-events").textContent = count(t.events) + (t.counted ? "" : " …");
  $("t-partial").textContent = count(t.partial);
  $("t-flagged").textContent = count(t.flagged);
  $("t-saved").textContent = t.received_bytes ? `${count(t.raw_bytes / t.received_bytes)} × fewer bytes` : "–";
  $("t-bytes").textContent = `${bytes(t.received_bytes)} of records received (without health, acknowledgements and TCP/IP headers) for ${bytes(t.raw_bytes)} of raw samples`;
  if (t.surveys.length < 2) return;
  $("survey-choice").hidden = false;
  const kept = $("survey").value;
  $("survey").replaceChildren(new Option("all", ""), ...t.surveys.map((s) => new Option(`${s.survey} (${count(s.events)})`, s.survey)));
  $("survey").value = kept;
}

function refreshDevices() {
  const now = (Date.now() + clockMs) * 1000;
  const here = devices.filter((d) => survey() === null || d.survey === survey());
  $("t-devices").textContent = here.length ? `${here.filter((d) => d.state === "on time").length} of ${here.length}` : "–";
  showDevices(here, now, shown?.map ?? newest);
}

function setLive(on) {
  live = on;
  $("live").setAttribute("aria-pressed", String(on));
}

function onState({ up, sinceMs, time_us, running }) {
  const pill = $("link");
  if (up) {
    clockMs = time_us / 1000 - Date.now();
    pill.className = running ? "pill up" : "pill";
    pill.textContent = running ? "live" : "stored maps; no centre runs here";
    $("live").textContent = running ? "Live" : "Newest";
    $("t-devices-what").textContent = running ? "devices on time" : "devices on time when the centre last heard one";
    if ($("lost").dataset.lost) alarm("");
    delete $("lost").dataset.lost;
    return;
  }
  pill.className = "pill down";
  pill.textContent = "no connection";
  $("lost").dataset.lost = "1";
  const since = sinceMs ? ` since ${new Date(sinceMs).toLocaleTimeString("en-GB")}` : "";
  alarm(`The centre does not answer${since}. What is shown is what it last said; trying again.`);
}

$("live").addEventListener("click", () => {
  setLive(true);
  shown = null;
  follow();
});
$("previous").addEventListener("click", async () => {
  if (!shown) return;
  const { survey: number, event } = shown.map;
  if (live) around = await read(`/api/events/${number}/${event}`).catch(() => around);
  if (around.previous !== null) look(number, around.previous);
});
$("next").addEventListener("click", () => around.next !== null && shown && look(shown.map.survey, around.next));
$("revision").addEventListener("change", () => look(shown.map.survey, shown.map.event, Number($("revision").value)));
$("fit").addEventListener("change", draw);
$("survey").addEventListener("change", () => {
  events.choose({ survey: survey() });
  refreshDevices();
  shown = null;
  setLive(true);
  follow();
});
$("go").addEventListener("submit", (event) => {
  event.preventDefault();
  look(survey() ?? shown?.map.survey ?? newest?.survey ?? 1, Number($("go-event").value));
});
for (const button of document.querySelectorAll("[data-only]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-only]")) other.setAttribute("aria-pressed", String(other === button));
    events.choose({ only: button.dataset.only });
  });
}
new ResizeObserver(draw).observe(document.querySelector(".plots"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
setInterval(refreshDevices, 1000);
events.choose({});
listen(["alive", "totals", "section", "checked", "devices", "rollout", "problem"], hear, onState);
