// The page: what the feed says, the section that is looked at, the devices, the events of the past.

import { Devices, pair, showRollout } from "./devices.js";
import { Events, address } from "./events.js";
import { listen } from "./feed.js";
import { bytes, count, element, span, utc } from "./format.js";
import { Gather } from "./gather.js";
import { Revisions } from "./revisions.js";
import { Section, drawProfile, percentile } from "./section.js";

const $ = (id) => document.getElementById(id);
const CLIP = 0.98; // Of the uncertainties; one cell of thousands of m/s would make the rest black.
// Names of the export formats; one that is registered elsewhere has its own.
const NAMES = { npy: "NumPy", netcdf: "NetCDF", segy: "SEG-Y", png: "PNG" };

let newest = null; // The last map drawn, as the feed tells it.
let totals = null;
let devices = [];
let rollout = null;
let clockMs = 0; // How far the centre's clock is ahead of the browser's.
let running = true;
let live = true;
let shown = null; // {map, velocity, uncertainty} on the canvases.
let around = { previous: null, next: null, recording: false };
let cursor = null;
let checked = null; // The last check of a map by its waves, {id}.
let asked = 0; // Answers to earlier questions are dropped.
let downloads = {};

const velocity = new Section($("velocity"), "batlow", point);
const uncertainty = new Section($("uncertainty"), "lajolla", point);
const gather = new Gather($("recording"));
const revisions = new Revisions($("revisions"), values, (map) => look(map.survey, map.event, map.id));
const events = new Events((map) => look(map.survey, map.event));
const table = new Devices();
const survey = () => ($("survey").value === "" ? null : Number($("survey").value));

async function read(path, binary = false) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? answer.statusText);
  return binary ? answer : answer.json();
}

function hear(kind, content) {
  if (kind === "totals") showTotals((totals = content));
  if (kind === "devices") {
    $("d-none").textContent = "No device has been seen yet.";
    refreshDevices((devices = content));
  }
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
      let recording = newest.recording;
      if (survey() !== null && map.survey !== survey()) {
        const last = (await read(`/api/events?size=1&survey=${survey()}`)).events[0];
        if (!last || last.id === shown?.map.id) break;
        const found = await read(`/api/events/${last.survey}/${last.event}`);
        [map, recording] = [found.maps[0], found.recording];
      }
      around = { previous: null, next: null, recording };
      const { maps } = map.revision > 1 ? await read(`/api/events/${map.survey}/${map.event}`) : { maps: [map] };
      await show(map, maps);
      if (map !== newest && survey() !== null) break;
    }
  } catch (error) {
    wait(error.message);
  } finally {
    following = false;
  }
}

/** What a check found that came after its map is added to what is shown. */
async function recheck() {
  const map = shown?.map;
  if (!map || (map.consistency && map.id !== checked.id)) return;
  try {
    const found = await read(`/api/events/${map.survey}/${map.event}`);
    const now = found.maps.find((one) => one.id === map.id);
    if (!now || shown?.map.id !== map.id) return;
    around.recording = found.recording;
    describe((shown.map = now));
    showRecording();
  } catch (error) {
    say(error.message);
  }
}

/** Look at an event of the past, or at one of its maps; `keep` leaves the address as it is. */
async function look(number, event, id = null, keep = false) {
  setLive(false);
  const question = ++asked;
  const path = address({ survey: number, event }) + (id === null ? "" : `?map=${id}`);
  if (!keep && path !== location.pathname + location.search) history.pushState(null, "", path);
  try {
    const found = await read(`/api/events/${number}/${event}`);
    if (question !== asked) return;
    around = found;
    await show(found.maps.find((map) => map.id === id) ?? found.maps[0], found.maps);
  } catch (error) {
    if (question === asked) missing(number, event, error.message);
  }
}

