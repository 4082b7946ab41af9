// What the centre pushes, and whether it is still there.

const SILENT_MS = 7000; // The centre says something every two seconds.
const AGAIN_MS = 2000;

/** Calls `hear(kind, content)` for news and `onState({up, since})` when the centre is lost or found again. */
export function listen(kinds, hear, onState) {
  let source = null;
  let heardMs = 0;
  let timer = 0;

  function lose() {
    source.close();
    onState({ up: false, sinceMs: heardMs });
    clearTimeout(timer);
    timer = setTimeout(open, AGAIN_MS);
  }

  function note() {
    heardMs = Date.now();
    clearTimeout(timer);
    timer = setTimeout(lose, SILENT_MS);
  }

  function open() {
    source = new EventSource("/api/stream");
    for (const kind of kinds) {
      source.addEventListener(kind, (event) => {
        note();
        if (kind === "alive") onState({ up: true, ...JSON.parse(event.data) });
        else hear(kind, JSON.parse(event.data));
      });
    }
    source.onerror = lose;
    timer = setTimeout(lose, SILENT_MS);
  }
  open();
}
