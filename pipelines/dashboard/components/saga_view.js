// One run of a saga: what became of it, its steps and compensations over time, its events.
import { ask } from "sagascope/ask.js";
import { count, dateTime, duration, moment, text, time, utc } from "sagascope/format.js";
import { link, sagaLink } from "sagascope/address.js";

/** How often a run that is open is asked for again. */
const EVERY_MS = 2_000;
/** Of a text that may be a megabyte so much is drawn until one asks for all. */
const SHOWN = 2_000;
const OUTCOMES = {
  open: ["running", "◌", "started"],
  completed: ["completed", "✓", "completed"],
  rolled_back: ["rolled back", "↶", "undone"],
  rolled_back_partial: ["rolled back in part", "↶", "failed"],
  compensation_failed: ["compensation failed", "✕", "failed"],
  partially_committed: ["partially committed", "✕", "failed"],
  failed_nothing_to_undo: ["failed, nothing to undo", "✕", "failed"],
};
const REASONS = {
  compensation_failed: "its compensation failed",
  compensation_unfinished: "its compensation was begun and not finished",
  pivot: "it is the pivot: once done there is no way back",
  pivot_completed: "the pivot was done, so it was not undone",
  not_compensable: "it has no compensation",
  not_compensated: "it was not undone, though it could have been",
  unknown: "whether it can be undone is not known",
};

