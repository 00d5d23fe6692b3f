// A kind of saga as a graph, from its definition: how long each step takes, how often it fails.
import { address, show } from "sagascope/address.js";
import { ask } from "sagascope/ask.js";
import { feed } from "sagascope/feed.js";
import { count, duration, percent, text } from "sagascope/format.js";
import { sagaNames } from "sagascope/frame.js";
import { layered } from "sagascope/layers.js";

const EVERY_MS = 2_000;
const NODE = { height: 84, down: 24 };
/** As wide as the page allows; below the least it scrolls. */
const WIDTHS = { least: 160, most: 196, across: [24, 56] };
const COLORS = { p95: "p95", failures: "failure rate" };

export default {
  template: `
    <section class="flow" aria-label="Flow" :aria-busy="!flow && !problem">
      <header><h2>{{ saga ?? 'Flow' }}</h2><span v-if="flow" class="dim">{{ steps.length }} steps · {{ flow.definition_id ? 'definition ' + flow.definition_id : 'no definition is known: steps that ended within the window' }}</span>
        <fieldset class="segments" aria-label="Colour steps by">
          <label v-for="(name, key) in colors" :key="key"><input type="radio" name="color" :value="key" :checked="address.color === key" @change="show({ color: key })"><span>{{ name }}</span></label>
        </fieldset></header>
      <div v-if="problem" class="notice" data-kind="problem"><p>{{ problem.message }}<template v-if="problem.cure">. {{ problem.cure }}</template></p></div>
      <div v-else-if="!saga" class="notice" data-kind="empty"><h2>No saga within the last hour</h2><p>Choose one in the bar above once one has run, or start some:</p><pre><code>make demo</code></pre></div>
      <div v-else-if="flow" class="scroll" tabindex="0" role="region" aria-label="Graph"><div class="graph" :style="{ width: graph.width + 'px', height: graph.height + 'px' }">
        <svg :width="graph.width" :height="graph.height" aria-hidden="true">
          <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8Z" fill="var(--strong)"/></marker></defs>
          <path v-for="edge in graph.edges" :key="edge.key" :d="edge.path" marker-end="url(#arrow)"/>
        </svg>
        <ol><li v-for="node in nodes" :key="node.name" class="node" :class="{ idle: !node.figures }" :style="node.style" :title="node.title" :data-step="node.name">
          <b class="name">{{ node.name }}</b>
          <span class="marks"><i v-if="node.pivot" title="Pivot: once it completed there is no way back">pivot</i><i v-if="node.compensable" :class="{ undo: node.ran }" :title="node.undo">undo {{ node.undone }}</i></span>
          <span class="row"><span><small>p95</small> <b>{{ node.p95.value }}</b><small>{{ node.p95.unit }}</small></span><span><small>failed</small> <b>{{ node.rate.value }}</b><small>{{ node.rate.unit }}</small></span></span>
          <span class="heat" aria-hidden="true"><span :style="{ width: node.share }"></span></span>
        </li></ol>
      </div></div>
      <div v-else class="waiting"><span v-for="n in 4" :key="n" class="bone"></span></div>
      <div v-if="flow" class="scroll below" tabindex="0" role="region" aria-label="Steps"><table>
        <thead><tr><th scope="col">Step</th><th scope="col">Waits for</th><th scope="col" class="number">Ended</th><th scope="col" class="number">Failed</th><th scope="col" class="number">Failure rate</th><th scope="col" class="number">p50</th><th scope="col" class="number">p95</th><th scope="col" class="number">p99</th><th scope="col" class="number">Timeout</th><th scope="col" class="number">Undone</th></tr></thead>
        <tbody><tr v-for="row in rows" :key="row.step_name"><td><b>{{ row.step_name }}</b></td><td class="dim">{{ row.depends_on.join(', ') || '–' }}</td>
          <td v-for="(cell, n) in row.cells" :key="n" class="number"><b>{{ cell.value }}</b><small>{{ cell.unit }}</small></td></tr></tbody>
      </table></div>
    </section>
  `,
  data: () => ({ address, flow: null, problem: null, colors: COLORS, room: 0 }),
  computed: {
    saga: () => address.saga || sagaNames(feed.frame)[0],
    steps() {
      return this.flow.steps;
    },
    graph() {
      const narrow = layered(this.steps, { ...NODE, width: 1, across: 0 }).width; // how many columns there are
      const across = narrow > 5 ? WIDTHS.across[0] : WIDTHS.across[1];
      const fitting = Math.floor((this.room - (narrow - 1) * across) / narrow);
      const least = this.room < 640 ? WIDTHS.most : WIDTHS.least; // what has to be scrolled anyway need not be narrow
      const width = Math.min(Math.max(fitting, least), WIDTHS.most);
      return { ...layered(this.steps, { ...NODE, width, across }), node: width };
    },
    worst() {
      const of = (field) => Math.max(...this.steps.map((step) => step.step?.[field] ?? 0), Number.MIN_VALUE);
      return { p95_ms: of("p95_ms"), failure_rate: of("failure_rate") };
    },
    nodes() {
      const field = address.color === "failures" ? "failure_rate" : "p95_ms";
      const tone = field === "p95_ms" ? "p95" : "failed";
      return this.graph.nodes.map(({ step, x, y }) => {
        const share = (step.step?.[field] ?? 0) / this.worst[field];
        const undone = step.compensation ? step.compensation.completed + step.compensation.failed : 0;
        return {
          name: step.step_name,
          figures: step.step,
          pivot: step.pivot,
          undone: count(undone),
          compensable: step.compensable || undone > 0,
          ran: undone > 0,
          undo: undone ? `Its compensation ran ${count(undone)} times, p95 ${text(duration(step.compensation.p95_ms))}` : "It has a compensation, which did not run",
          p95: duration(step.step?.p95_ms),
          rate: percent(step.step?.failure_rate),
          share: `${share * 100}%`,
          style: { width: `${this.graph.node}px`, left: `${x}px`, top: `${y}px`, "--tone": `var(--${tone})`, "--heat": `${Math.round(share * 16)}%` },
          title: step.step ? `${step.step_name}: ${count(step.step.completed + step.step.failed)} ended within ${this.flow.window}` : `${step.step_name}: none ended within ${this.flow.window}`,
        };
      });
    },
    rows() {
      const plain = (value) => ({ value: value == null ? "–" : count(value), unit: "" });
      return this.steps.map((step) => {
        const { step: is, compensation: undo } = step;
        return {
          ...step,
          cells: [
            plain(is && is.completed + is.failed),
            plain(is?.failed),
            percent(is?.failure_rate),
            duration(is?.p50_ms),
            duration(is?.p95_ms),
            duration(is?.p99_ms),
            step.timeout_seconds == null ? plain(null) : duration(step.timeout_seconds * 1000),
            plain(undo && undo.completed + undo.failed),
          ],
        };
      });
    },
    question() {
      return [this.saga, address.window].join("\n");
    },
  },
  watch: {
    question() {
      this.load();
    },
  },
  mounted() {
    this.timer = setInterval(() => !document.hidden && !this.asking && this.load(), EVERY_MS);
    this.load();
    this.sized = new ResizeObserver(([entry]) => (this.room = entry.contentRect.width));
    this.sized.observe(this.$el);
  },
  beforeUnmount() {
    this.sized.disconnect();
    clearInterval(this.timer);
    this.asking?.abort();
  },
  methods: {
    show,
    async load() {
      if (!this.saga) return;
      this.asking?.abort();
      const asking = (this.asking = new AbortController());
      try {
        const flow = await ask(`/api/v1/flows/${encodeURIComponent(this.saga)}`, { window: address.window }, asking.signal);
        [this.flow, this.problem] = [Object.freeze(flow), null];
      } catch (error) {
        if (error.name !== "AbortError") this.problem = error;
      } finally {
        if (asking === this.asking) this.asking = null;
      }
    },
  },
};
