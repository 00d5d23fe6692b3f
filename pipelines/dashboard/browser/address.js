// What a page shows is said by its address: a reload, a link that was sent on and the browser's way back show the same.
import { reactive } from "vue";

const DEFAULTS = {
  window: "5m",
  saga: "",
  q: "",
  sort: "age",
  order: "desc",
  page: "1",
  range: "7d",
  color: "p95",
  report: "",
};

export const address = reactive({ ...DEFAULTS });

function read() {
  const query = new URLSearchParams(location.search);
  for (const [name, fallback] of Object.entries(DEFAULTS)) address[name] = query.get(name) ?? fallback;
}

/** The query for these values; a default is not written. */
export function query(values) {
  const said = new URLSearchParams();
  for (const [name, fallback] of Object.entries(DEFAULTS))
    if (values[name] && values[name] !== fallback) said.set(name, values[name]);
  const text = said.toString();
  return text && `?${text}`;
}

/** Change what is shown. What is typed letter by letter makes one step back, not one a letter: `replace`. */
export function show(changes, { replace = false } = {}) {
  Object.assign(address, changes);
  const method = replace ? "replaceState" : "pushState";
  history[method](null, "", location.pathname + query(address) + location.hash);
}

/** A link to another page that keeps what is asked about, but not where in a list one was. */
export function link(path, changes = {}) {
  const { window, saga, range } = address;
  return path + query({ window, saga, range, ...changes });
}

export const sagaLink = (id) => `/sagas/${encodeURIComponent(id)}`;

addEventListener("popstate", read);
read();
