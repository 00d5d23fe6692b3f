// Steps in order of a figure, each with a bar.
import { address } from "sagascope/address.js";
import { feed } from "sagascope/feed.js";
import { count, duration, percent } from "sagascope/format.js";
import { link } from "sagascope/address.js";
import { ranked } from "sagascope/frame.js";

const ROWS = 5;

export default {
  props: { panel: Object },
  template: `
    <section class="ranking" :class="'tone-' + panel.tone" :aria-label="panel.title">
      <header><h2>{{ panel.title }}</h2><span class="dim">{{ panel.measure }}</span></header>
      <ol v-if="rows" :data-panel="panel.name">
        <li v-for="row in rows" :key="row.key">
          <a :href="row.href" :title="row.saga_name + ' · ' + row.step_name">
            <span class="name"><b>{{ row.step_name }}</b><i v-if="row.phase === 'compensation'">undo</i><small>{{ row.saga_name }}</small></span>
            <span class="value"><b>{{ row.value }}</b><small>{{ row.unit }}</small></span>
            <span class="track" aria-hidden="true"><span :style="{ width: row.width }"></span></span>
            <span class="count"><span>{{ row.count }}</span></span>
          </a>
        </li>
        <li v-for="n in missing" :key="n" class="none" :aria-hidden="rows.length > 0 || n > 1">{{ rows.length === 0 && n === 1 ? panel.empty : '' }}</li>
      </ol>
      <ol v-else aria-busy="true"><li v-for="n in ${ROWS}" :key="n" class="none"><span class="bone"></span></li></ol>
    </section>
  `,
  computed: {
    rows() {
      const rows = ranked(feed.frame, address.window, address.saga, this.panel.name);
      if (!rows) return null;
      const field = this.panel.fields[0][0];
      const most = Math.max(...rows.map((row) => row[field]), Number.MIN_VALUE);
      const write = this.panel.unit === "ratio" ? percent : duration;
      return rows.slice(0, ROWS).map((row) => ({
        ...row,
        ...write(row[field]),
        key: JSON.stringify([row.saga_name, row.step_name, row.phase]),
        width: `${((row[field] / most) * 100).toFixed(1)}%`,
        count: this.panel.unit === "ratio" ? `${count(row.failed)} of ${count(row.ended)}` : `${count(row.ended)} ended`,
        href: link("/flow", { saga: row.saga_name }),
      }));
    },
    missing() {
      return Math.max(ROWS - this.rows.length, 0);
    },
  },
};
