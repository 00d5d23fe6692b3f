// How Sagascope itself is: the job, the tables, how far they are behind the topic, and what is not known.
import { ask } from "sagascope/ask.js";
import { feed } from "sagascope/feed.js";
import { coded, count, dateTime, duration, moment, rate, text, utc } from "sagascope/format.js";

const EVERY_MS = 2_000;
/** What has no place here yet, said plainly. */
const MISSING = [
  ["Parity", "Whether topic, tables and statistics agree is not looked at while you watch: it reads the topic.", "sagascope parity"],
  ["Rejected records", "What is no valid event is in the table rejected_events.", 'sagascope sql "FROM rejected_events"'],
  ["Dead letters", "Each service keeps its own, where its listeners were told to.", ""],
  ["Alerts", "There are none on this page yet.", ""],
];

export default {
  template: `
    <section class="system" :aria-busy="!found && !problem">
      <p v-if="problem" class="notice" data-kind="problem" role="status">{{ problem.message }}<template v-if="problem.cure">. {{ problem.cure }}</template></p>
      <dl v-if="found" class="facts">
        <div v-for="fact in facts" :key="fact.name"><dt>{{ fact.name }}</dt><dd :title="fact.title"><b>{{ fact.value }}</b> <small>{{ fact.unit }}</small></dd></div>
      </dl>
      <div v-else class="waiting"><span v-for="n in 4" :key="n" class="bone"></span></div>
      <template v-if="found">
        <header><h2>Behind the topic</h2><span class="dim">{{ found.topic }}</span></header>
        <p v-if="found.lag_unknown" class="dim unknown"><template v-for="(part, n) in coded(found.lag_unknown)" :key="n"><code v-if="n % 2">{{ part }}</code><template v-else>{{ part }}</template></template></p>
        <div v-else class="scroll" tabindex="0" role="region" aria-label="Partitions"><table><thead><tr><th scope="col">Partition</th><th scope="col" class="number">Next offset</th><th scope="col" class="number">Last stored</th><th scope="col" class="number">Behind</th></tr></thead>
          <tbody><tr v-for="part in found.lag" :key="part.partition"><td>{{ part.partition }}</td><td class="number">{{ count(part.end) }}</td><td class="number">{{ count(part.stored) }}</td><td class="number"><b>{{ count(part.lag) }}</b></td></tr></tbody></table></div>
        <header><h2 :title="found.home">Tables</h2></header>
        <p v-if="!found.tables.length" class="dim unknown">There are none yet: <code>make demo</code> makes them.</p>
        <div v-else class="scroll" tabindex="0" role="region" aria-label="Tables"><table><thead><tr><th scope="col">Table</th><th scope="col">Newest snapshot</th><th scope="col">Committed</th><th scope="col" class="number">Ago</th></tr></thead>
          <tbody><tr v-for="table in found.tables" :key="table.table_name"><td><b>{{ table.table_name }}</b></td><td class="mono">{{ table.snapshot_id ?? 'none yet' }}</td><td :title="utc(table.committed_at)">{{ dateTime(table.committed_at) }}</td><td class="number"><b>{{ ago(table).value }}</b><small>{{ ago(table).unit }}</small></td></tr></tbody></table></div>
        <header><h2>Not on this page yet</h2></header>
        <dl class="missing"><template v-for="[name, what, command] in missing" :key="name"><dt>{{ name }}</dt><dd>{{ what }} <code v-if="command">{{ command }}</code></dd></template></dl>
      </template>
    </section>
  `,
  data: () => ({ found: null, problem: null, missing: MISSING }),
  computed: {
    facts() {
      const { found } = this;
      const fresh = feed.frame?.freshness;
      const seconds = (value) => (value == null ? { value: "–", unit: "" } : duration(value * 1000));
      const minute = feed.frame?.windows?.[0];
      const steps = minute?.all_steps;
      const behind = found.lag.reduce((sum, part) => sum + part.lag, 0);
      return [
        { name: "Analytics job", value: found.job_pid ? "runs" : "not on this machine", unit: found.job_pid ? `pid ${found.job_pid}` : "" },
        { name: "Newest event", ...seconds(fresh?.newest_event_age_seconds), title: utc(fresh?.newest_event_at) },
        { name: "Newest commit", ...seconds(fresh?.newest_commit_age_seconds), title: utc(fresh?.newest_commit_at) },
        { name: "Commits", value: rate(found.commits_last_minute), unit: "/min", title: "To events" },
        { name: "Steps ended", value: steps ? rate(steps.completed_per_minute + steps.failed_per_minute) : "–", unit: "/min" },
        { name: "Behind the topic", value: found.lag_unknown ? "not known" : count(behind), unit: found.lag_unknown ? "" : "records" },
        { name: "A look at the tables", ...duration(found.refresh_ms), title: "How long the newest one took" },
        { name: "Viewers", value: count(found.viewers), unit: "" },
      ];
    },
  },
  mounted() {
    this.timer = setInterval(() => document.hidden || this.load(), EVERY_MS);
    this.load();
  },
  beforeUnmount() {
    clearInterval(this.timer);
  },
  methods: {
    coded,
    count,
    dateTime,
    text,
    utc,
    ago: (table) => duration(table.committed_at && Math.max(feed.now - moment(table.committed_at), 0)),
    async load() {
      try {
        [this.found, this.problem] = [Object.freeze(await ask("/api/v1/system")), null];
      } catch (error) {
        this.problem = error;
      }
    },
  },
};