/** What the address asks for: an event, or the newest one as it comes. */
function route() {
  const found = location.pathname.match(/^\/events\/(\d+)\/(\d+)$/);
  if (found) {
    const id = new URLSearchParams(location.search).get("map");
    look(Number(found[1]), Number(found[2]), id === null ? null : Number(id), true);
  } else {
    goLive(true);
  }
}

function goLive(keep = false) {
  if (!keep && location.pathname !== "/") history.pushState(null, "", "/");
  setLive(true);
  asked++;
  shown = null;
  follow();
}

function missing(number, event, reason) {
  shown = null;
  $("s-body").hidden = true;
  $("s-flags").hidden = true;
  $("s-tools").hidden = false;
  $("s-title").textContent = `Event ${event}`;
  $("s-title").href = address({ survey: number, event });
  $("s-badges").replaceChildren();
  document.title = `Event ${event} · EPIC`;
  for (const id of ["previous", "next"]) $(id).disabled = true;
  wait(reason);
}

function wait(text) {
  $("s-wait").hidden = !text;
  $("s-wait").textContent = text;
}

/** Velocity and uncertainty of a map, row by row. */
async function values(map) {
  const answer = await read(`/api/map/${map.survey}/${map.event}?format=float32&id=${map.id}`, true);
  const data = new Float32Array(await answer.arrayBuffer());
  const cells = data.length / 2;
  return { velocity: data.subarray(0, cells), uncertainty: data.subarray(cells) };
}

async function show(map, maps) {
  const question = ++asked;
  const before = checked;
  const found = await values(map);
  if (question !== asked) return;
  shown = { map, ...found };
  $("revision-choice").hidden = maps.length < 2;
  $("revision").replaceChildren(
    ...maps.map((m) => new Option(`revision ${m.revision}${m.partial ? ", partial" : ""}, ${m.model_hash.slice(0, 8)}`, m.id)),
  );
  $("revision").value = map.id;
  $("previous").disabled = !live && around.previous === null;
  $("next").disabled = live || around.next === null;
  wait("");
  $("s-body").hidden = false;
  $("s-tools").hidden = false;
  describe(map);
  draw();
  events.mark(map);
  await Promise.all([showRecording(), revisions.show(maps, map.id, $("fit").checked)]);
  if (checked !== before) recheck();
}

function describe(map) {
  const p = map.provenance;
  const several = totals?.surveys.length > 1;
  $("s-title").textContent = `Event ${map.event}${several ? `, survey ${map.survey}` : ""}`;
  $("s-title").href = address(map);
  document.title = live ? "EPIC" : `Event ${map.event} · EPIC`;
  const badges = [map.partial ? ["partial", "warn"] : ["complete", "good"]];
  if (map.flags.length) badges.push(["flagged", "bad"]);
  if (map.revision > 1) badges.push([`revision ${map.revision}`, ""]);
  $("s-badges").replaceChildren(...badges.map(([text, name]) => element("span", text, `badge ${name}`)));
  $("s-flags").hidden = !map.flags.length;
  $("s-flags").replaceChildren(...map.flags.map(reason));
  const facts = [
    ["Recorded (UTC)", utc(map.sample_time_us)],
    ["Devices", `${map.devices.join(", ")} of ${map.n_devices}`],
    ["Records received", `${bytes(map.received_bytes)} for ${bytes(map.raw_bytes)} of samples`],
    ["Mean velocity", `${count(map.velocity_mean_mps)} m/s`],
    ["Mean uncertainty", `±${count(map.uncertainty_mean_mps)} m/s`],
  ];
  if (p.unfamiliarity) facts.push(["OOD score", `${p.unfamiliarity.score.toFixed(1)} (limit ${p.unfamiliarity.limit.toFixed(1)})`]);
  if (p.decoded_us && p.first_received_us) facts.push(["First latent to map", span((p.decoded_us - p.first_received_us) / 1e6)]);
  if (p.refinement) {
    const [before, after] = p.refinement.misfit.map((size) => size.toFixed(2));
    facts.push(["Refined by", `${p.refinement.by === "gather" ? "its recording" : "its latents"}, of revision ${p.refinement.of_revision}: misfit ${before} to ${after}`]);
  }
  if (Number.isFinite(map.consistency?.latents)) {
    const { latents, gather: misfit } = map.consistency;
    const recording = Number.isFinite(misfit) ? `; recording ${(100 * misfit).toFixed(0)} % off` : "";
    facts.push(["Waves through the map", `latents ${latents.toFixed(2)} σ off (0 agrees, 1.4 is unrelated)${recording}`]);
  }
  facts.push(["Model", map.model_hash]);
  $("s-facts").replaceChildren(...facts.map(([name, value]) => pair(name, value)));
  $("downloads").replaceChildren(
    ...Object.entries(downloads).map(([format, suffix]) => {
      const link = element("a", NAMES[format] ?? format, "button");
      link.append(element("small", suffix));
      link.href = `/api/export/${map.survey}/${map.event}?format=${format}&id=${map.id}`;
      link.download = "";
      return link;
    }),
  );
}

