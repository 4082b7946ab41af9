// What the centre pushes, and whether it is still there.

const SILENT_MS = 7000; // The centre says something every two seconds.
const AGAIN_MS = 2000;

/** Calls `hear(kind, content)` for news and `onState({up, sinceMs, reason})` when the centre is lost or found again. */
export function listen(kinds, hear, onState) {
  let source = null;
  let heardMs = 0;
  let timer = 0;

  async function lose() {
    source.close();
    clearTimeout(timer);
    timer = setTimeout(open, AGAIN_MS);
    // A stream that is refused looks like one that is cut; ask which it was.
    const reason = await fetch("/api/centre")
      .then(async (answer) => (answer.status === 401 ? "token" : (await answer.json()).full ? "full" : ""))
      .catch(() => ""); // A proxy before the centre may answer with HTML.
    onState({ up: false, sinceMs: heardMs, reason });
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
