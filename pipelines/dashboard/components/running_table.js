// The sagas that run now. It asks by itself, once a second while it is seen: what it shows is its own for each viewer.
import { address, sagaLink, show } from "sagascope/address.js";
import { ask } from "sagascope/ask.js";
import { feed } from "sagascope/feed.js";
import { isEmpty } from "sagascope/frame.js";
import { count, dateTime, duration, shortened, text, time, utc } from "sagascope/format.js";

const PAGE = 50;
const EVERY_MS = 1_000;
/** More steps than these are drawn as one bar. */
const SEGMENTS = 16;
const COLUMNS = [
  { sort: "saga_id", title: "Saga" },
  { sort: "saga_name", title: "Kind" },
  { sort: "current_step", title: "Current step" },
  { sort: "steps_done", title: "Progress" },
  { sort: "age", title: "Age", number: true },
  { sort: "silent", title: "Silent for", number: true },
  { title: "Time left", number: true, help: "p50 – p90 of what completed runs of its kind took beyond the age it has" },
];

export default {
  template: `
    <section ref="section" class="running" aria-labelledby="running-title">
      <header>
        <h2 id="running-title">Running sagas</h2>
        <span class="dim" v-if="found" data-field="matching" :data-value="found.matching">{{ said }}</span>
        <span class="problem" v-if="problem" role="status">{{ problem.message }}<template v-if="problem.cure"> – {{ problem.cure }}</template></span>
        <nav v-if="found && found.matching > PAGE" class="pager" aria-label="Pages of the table">
          <button type="button" :disabled="page <= 1" @click="show({ page: String(page - 1) })" aria-label="Previous page">‹</button>
          <span>{{ count(first + 1) }}–{{ count(Math.min(first + PAGE, found.matching)) }}</span>
          <button type="button" :disabled="first + PAGE >= found.matching" @click="show({ page: String(page + 1) })" aria-label="Next page">›</button>
        </nav>
      </header>
      <div class="scroll" tabindex="0" role="region" aria-label="Running sagas, a row each">
        <table :aria-busy="!found && !problem && !empty">
          <thead><tr>
            <th v-for="column in columns" :key="column.title" scope="col" :class="{ number: column.number }" :title="column.help"
                :aria-sort="address.sort === column.sort ? (address.order === 'desc' ? 'descending' : 'ascending') : undefined">
              <button v-if="column.sort" type="button" @click="sort(column)">{{ column.title }}<span class="arrow" aria-hidden="true"></span></button>
              <template v-else>{{ column.title }}</template>
            </th>
          </tr></thead>
          <tbody v-if="found">
            <tr v-for="run in rows" :key="run.run_id" @click="open($event, run)" :data-run="run.run_id">
              <td class="id"><a :href="run.href" :title="run.saga_id">{{ run.short }}</a></td>
              <td class="kind" data-label="Kind" :title="run.saga_name">{{ run.saga_name }}</td>
              <td class="step" data-label="Step" :title="run.why"><i v-if="run.undoing">undo</i>{{ run.current_step ?? run.last_event_type }}</td>
              <td class="progress" data-label="Progress">
                <span class="bits" :class="{ undoing: run.undoing }" role="img" :aria-label="run.progress">
                  <template v-if="run.bits"><span v-for="(bit, n) in run.bits" :key="n" :class="bit"></span></template>
                  <span v-else class="bar"><span :style="{ width: run.width }"></span></span>
                </span><small aria-hidden="true">{{ run.steps }}</small>
              </td>
              <td class="number" data-label="Age" :title="run.since"><b>{{ run.age.value }}</b><small>{{ run.age.unit }}</small></td>
              <td class="number" data-label="Silent for" :title="run.heard" :class="{ warn: run.silent_ms > 60000 }"><b>{{ run.silent.value }}</b><small>{{ run.silent.unit }}</small></td>
              <td class="number eta" data-label="Time left"><span v-if="run.eta">{{ run.eta }}</span><span v-else class="dim" :title="run.noEta">–</span></td>
            </tr>
            <tr v-if="!rows.length" class="none"><td :colspan="columns.length">
              <template v-if="address.q || address.saga">No running saga matches. <button type="button" class="plain" @click="show({ q: '', saga: '', page: '1' })">Show all</button></template>
              <template v-else>No saga is running. Ended ones are under <a href="/history">History</a>.</template>
            </td></tr>
          </tbody>
          <tbody v-else-if="problem"><tr class="none"><td :colspan="columns.length">The running sagas can’t be shown now. It is tried again each second.</td></tr></tbody>
          <tbody v-else><tr v-for="n in 8" :key="n" class="none"><td :colspan="columns.length"><span class="bone"></span></td></tr></tbody>
        </table>
      </div>
    </section>
  `,
  data: () => ({ address, columns: COLUMNS, PAGE, found: null, problem: null, seen: true }),
  computed: {
    page: () => Math.max(1, Number.parseInt(address.page, 10) || 1),
    first() {
      return (this.page - 1) * PAGE;
    },
    said() {
      const what = address.q ? ` with “${shortened(address.q, 40)}”` : "";
      return `${count(this.found.matching)}${what}`;
    },
    rows() {
      return this.found.sagas.map(row);
    },
    empty: () => isEmpty(feed.frame),
    question: () => [address.q, address.saga, address.sort, address.order, address.page].join("\n"),
  },
  watch: {
    question() {
      this.load();
    },
  },
  mounted() {
    this.observer = new IntersectionObserver(([entry]) => (this.seen = entry.isIntersecting));
    this.observer.observe(this.$refs.section);
    this.timer = setInterval(() => this.seen && !document.hidden && !this.asking && this.load(), EVERY_MS);
    this.load();
  },
  beforeUnmount() {
    clearInterval(this.timer);
    this.observer.disconnect();
    this.asking?.abort();
  },
  methods: {
    count,
    show,
    async load() {
      if (this.empty) return; // it would be answered with an error
      this.asking?.abort();
      const asking = (this.asking = new AbortController());
      try {
        const parameters = {
          search: address.q,
          saga: address.saga,
          sort: address.sort,
          descending: address.order === "desc",
          limit: PAGE,
          offset: this.first,
        };
        const found = await ask("/api/v1/running", parameters, asking.signal);
        if (asking === this.asking) [this.found, this.problem] = [Object.freeze(found), null];
      } catch (error) {
        if (error.name !== "AbortError") this.problem = { message: error.message, cure: error.cure };
      } finally {
        if (asking === this.asking) this.asking = null;
      }
    },
    sort({ sort, number }) {
      const turned = address.order === "desc" ? "asc" : "desc";
      show({ sort, order: address.sort === sort ? turned : number ? "desc" : "asc", page: "1" });
    },
    open(event, run) {
      if (event.target.closest("a, button") || String(getSelection())) return;
      location.href = run.href;
    },
  },
};

