// Numbers, sizes and times as people read them.

/** "1.1 kB", "28 MB"; powers of ten. */
export function bytes(n) {
  if (n < 1000) return `${n} B`;
  const unit = Math.min(Math.floor(Math.log10(n) / 3), 5);
  const value = n / 10 ** (3 * unit);
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

/** "1,234" */
export const count = (n) => Math.round(n).toLocaleString("en");

/** "12 s", "4 min", "3 h", "2 d" */
export function span(seconds) {
  if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** "2026-11-25 10:00:05" in UTC, the time of surveys. */
export const utc = (us) => new Date(us / 1000).toISOString().slice(0, 19).replace("T", " ");

/** A round step so that `length` holds about `wanted` of them. */
export function step(length, wanted) {
  const rough = length / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 2.5, 5, 10].find((n) => n * power >= rough) * power;
}

/** An element with a class and text. Text is never read as markup. */
export function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}