/** "uncertain: the mean ..." with its kind in bold. */
function reason(flag) {
  const made = element("p");
  const cut = flag.indexOf(": ");
  if (cut > 0) made.append(element("b", `Flagged, ${flag.slice(0, cut)}`), flag.slice(cut));
  else made.append(element("b", "Flagged: "), flag);
  return made;
}

function draw() {
  if (!shown) return;
  const { map } = shown;
  const a = map.provenance.acquisition;
  const range = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  let [low, high] = $("fit").checked ? range(shown.velocity) : [a.velocity_min_mps, a.velocity_max_mps];
  if (high - low < 10) [low, high] = [low - 5, high + 5];
  shown.limits = { low, high };
  const common = { nz: a.n_depth, nx: a.n_width, survey: a, present: map.devices };
  const size = `${a.n_width * a.dx_m} m long, ${a.n_depth * a.dx_m} m deep`;
  const absent = map.n_devices - map.devices.length;
  const missed = absent ? `, ${absent} device${absent > 1 ? "s" : ""} missing` : "";
  velocity.show({ ...common, values: shown.velocity, low, high, label: `Velocity section of event ${map.event}, ${size}${missed}` });
  const most = Math.max(percentile(shown.uncertainty, CLIP), 1);
  const clipped = range(shown.uncertainty)[1] > most;
  const above = clipped ? `, colours end at ${count(most)} m/s` : "";
  uncertainty.show({ ...common, values: shown.uncertainty, low: 0, high: most, clipped, label: `Uncertainty of event ${map.event}, ${size}${above}` });
  gather.draw();
  revisions.draw($("fit").checked);
  $("velocity").dataset.event = map.event;
  point(cursor ?? { row: a.n_depth >> 1, column: a.n_width >> 1 }, cursor === null);
}

/** The recording of the shown event, where the store has it, and how far waves through the map are from it. */
async function showRecording() {
  const { map } = shown;
  const has = Boolean(around.recording);
  const changed = $("recording-figure").hidden === has;
  $("recording-figure").hidden = !has;
  $("s-fetch").hidden = has;
  // The page changes nothing, so it names the command that asks the devices.
  $("s-fetch").querySelector("code").textContent = `epic central fetch ${map.event}`;
  $("plots").classList.toggle("with-recording", has);
  document.querySelector('#plot-choice [data-plot="recording"]').hidden = !has;
  if (!has && $("plots").dataset.shown === "recording") choosePlot("velocity");
  if (changed) draw();
  if (!has) return;
  const a = map.provenance.acquisition;
  const shots = a.source_cells.length;
  if ($("shot").options.length !== shots) {
    $("shot").replaceChildren(...a.source_cells.map((cell, i) => new Option(`shot ${i + 1} at ${cell * a.dx_m} m`, i + 1)));
    $("shot").value = (shots + 1) >> 1;
  }
  const misfit = map.consistency?.gather;
  $("residual").href = `/api/gather/${map.survey}/${map.event}?id=${map.id}`;
  $("misfit").textContent = Number.isFinite(misfit) ? `misfit ${misfit.toFixed(2)}` : "";
  $("misfit").title = "Of waves modelled through this map: 0 fits, 1 explains nothing";
  try {
    const answer = await read(`/api/recording/${map.survey}/${map.event}?shot=${$("shot").value}`, true);
    const [nt, nr] = answer.headers.get("x-epic-shape").split(",").map(Number);
    const values = new Float32Array(await answer.arrayBuffer());
    if (shown?.map.id !== map.id) return;
    const misfits = map.consistency?.gather_by_receiver ?? null;
    const label = `Recording of event ${map.event}, shot ${$("shot").value} of ${shots}`;
    gather.show({ values, nt, nr, survey: a, misfits, label, like: $("velocity") });
  } catch (error) {
    $("misfit").textContent = error.message;
  }
}

