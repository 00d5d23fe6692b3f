// The last hour in windows of 10 s: bars of what ended with a line of what started, or lines of percentiles.
import { address } from "sagascope/address.js";
import { base, chart, timeAxis, valueAxis } from "sagascope/charts.js";
import { feed } from "sagascope/feed.js";
import { count, duration, text, time, utc, zone } from "sagascope/format.js";
import { series } from "sagascope/frame.js";
import { color } from "sagascope/theme.js";

/** The canvas is drawn again once a second at most. */
const EVERY_MS = 1_000;
const HOUR_MS = 3_600_000;

export default {
  props: { panel: Object },
  template: `
    <section class="chart" :aria-label="panel.title">
      <header>
        <h2>{{ panel.title }}</h2><span class="dim">{{ address.saga ? 'all sagas' : panel.measure }}</span>
        <ul class="legend">
          <li v-for="line in panel.lines" :key="line.field" :title="line.help">
            <svg viewBox="0 0 16 10" width="16" height="10" aria-hidden="true">
              <rect v-if="line.shape === 'bar'" x="3" y="0" width="10" height="10" rx="1.5" :fill="'var(--' + line.color + ')'"/>
              <path v-else d="M0 5h16" :stroke="'var(--' + line.color + ')'" stroke-width="2" :stroke-dasharray="line.dash?.join(' ')"/>
            </svg>{{ line.label }}
          </li>
          <li v-if="openFrom != null" title="Windows that the analytics job has not closed yet: they may still change"><svg viewBox="0 0 16 10" width="16" height="10" aria-hidden="true"><rect x="3" width="10" height="10" rx="1.5" :fill="'url(#hatch-' + panel.name + ')'"/></svg>open</li>
        </ul>
      </header>
      <div class="canvas" ref="canvas" role="img" :aria-label="summary" :aria-busy="!drawn" :data-panel="panel.name"></div>
      <p v-if="quiet" class="quiet">{{ panel.empty }}</p>
      <svg class="unseen" aria-hidden="true"><defs><pattern :id="'hatch-' + panel.name" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="4" height="4" fill="var(--band)"/><rect width="1.5" height="4" fill="var(--dim)"/></pattern></defs></svg>
    </section>
  `,
  data: () => ({ address, drawn: false, openFrom: null, summary: "", quiet: false }),
  async mounted() {
    this.drawing = await chart(this.$refs.canvas, { redraw: () => this.draw(true), group: "live" });
    this.$watch(() => feed.frame, this.soon);
    this.draw(true);
    this.drawn = true;
  },
  beforeUnmount() {
    clearTimeout(this.later);
    this.drawing?.dispose();
  },
  methods: {
    soon() {
      const wait = (this.drawnAt ?? 0) + EVERY_MS - performance.now();
      if (wait <= 0) this.draw();
      else this.later ??= setTimeout(() => this.draw(), wait);
    },
    draw(whole = false) {
      clearTimeout(this.later);
      this.later = null;
      this.drawnAt = performance.now();
      const all = series(feed.frame);
      this.openFrom = all && all.openFrom < all.moments.length ? all.openFrom : null;
      this.summary = all ? told(this.panel, all) : this.panel.title;
      this.quiet = !!all && this.panel.lines.every((line) => !all.values[line.field]?.some((value) => value));
      if (all) all.quiet = this.quiet;
      this.drawing?.drawn.setOption(whole ? { ...frameOf(this.panel), ...data(this.panel, all) } : data(this.panel, all), whole);
    },
  },
};

function frameOf(panel) {
  const written = panel.unit === "milliseconds" ? (value) => text(duration(value)) : count;
  return {
    ...base(),
    grid: { left: 52, right: 12, top: 10, bottom: 22 },
    yAxis: valueAxis({ min: 0, minInterval: panel.unit === "milliseconds" ? 0 : 1, axisLabel: { color: color("dim"), fontSize: 11, formatter: written } }),
    tooltip: {
      ...base().tooltip,
      formatter: (points) => {
        const at = points[0].value[0];
        const rows = points.map(
          ({ seriesName, value, marker }) =>
            `<tr><td>${marker}${seriesName}</td><td style="text-align:right;padding-left:16px;font-variant-numeric:tabular-nums">${value[1] == null ? "–" : written(value[1])}</td></tr>`,
        );
        const until = at + panel.width_ms;
        return `<b>${time(at)} – ${time(until)}</b> <span style="opacity:.65">${zone}</span><br><span style="opacity:.65">${utc(at).slice(11, 19)} UTC</span><table style="border-spacing:0">${rows.join("")}</table>`;
      },
    },
  };
}

function data(panel, all) {
  const end = all ? all.moments.at(-1) + all.width : Date.now();
  const lines = panel.lines.map((line, n) => ({
    ...(line.shape === "bar" ? bar(line) : curve(line)),
    name: line.label,
    data: (all && !all.quiet ? all.moments : []).map((at, place) => point(line, all, at, place)),
    ...(n === 0 && all ? { markArea: band(all, end) } : {}),
  }));
  return { xAxis: timeAxis({ min: end - HOUR_MS, max: end }), series: lines };
}

/** A bar stands over the middle of its window. */
function point(line, all, at, place) {
  const value = [line.shape === "bar" ? at + all.width / 2 : at, all.values[line.field]?.[place] ?? null];
  if (line.shape === "bar" && place >= all.openFrom) return { value, itemStyle: { opacity: 0.45 } };
  return value;
}

const bar = (line) => ({ type: "bar", stack: "ended", barWidth: "80%", itemStyle: { color: color(line.color) } });

const curve = (line) => ({
  type: "line",
  showSymbol: false,
  connectNulls: false,
  lineStyle: { color: color(line.color), width: line.width ?? 1.5, type: line.dash ?? "solid" },
  itemStyle: { color: color(line.color) },
  z: 3,
});

/** What is not settled yet lies on a hatched band. */
function band(all, end) {
  if (all.quiet || all.openFrom >= all.moments.length) return { data: [] };
  const decal = { symbol: "rect", dashArrayX: [1, 0], dashArrayY: [2, 4], rotation: -Math.PI / 4, color: color("hatch") };
  return { silent: true, itemStyle: { color: color("band"), decal }, data: [[{ xAxis: all.moments[all.openFrom] }, { xAxis: end }]] };
}

function told(panel, all) {
  const last = Math.max(all.openFrom - 1, 0);
  const written = panel.unit === "milliseconds" ? (value) => text(duration(value)) : count;
  const parts = panel.lines.map((line) => `${line.label} ${written(all.values[line.field]?.[last])}`);
  return `${panel.title}, last hour. Newest closed window, ${time(all.moments[last])}: ${parts.join(", ")}`;
}
