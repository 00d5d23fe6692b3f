// All that knows how a frame is built: see its schema in the API's documentation. Everything else asks here.
import { moment, duration, text } from "sagascope/format.js";

/** Nothing is known yet: that is not the same as nothing being there. */
const isReading = (frame) => frame?.snapshot_id == null && frame?.problem?.startsWith("the tables are being read");

/** There are no tables, or nothing is in them. */
export const isEmpty = (frame) => !!frame && frame.snapshot_id == null;

const windowOf = (frame, name) => !isReading(frame) && frame?.windows?.find((window) => window.name === name);
const SPAN_SECONDS = { "1m": 60, "5m": 300, "15m": 900, "1h": 3600 };

/** The key figures of a sliding window, of one kind of saga or of all; null where there is no frame yet. */
export function figures(frame, name, saga) {
  const window = windowOf(frame, name);
  if (!window) return null;
  const sagas = saga ? window.sagas.find((one) => one.saga_name === saga) : window.all_sagas;
  const steps = saga ? window.saga_steps?.find((one) => one.saga_name === saga) : window.all_steps;
  const active = saga ? frame.active_sagas.find((one) => one.saga_name === saga) : null;
  return {
    active: saga ? (active?.active ?? 0) : frame.active,
    silent: saga ? (active?.silent ?? 0) : frame.active_sagas.reduce((sum, one) => sum + one.silent, 0),
    started_per_minute: sagas?.started_per_minute ?? 0,
    completed_per_minute: sagas?.completed_per_minute ?? 0,
    failed_per_minute: sagas?.failed_per_minute ?? 0,
    failure_rate: sagas?.failure_rate ?? null,
    p50_ms: steps?.p50_ms ?? null,
    p95_ms: steps?.p95_ms ?? null,
    p99_ms: steps?.p99_ms ?? null,
  };
}

/** The same of the span before that window, as far as the series of the last hour tells: counts, and what is made of them. */
export function before(frame, name, saga) {
  const window = windowOf(frame, name);
  if (!window || saga) return null;
  const { first, width_seconds: width, started, completed, failed } = frame.series;
  const wide = SPAN_SECONDS[name] / width;
  const until = Math.round((moment(window.since) - moment(first)) / 1000 / width);
  if (until - wide < 0) return null;
  const sum = (values) => values.slice(until - wide, until).reduce((total, value) => total + value, 0);
  const minutes = SPAN_SECONDS[name] / 60;
  const [begun, done, bad] = [sum(started), sum(completed), sum(failed)];
  if (begun + done + bad === 0) return null;
  return {
    started_per_minute: begun / minutes,
    completed_per_minute: done / minutes,
    failed_per_minute: bad / minutes,
    failure_rate: done + bad ? bad / (done + bad) : null,
  };
}

/** The steps of a ranking, the worst first; null where there is no frame yet. */
export function ranked(frame, name, saga, ranking) {
  const window = windowOf(frame, name);
  if (!window) return null;
  const rows = saga
    ? ranking === "slowest"
      ? window.steps.filter((row) => row.saga_name === saga && row.p95_ms != null).sort((a, b) => b.p95_ms - a.p95_ms)
      : window.steps.filter((row) => row.saga_name === saga && row.failed).sort((a, b) => b.failed - a.failed)
    : window[ranking];
  return rows.map((row) => ({ ...row, ended: row.completed + row.failed }));
}

export const sagaNames = (frame) =>
  frame?.windows?.length
    ? [...frame.windows.at(-1).sagas.map((one) => one.saga_name), ...frame.active_sagas.map((one) => one.saga_name)]
    : [];

/** The series of the last hour: moments, values by name, and from which place on windows are open. */
export function series(frame) {
  if (!frame?.series || isReading(frame)) return null;
  const { first, width_seconds: width, open_since: open, ...values } = frame.series;
  const begin = moment(first);
  const moments = values.started.map((_, n) => begin + n * width * 1000);
  const openFrom = open == null ? 0 : Math.round((moment(open) - begin) / 1000 / width);
  return { moments, width: width * 1000, openFrom, values };
}

/** Sums of the six windows of each minute; of durations the mean, which is good enough for a line without numbers. */
function minutes(values, field) {
  if (!values[field]) return null;
  const points = [];
  for (let n = values[field].length; n > 0; n -= 6) {
    const minute = values[field].slice(Math.max(n - 6, 0), n).filter((value) => value != null);
    const sum = minute.reduce((total, value) => total + value, 0);
    points.unshift(field.endsWith("_ms") ? (minute.length ? sum / minute.length : null) : sum);
  }
  return points;
}

const DERIVED = {
  failure_rate(values) {
    const [done, bad] = [minutes(values, "completed"), minutes(values, "failed")];
    return bad.map((failed, n) => failed / (failed + done[n] || 1));
  },
  /** Back from how many there are now. */
  active(values, _, frame) {
    const [begun, done, bad] = ["started", "completed", "failed"].map((name) => minutes(values, name));
    const points = [frame.active];
    for (let n = begun.length - 1; n > 0; n -= 1) points.unshift(Math.max(points[0] - begun[n] + done[n] + bad[n], 0));
    return points;
  },
};

/** A small line of the last hour in twelve dozen units by two: a point a minute. */
export function sparkline(frame, field, saga) {
  const all = series(frame);
  if (!all || !field || saga) return null;
  const points = (DERIVED[field] ?? minutes)(all.values, field, frame);
  if (!points) return null;
  points.pop(); // the minute that it is now is not whole
  const most = Math.max(...points);
  if (!(most > 0)) return null;
  const last = points.length - 1;
  const places = points.map((value, n) => [((n / last) * 120).toFixed(1), (22.5 - ((value ?? 0) / most) * 21).toFixed(1)]);
  const line = `M${places.map((place) => place.join(" ")).join("L")}`;
  return { line, area: `${line}L120 24L0 24Z` };
}

/** What the pill says: state, the word that is read aloud when it changes, and what changes each second. */
export function freshness(feed) {
  if (feed.state === "connecting") return { state: "connecting", word: "connecting" };
  if (feed.state === "disconnected") {
    const left = Math.max(1, Math.ceil((feed.retryAt - feed.now) / 1000));
    const seen = feed.frame ? `Numbers are those of ${text(duration(feed.now - feed.receivedAt))} ago` : undefined;
    return { state: "disconnected", word: "disconnected", detail: `trying again in ${left} s`, title: seen };
  }
  const { frame } = feed;
  if (isReading(frame)) return { state: "connecting", word: "reading" };
  if (isEmpty(frame)) return { state: "empty", word: "no data yet", title: frame.problem };
  if (frame.problem) return { state: "stale", word: "can’t read", title: frame.problem };
  const { newest_event_age_seconds: age, stale } = frame.freshness ?? {};
  if (age == null) return { state: "empty", word: "no data yet" };
  const behind = age + Math.max(feed.now - feed.receivedAt, 0) / 1000;
  const detail = `${behind < 60 ? `${behind.toFixed(1)} s` : text(duration(behind * 1000))} behind`;
  return { state: stale ? "stale" : "live", word: stale ? "stale" : "live", detail, title: stale ?? "Age of the newest event that is stored" };
}

/** What is to be said above the numbers, if anything: a kind, and the text. */
export function notice(feed) {
  const { frame } = feed;
  if (!frame || isReading(frame)) return null;
  if (isEmpty(frame)) return { kind: "empty", text: frame.problem ?? "" };
  if (frame.problem) return { kind: "problem", text: frame.problem };
  if (frame.freshness.stale) return { kind: "stale", text: frame.freshness.stale };
  return null;
}