function row(run) {
  const done = run.steps_done.length;
  const undone = run.steps_undone.length;
  const all = run.steps_defined ?? (run.steps_remaining == null ? null : done + run.steps_remaining);
  const bits = all && all <= SEGMENTS ? Array.from({ length: all }, (_, n) => bit(n, done, undone, run)) : null;
  return {
    ...run,
    href: sagaLink(run.saga_id),
    short: shortened(run.saga_id, 18),
    bits,
    width: all ? `${Math.min((done / all) * 100, 100)}%` : "0",
    steps: run.undoing ? `${undone}/${done} undone` : all ? `${done}/${all}` : `${done}`,
    progress: run.undoing ? `${undone} of ${done} steps undone` : all ? `${done} of ${all} steps done` : `${done} steps done`,
    age: duration(run.age_ms),
    silent: duration(run.silent_ms),
    since: `started ${dateTime(run.started_at)} (${utc(run.started_at)})`,
    heard: `last event ${time(run.last_event_at)} (${utc(run.last_event_at)})`,
    why: run.error_message ? `${run.failing_step ?? ""} ${run.error_type ?? ""}: ${run.error_message.slice(0, 300)}` : undefined,
    eta: run.eta_p50_ms == null ? null : span(run.eta_p50_ms, run.eta_p90_ms),
    noEta: run.undoing ? "it undoes what it did" : "fewer than 20 completed runs of its kind took this long",
  };
}

function bit(place, done, undone, run) {
  if (place < done) return place >= done - undone ? "undone" : "done";
  return place === done && !run.undoing ? "now" : "todo";
}

function span(p50, p90) {
  const [from, to] = [duration(p50), duration(p90)];
  return from.unit === to.unit && Number(to.value) ? `${from.value} – ${text(to)}` : `${text(from)} – ${text(to)}`;
}
