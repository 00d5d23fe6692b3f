// The row of key figures: what each is now, how it was over the last hour, how it differs from the window before.
import { address } from "sagascope/address.js";
import { feed } from "sagascope/feed.js";
import { count, duration, percent, rate } from "sagascope/format.js";
import { before, figures, sparkline } from "sagascope/frame.js";

const WRITTEN = {
  count: (number) => ({ value: count(number), unit: "" }),
  per_minute: (number) => ({ value: rate(number), unit: "/min" }),
  ratio: percent,
  milliseconds: duration,
};

export default {
  props: { panels: Array },
  template: `
    <section class="tiles" aria-label="Key figures">
      <article v-for="tile in tiles" :key="tile.name" class="tile" :class="['tone-' + tile.tone, { wide: tile.values.length > 1, off: !tile.ready }]" :title="tile.help">
        <h2>{{ tile.title }}</h2>
        <p class="figures" :data-panel="tile.name">
          <span v-for="part in tile.values" :key="part.field" class="figure" :data-field="part.field" :data-value="part.raw">
            <em v-if="part.label">{{ part.label }}</em><b>{{ part.value }}</b><small>{{ part.unit }}</small>
          </span>
        </p>
        <svg v-if="tile.line" class="spark" viewBox="0 0 120 24" preserveAspectRatio="none" aria-hidden="true">
          <path class="area" :d="tile.line.area"/><path class="line" :d="tile.line.line"/>
        </svg>
        <div v-else class="spark"></div>
        <p class="change" :data-good="tile.change?.good">{{ tile.change?.text ?? tile.note }}</p>
      </article>
    </section>
  `,
  computed: {
    tiles() {
      const { frame } = feed;
      const now = figures(frame, address.window, address.saga);
      const then = before(frame, address.window, address.saga);
      return this.panels.map((panel) => {
        const write = WRITTEN[panel.unit];
        const values = panel.fields.map(([field, label]) => ({ field, label, raw: now?.[field], ...write(now?.[field]) }));
        return {
          ...panel,
          ready: !!now,
          values,
          line: sparkline(frame, panel.spark, address.saga),
          change: change(panel, now, then),
          note: panel.name === "active" ? silent(now) : now?.[panel.fields[0][0]] == null ? "" : panel.note,
        };
      });
    },
  },
};

function silent(now) {
  if (!now?.active) return "\u00a0";
  return now.silent ? `${count(now.silent)} silent for over an hour` : "none silent for long";
}

function change(panel, now, then) {
  const field = panel.compared;
  if (!field || now?.[field] == null || then?.[field] == null) return null;
  const [is, was] = [now[field], then[field]];
  const window = `vs ${address.window} before`;
  if (panel.unit === "ratio") {
    const points = (is - was) * 100;
    if (Math.abs(points) < 0.05) return { text: `as in the ${address.window} before` };
    return { text: `${points > 0 ? "▲" : "▼"} ${Math.abs(points).toFixed(1)} pt ${window}`, good: good(panel, points) };
  }
  if (!was) return is ? { text: `none in the ${address.window} before`, good: good(panel, is) } : null;
  const ratio = is / was - 1;
  if (Math.abs(ratio) < 0.005) return { text: `as in the ${address.window} before` };
  return { text: `${ratio > 0 ? "▲" : "▼"} ${written(ratio)} ${window}`, good: good(panel, ratio) };
}

const written = (ratio) => (ratio >= 9 ? `${Math.round(ratio + 1)}×` : `${Math.round(Math.abs(ratio) * 100)} %`);
const good = (panel, difference) => (panel.better ? String((panel.better === "less") === difference < 0) : undefined);