export default {
  props: { identity: String, trace_pattern: String },
  template: `
    <article class="saga" :aria-busy="!found && !problem">
      <div v-if="problem && !found" class="notice" data-kind="empty">
        <h2>{{ problem.status === 404 ? 'No such saga' : 'This saga can’t be shown' }}</h2>
        <p>{{ problem.message }}</p><p v-if="problem.cure" class="dim">{{ problem.cure }}</p>
        <p><a href="/">Back to the live page</a></p>
      </div>
      <template v-else-if="found">
        <header class="title">
          <h1>{{ found.run.saga_id }}</h1>
          <span class="badge" :class="'tone-' + outcome.tone" data-field="outcome"><i aria-hidden="true">{{ outcome.sign }}</i>{{ outcome.name }}</span>
          <span v-if="problem" class="problem" role="status">{{ problem.message }}</span>
        </header>
        <dl class="facts">
          <div v-for="fact in facts" :key="fact.name"><dt>{{ fact.name }}</dt><dd :title="fact.title" :class="{ mono: fact.mono }"><a v-if="fact.href" :href="fact.href" :rel="fact.rel">{{ fact.value }}</a><template v-else>{{ fact.value }}</template></dd></div>
        </dl>
        <section v-if="error" class="error tone-failed" aria-label="Error"><b>{{ error.where }}</b><pre>{{ error.text }}</pre>
          <button v-if="error.cut" type="button" class="plain" @click="whole = true">show all {{ count(error.length) }} characters</button></section>
        <section v-if="left.length" class="left" aria-label="Left standing"><h2>Left standing</h2>
          <ul><li v-for="effect in left" :key="effect.step_name"><b>{{ effect.step_name }}</b> – {{ effect.why }}</li></ul></section>

        <section class="gantt" aria-label="Timeline">
          <header><h2>Timeline</h2><span class="dim">{{ count(bars.length) }} executions over {{ span }}</span>
            <ul class="legend"><li v-for="[mark, name] in legend" :key="mark"><span class="mark" :class="mark"></span>{{ name }}</li></ul></header>
          <div class="axis" aria-hidden="true"><span v-for="tick in ticks" :key="tick.at" :style="{ left: tick.at }">{{ tick.text }}</span></div>
          <ol>
            <li v-for="(bar, n) in bars" :key="n" :title="bar.title" :data-step="bar.step_name" :data-phase="bar.phase">
              <span class="what"><i v-if="bar.phase === 'compensation'">undo</i><b>{{ bar.step_name }}</b><small v-if="bar.attempt > 1">attempt {{ bar.attempt }}</small></span>
              <span class="lane"><span v-for="tick in ticks" :key="tick.at" class="rule" :style="{ left: tick.at }"></span><span class="mark" :class="bar.mark" :style="bar.style"></span></span>
              <span class="took"><b>{{ bar.took.value }}</b><small>{{ bar.took.unit }}</small></span>
              <span class="said" :class="{ bad: bar.status === 'failed' }">{{ bar.said }}</span>
            </li>
          </ol>
        </section>

        <section class="events"><header><h2>Events</h2><span class="dim">{{ count(found.events.length) }}</span></header>
          <div class="scroll" tabindex="0" role="region" aria-label="Events, a row each"><table>
            <thead><tr><th scope="col" class="number">#</th><th scope="col">Time</th><th scope="col">Event</th><th scope="col">Step</th><th scope="col" class="number">Attempt</th><th scope="col" class="number">Took</th><th scope="col" class="wide">Error</th></tr></thead>
            <tbody><tr v-for="event in events" :key="event.event_id">
              <td class="number">{{ event.sequence }}</td><td :title="event.utc">{{ event.time }}<small>.{{ event.ms }}</small></td>
              <td><span class="dot" :class="event.mark" aria-hidden="true"></span>{{ event.event_type }}</td><td>{{ event.step_name ?? '' }}</td>
              <td class="number">{{ event.attempt }}</td><td class="number"><b>{{ event.took.value }}</b><small>{{ event.took.unit }}</small></td>
              <td class="wide" :title="event.error?.slice(0, ${SHOWN})">{{ event.error?.slice(0, 160) }}</td>
            </tr></tbody>
          </table></div>
        </section>
        <p v-if="found.earlier_runs.length" class="dim earlier">Earlier runs of this saga: <template v-for="(id, n) in found.earlier_runs" :key="id"><template v-if="n">, </template><a :href="sagaLink(id)">{{ id }}</a></template></p>
      </template>
      <template v-else><header class="title"><h1>{{ identity }}</h1></header><p v-for="n in 9" :key="n" class="loading"><span class="bone"></span></p></template>
    </article>
  `,
  data: () => ({ found: null, problem: null, whole: false }),
  computed: {
    outcome() {
      const known = OUTCOMES[this.found.run.outcome ?? "open"] ?? [this.found.run.outcome, "?", "plain"];
      return { name: known[0], sign: known[1], tone: known[2] };
    },
    facts() {
      const { run, events } = this.found;
      const trace = events.find((event) => event.trace_id)?.trace_id;
      const facts = [
        { name: "Kind", value: run.saga_name, href: link("/flow", { saga: run.saga_name }) },
        { name: "Started", value: dateTime(run.started_at), title: utc(run.started_at) },
        run.ended_at
          ? { name: "Ended", value: dateTime(run.ended_at), title: utc(run.ended_at) }
          : { name: "Last event", value: dateTime(run.last_event_at), title: utc(run.last_event_at) },
        { name: run.ended_at ? "Took" : "Age", value: text(duration(run.total_ms ?? this.until - this.from)), title: run.total_derived ? "From timestamps, not measured" : undefined },
        run.wasted_ms ? { name: "Wasted", value: text(duration(run.wasted_ms)), title: "Work that was undone, and undoing it" } : null,
        ...Object.entries(run.attributes ?? {}).map(([name, value]) => ({ name, value })),
        trace ? { name: "Trace", value: trace, mono: true, href: this.traceLink(trace), rel: "noopener noreferrer" } : null,
        { name: "Run", value: run.run_id, mono: true },
      ];
      return facts.filter((fact) => fact);
    },
    error() {
      const { error_type: type, error_message: message, failing_step: step } = this.found.run;
      if (!type && !message) return null;
      const all = [type, message].filter(Boolean).join(": ");
      return { where: step ? `${step} failed` : "It failed", text: this.whole ? all : all.slice(0, SHOWN), length: all.length, cut: !this.whole && all.length > SHOWN };
    },
    left() {
      return (this.found.run.residual_effects ?? []).map((effect) => ({ ...effect, why: REASONS[effect.reason] ?? effect.reason }));
    },
    from() {
      const starts = this.found.steps.map((step) => moment(step.started_at ?? step.ended_at));
      return starts.reduce((first, start) => Math.min(first, start), moment(this.found.run.started_at));
    },
    until() {
      const { run, steps } = this.found;
      const end = run.ended_at ? moment(run.ended_at) : Date.now();
      return Math.max(steps.reduce((last, step) => Math.max(last, moment(step.ended_at) ?? 0), end), this.from + 1);
    },
    span() {
      return text(duration(this.until - this.from));
    },
    ticks() {
      const wide = this.until - this.from;
      return [0, 0.25, 0.5, 0.75, 1].map((share) => ({ at: `${share * 100}%`, text: share ? `+${text(duration(wide * share))}` : time(this.from) }));
    },
    bars() {
      const wide = this.until - this.from;
      return this.found.steps.map((step) => {
        const start = moment(step.started_at ?? step.ended_at);
        const stop = step.ended_at ? moment(step.ended_at) : this.until;
        const took = duration(step.duration_ms ?? (step.status === "started" ? stop - start : null));
        const error = [step.error_type, step.error_message].filter(Boolean).join(": ");
        return {
          ...step,
          took,
          mark: `${step.phase}-${step.status}`,
          style: { left: `${((start - this.from) / wide) * 100}%`, width: `${((stop - start) / wide) * 100}%` },
          said: step.status === "completed" ? "" : error.slice(0, 200) || (step.status === "started" ? "running" : step.status),
          title: `${step.step_name}, ${step.phase}, attempt ${step.attempt}: ${step.status}, from +${text(duration(start - this.from))}, took ${text(took)}${error ? `. ${error.slice(0, SHOWN)}` : ""}`,
        };
      });
    },
    legend() {
      const names = {
        "step-completed": "step",
        "step-failed": "failed",
        "step-started": "running",
        "compensation-completed": "undone",
        "compensation-failed": "undoing failed",
        "compensation-started": "undoing",
      };
      const seen = new Set(this.bars.map((bar) => bar.mark));
      return Object.entries(names).filter(([mark]) => seen.has(mark));
    },
    events() {
      return this.found.events.map((event) => ({
        ...event,
        time: time(event.timestamp),
        ms: String(moment(event.timestamp) % 1000).padStart(3, "0"),
        utc: utc(event.timestamp),
        took: event.duration_ms == null && event.total_duration_ms == null ? { value: "", unit: "" } : duration(event.duration_ms ?? event.total_duration_ms),
        mark: event.event_type.endsWith("_failed") ? "bad" : event.event_type.startsWith("compensation") || event.event_type === "saga_rolled_back" ? "undo" : event.event_type.endsWith("_completed") ? "good" : "",
        error: [event.error_type, event.error_message].filter(Boolean).join(": "),
      }));
    },
  },
  mounted() {
    this.load();
    this.timer = setInterval(() => this.found && !this.found.run.outcome && !document.hidden && this.load(), EVERY_MS);
  },
  beforeUnmount() {
    clearInterval(this.timer);
  },
  methods: {
    count,
    sagaLink,
    async load() {
      try {
        [this.found, this.problem] = [Object.freeze(await ask(`/api/v1/sagas/${encodeURIComponent(this.identity)}`)), null];
        document.title = `${this.found.run.saga_id} · Sagascope`;
      } catch (error) {
        this.problem = error;
      }
    },
    traceLink(id) {
      return this.trace_pattern ? this.trace_pattern.replace("{trace_id}", encodeURIComponent(id)) : undefined;
    },
  },
};