function point(at, quietly = false) {
  if (!shown) return;
  const a = shown.map.provenance.acquisition;
  at = { row: Math.min(at.row, a.n_depth - 1), column: Math.min(at.column, a.n_width - 1) };
  if (!quietly) {
    cursor = at;
    velocity.point(at);
    uncertainty.point(at);
    const i = at.row * a.n_width + at.column;
    const along = Math.round(at.column * a.dx_m);
    const deep = Math.round((at.row + 0.5) * a.dx_m);
    say(`${along} m along, ${deep} m deep: ${count(shown.velocity[i])} ± ${count(shown.uncertainty[i])} m/s`);
  }
  $("p-where").textContent = `at ${Math.round(at.column * a.dx_m)} m`;
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
  $("t-flagged").className = t.flagged ? "bad" : "";
  $("t-partial").className = t.partial ? "warn" : "";
  $("t-saved").textContent = t.received_bytes ? `${count(t.raw_bytes / t.received_bytes)} × fewer bytes` : "–";
  $("t-bytes").textContent = t.received_bytes
    ? `${bytes(Math.round(t.received_bytes / t.events))} of latent records an event, for ${bytes(Math.round(t.raw_bytes / t.events))} raw`
    : "bytes saved against raw";
  $("events-card").hidden = $("tiles").hidden = t.counted && !t.events;
  if (!shown && live && t.counted && !t.events) welcome();
  if (t.surveys.length < 2) return;
  $("survey-choice").hidden = false;
  const kept = $("survey").value;
  $("survey").replaceChildren(new Option("all", ""), ...t.surveys.map((s) => new Option(`${s.survey} (${count(s.events)})`, s.survey)));
  $("survey").value = kept;
}

let welcomed = false;
/** No event yet: say what is missing, and how to add a device. */
function welcome() {
  $("s-title").textContent = running ? "Waiting for the first event" : "No event";
  wait(
    running
      ? "No event has come yet. The first map appears here by itself."
      : "This store is empty, and no centre runs on it. Start one with: epic central run",
  );
  if (welcomed) return;
  welcomed = true;
  $("add-device").open = true;
}

function refreshDevices() {
  const now = (Date.now() + clockMs) * 1000;
  const here = devices.filter((d) => survey() === null || d.survey === survey());
  const onTime = here.filter((d) => d.state === "on time").length;
  $("t-devices").textContent = here.length ? `${onTime} of ${here.length}` : "–";
  $("t-devices").className = onTime < here.length ? "warn" : "";
  table.show(here, now, shown?.map ?? newest);
}

function setLive(on) {
  live = on;
  $("live").setAttribute("aria-pressed", String(on));
}

