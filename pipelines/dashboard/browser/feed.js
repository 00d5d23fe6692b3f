// The one stream of a page: every component reads its part of the newest frame from here.
import { markRaw, reactive } from "vue";

const RETRY_MS = 3_000;
/** The server sends a frame each second: a stream that is silent for so long is dead, whatever the browser thinks. */
const SILENT_MS = 8_000;
/** A browser gives one host six connections over all its tabs; so a hidden tab gives its own back. */
const HIDDEN_MS = 10_000;

/** `state`: connecting, live or disconnected. `frame` stays what it was while there is no stream. */
export const feed = reactive({ state: "connecting", frame: null, receivedAt: 0, retryAt: 0, now: Date.now() });

let source = null;
let retrying = 0;
let hiding = 0;

function open() {
  clearTimeout(retrying);
  retrying = 0;
  close();
  source = new EventSource("/api/v1/stream");
  feed.receivedAt ||= Date.now();
  feed.heardAt = Date.now();
  source.addEventListener("frame", (event) => {
    feed.frame = markRaw(JSON.parse(event.data)); // not reactive within: it is replaced whole
    feed.receivedAt = feed.heardAt = feed.now = Date.now();
    feed.state = "live";
  });
  source.onerror = lose;
}

function close() {
  source?.close();
  source = null;
}

function lose() {
  close();
  feed.state = "disconnected";
  feed.retryAt = Date.now() + RETRY_MS;
  retrying = setTimeout(open, RETRY_MS);
}

/** Don't wait for the next attempt. */
export function retry() {
  feed.state = "connecting";
  open();
}

setInterval(() => {
  if (document.hidden) return;
  feed.now = Date.now();
  if (source && feed.now - feed.heardAt > SILENT_MS) lose();
}, 250);

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(close, HIDDEN_MS);
  else if (!source && !retrying) open();
});
addEventListener("pagehide", close); // else some browsers log an error of a stream that was cut by going elsewhere
addEventListener("pageshow", (event) => event.persisted && open());
addEventListener("online", retry);

open();
