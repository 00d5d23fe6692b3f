// How numbers and moments are written. Numbers and their units are apart: a unit is drawn small and dim.

const grouped = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const NOTHING = { value: "–", unit: "" };

export const count = (number) => (number == null ? "–" : grouped.format(Math.round(number)));

/** As many decimals as mean something: 0.4, 7.2, 38, 1,204. */
export function rate(number) {
  if (number == null) return "–";
  return number !== 0 && Math.abs(number) < 10 ? one.format(number) : grouped.format(Math.round(number));
}

export function percent(share) {
  if (share == null) return NOTHING;
  const number = share * 100;
  const digits = number === 0 || number >= 99.95 ? 0 : number < 1 ? 2 : 1;
  return { value: number.toFixed(digits), unit: "%" };
}

/** A span of time in ms, to two or three figures. */
export function duration(ms) {
  if (ms == null) return NOTHING;
  if (ms < 1000) return { value: grouped.format(Math.round(ms)), unit: "ms" };
  const seconds = ms / 1000;
  if (seconds < 10) return { value: seconds.toFixed(2), unit: "s" };
  if (seconds < 60) return { value: seconds.toFixed(1), unit: "s" };
  const [big, small, names] =
    seconds < 3600 ? [60, 1, ["m", "s"]] : seconds < 86400 ? [3600, 60, ["h", "m"]] : [86400, 3600, ["d", "h"]];
  let whole = Math.floor(seconds / big);
  let rest = Math.round((seconds - whole * big) / small);
  if (rest === Math.round(big / small)) [whole, rest] = [whole + 1, 0];
  return rest ? { value: `${whole}${names[0]} ${rest}${names[1]}`, unit: "" } : { value: `${whole}`, unit: names[0] };
}

export const text = ({ value, unit }) => (unit ? `${value} ${unit}` : value);

/** A text in parts; what stands between backticks, each second part, is code. */
export const coded = (said) => `${said.charAt(0).toUpperCase()}${said.slice(1)}`.split("`");

/** Milliseconds since the epoch of what the API gives: such a number, or an ISO text. */
export const moment = (value) => (value == null ? null : typeof value === "number" ? value : Date.parse(value));

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

/** In the viewer's zone. */
export const time = (value) => (value == null ? "–" : clock.format(moment(value)));
export const date = (value) => (value == null ? "–" : day.format(moment(value)));
export const dateTime = (value) => (value == null ? "–" : `${date(value)}, ${time(value)}`);
/** For a title: what the same moment is in UTC. */
export const utc = (value) =>
  value == null ? undefined : `${new Date(moment(value)).toISOString().replace("T", " ").replace("Z", "")} UTC`;
/** As a zone is named, for the foot of a chart. */
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** The middle of a long text left out: both ends of an id tell ids apart. */
export const shortened = (name, length = 20) =>
  name.length <= length ? name : `${name.slice(0, Math.ceil(length / 2))}…${name.slice(1 - Math.floor(length / 2))}`;
