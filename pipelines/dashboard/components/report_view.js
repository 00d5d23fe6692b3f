// A named report over the history: its chart, and its rows as a table for who wants numbers, or can't see charts.
import { address } from "sagascope/address.js";
import { ask } from "sagascope/ask.js";
import { chart } from "sagascope/charts.js";
import { count, dateTime } from "sagascope/format.js";
import { height, options, ranking, title, written } from "sagascope/report.js";

const DAYS = { "24h": 1, "7d": 7, "30d": 30, "90d": 90 };
const ROWS = 200;

export default {
  props: { report: Object },
  template: `
    <section ref="section" class="report" :class="'kind-' + report.chart.kind" :aria-label="report.heading" :aria-busy="!answer && !problem">
      <header><h2>{{ report.heading }}</h2>
        <label v-if="report.takes === 'moment'" class="at">before and after <input class="field" type="datetime-local" :value="at" @change="at = $event.target.value" aria-label="The moment to compare before with after of"></label>
        <button v-if="answer" type="button" class="plain more" :aria-expanded="rows" @click="rows = !rows">{{ rows ? 'Chart' : 'Rows' }}</button></header>
      <p class="dim doc" :title="report.doc">{{ doc }}<template v-if="report.chart.kind === 'ranking' && report.chart.x.length > 1">: {{ report.chart.x.join(' / ') }}</template></p>
      <p v-if="problem" class="problem" role="status">{{ problem.message }}<template v-if="problem.cure && problem.cure !== 'see /docs'">. {{ problem.cure }}</template></p>
      <p v-else-if="answer && !answer.rows.length" class="nothing dim">Nothing in this range{{ address.saga ? ' for ' + address.saga : '' }}.</p>
      <div v-else-if="answer && rows" class="scroll tall" tabindex="0" role="region" :aria-label="report.heading + ', rows'"><table>
        <thead><tr><th v-for="(column, n) in answer.columns" :key="column" scope="col" :class="{ number: numeric[n] }">{{ title(column) }}</th></tr></thead>
        <tbody><tr v-for="(row, n) in answer.rows.slice(0, ${ROWS})" :key="n"><td v-for="(value, k) in row" :key="k" :class="{ number: numeric[k] }" :title="String(value ?? '').slice(0, 400)">{{ written(answer.columns[k], value) }}</td></tr></tbody>
      </table><p v-if="answer.rows.length > ${ROWS}" class="dim">The first ${ROWS} of {{ count(answer.rows.length) }}; all: <code>sagascope report {{ report.name }}</code></p></div>
      <ol v-else-if="answer && report.chart.kind === 'ranking'" class="ranks">
        <li v-for="row in ranked" :key="row.key"><span class="names" :title="row.names.join(' · ')"><b>{{ row.names.at(-1) }}</b><small v-if="row.names.length > 1">{{ row.names.slice(0, -1).join(' · ') }}</small></span>
          <small class="tag">{{ row.tag }}</small><b class="value">{{ row.value }}</b>
          <span class="track" aria-hidden="true"><span v-for="part in row.parts" :key="part.column" :style="{ width: part.width, background: 'var(--' + part.color + ')' }"></span></span></li>
      </ol>
      <div v-else-if="!answer" class="waiting"><span v-for="n in 6" :key="n" class="bone" :style="{ width: 96 - n * 11 + '%' }"></span></div>
      <div v-show="drawn" ref="canvas" class="canvas" role="img" :aria-label="report.heading + ': ' + report.title" :style="{ height: tall + 'px' }"></div>
    </section>
  `,
  data: () => ({ address, answer: null, problem: null, rows: false, tall: 240, at: halfWay() }),
  computed: {
    /** Over how long it looks is said by the range; what the heading says already is left out. */
    doc() {
      const said = this.report.title.replace(/,? over (the last )?(\d+|five|[a-z]+) [a-z]+$/, "").replace(`${this.report.heading}, `, "");
      return said === this.report.heading ? "\u00a0" : said.charAt(0).toUpperCase() + said.slice(1);
    },
    drawn() {
      return !!this.answer?.rows.length && !this.rows && !this.problem && this.report.chart.kind !== "ranking";
    },
    ranked() {
      return ranking(this.answer, this.report.chart);
    },
    numeric() {
      return this.answer.columns.map((_, n) => this.answer.rows.some((row) => typeof row[n] === "number"));
    },
    asked() {
      return [this.report.name, address.saga, address.range, this.at].join("\n");
    },
  },
  watch: {
    asked() {
      this.load();
    },
    drawn(is) {
      if (is) this.draw();
    },
  },
  mounted() {
    this.load();
  },
  beforeUnmount() {
    this.asking?.abort();
    this.dispose?.();
  },
  methods: {
    count,
    dateTime,
    title,
    written,
    async load() {
      this.asking?.abort();
      const asking = (this.asking = new AbortController());
      const since = new Date(Date.now() - (DAYS[address.range] ?? 7) * 86_400_000);
      since.setSeconds(0, 0); // the same question within a minute has the same answer
      try {
        const at = this.report.takes === "moment" ? new Date(this.at).toISOString() : undefined;
        const answer = await ask(`/api/v1/reports/${this.report.name}`, { since: since.toISOString(), saga: pattern(address.saga), at }, asking.signal);
        [this.answer, this.problem] = [Object.freeze(answer), null];
        if (this.drawn) this.draw();
      } catch (error) {
        if (error.name !== "AbortError") this.problem = error;
      }
    },
    async draw() {
      this.tall = height(this.answer, this.report.chart);
      await this.$nextTick();
      this.drawing ??= chart(this.$refs.canvas, { redraw: () => this.drawn && this.draw() });
      const drawing = await this.drawing;
      if (!drawing) return;
      this.dispose = drawing.dispose;
      drawing.drawn.resize();
      drawing.drawn.setOption(options(this.answer, this.report.chart), true);
    },
  },
};

/** What the API takes is a pattern: a star in a name would match too much, and is no more than a question mark there. */
const pattern = (saga) => saga && saga.replaceAll("*", "?");

/** Through the range: what two periods are compared at, unless told. */
const halfWay = () => local(new Date(Date.now() - (DAYS[address.range] ?? 7) * 43_200_000));

const local = (moment) => new Date(moment - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