function onState({ up, sinceMs, time_us, reason: why, ...state }) {
  const pill = $("link");
  if (up) {
    clockMs = time_us / 1000 - Date.now();
    running = state.running;
    pill.className = running ? "pill up" : "pill";
    pill.textContent = running ? "live" : "stored maps; no centre runs here";
    $("live").textContent = running ? "Live" : "Newest";
    $("t-devices-what").textContent = running ? "devices on time" : "devices on time when last seen";
    if ($("lost").dataset.lost) alarm("");
    delete $("lost").dataset.lost;
    return;
  }
  pill.className = "pill down";
  pill.textContent = "no connection";
  $("lost").dataset.lost = "1";
  const since = sinceMs ? ` since ${new Date(sinceMs).toLocaleTimeString("en-GB")}` : "";
  alarm(
    {
      token: "The centre no longer takes this browser's token. Reload the page to enter the new one.",
      full: "Too many browsers show this page. Close some; trying again.",
    }[why] ?? `The centre does not answer${since}. What is shown is what it last said; trying again.`,
  );
}

function choosePlot(name) {
  $("plots").dataset.shown = name;
  for (const button of document.querySelectorAll("#plot-choice button")) {
    button.setAttribute("aria-pressed", String(button.dataset.plot === name));
  }
  draw();
}

function go(id) {
  $(id).scrollIntoView({ block: "start", behavior: "smooth" });
  $(id).focus({ preventScroll: true });
}

const TILES = {
  all: () => events.choose({ only: "all" }),
  partial: () => events.choose({ only: "partial" }),
  flagged: () => events.choose({ only: "flagged" }),
  devices: () => table.sort("state", false),
  bytes: () => table.sort("received", false),
};
for (const tile of document.querySelectorAll(".tile")) {
  tile.addEventListener("click", () => {
    const name = tile.dataset.go;
    TILES[name]();
    go(name === "devices" || name === "bytes" || $("events-card").hidden ? "devices-card" : "events-card");
  });
}
for (const button of document.querySelectorAll("#plot-choice button")) {
  button.addEventListener("click", () => choosePlot(button.dataset.plot));
}
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  goLive();
});
$("s-title").addEventListener("click", (event) => {
  if (!shown || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  look(shown.map.survey, shown.map.event);
});
$("live").addEventListener("click", () => goLive());
$("previous").addEventListener("click", async () => {
  if (!shown) return;
  const { survey: number, event } = shown.map;
  if (live) around = await read(`/api/events/${number}/${event}`).catch(() => around);
  if (around.previous !== null) look(number, around.previous);
});
$("next").addEventListener("click", () => around.next !== null && shown && look(shown.map.survey, around.next));
$("revision").addEventListener("change", () => look(shown.map.survey, shown.map.event, Number($("revision").value)));
$("shot").addEventListener("change", showRecording);
$("fit").addEventListener("change", draw);
$("survey").addEventListener("change", () => {
  events.choose({ survey: survey() });
  refreshDevices();
  goLive();
});
$("go").addEventListener("submit", (event) => {
  event.preventDefault();
  look(survey() ?? shown?.map.survey ?? newest?.survey ?? 1, Number($("go-event").value));
  go("section");
});
addEventListener("popstate", route);
const redraw = () => {
  draw();
  table.redraw();
};
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width === width) return;
  width = entry.contentRect.width;
  redraw();
}).observe(document.querySelector("main"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const narrow = matchMedia("(max-width: 620px)");
const fold = () => ($("s-more").open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();
setInterval(refreshDevices, 1000);
read("/api/centre").then((centre) => {
  ({ downloads } = centre);
  const [, host, port] = centre.listen.match(/^tcp:\/\/(.+):(.+)$/) ?? [];
  const local = /^(127\.|localhost|\[::1\])/;
  // A browser on the centre's own machine does not know its name for others.
  const name = local.test(host) ? host : local.test(location.hostname) ? "CENTRE" : location.hostname;
  for (const place of document.querySelectorAll(".endpoint")) place.textContent = host ? `tcp://${name}:${port}` : centre.listen;
  if (!centre.keyed) $("add-keys").replaceChildren("This centre runs without keys: only devices on its own machine reach it.");
  if (shown) describe(shown.map);
}, () => {}); // The feed says that the centre is away.
events.choose({});
route();
listen(["alive", "totals", "section", "checked", "devices", "rollout", "problem"], hear, onState);
