// What has to be said above the numbers: that they are old, that there are none yet, that they can't be read.
import { feed, retry } from "sagascope/feed.js";
import { coded, dateTime, duration, text } from "sagascope/format.js";
import { notice } from "sagascope/frame.js";

export default {
  template: `
    <section v-if="said" class="notice" :data-kind="said.kind" role="status">
      <template v-if="said.kind === 'empty'">
        <h2>No saga has been told of yet</h2>
        <p>To see it at work on this machine, with a real broker and real sagas:</p>
        <pre><code>make demo</code></pre>
        <p class="dim">With sagas of your own: let them report (README, “In your service”), and run <code>sagascope analyze</code>.
          This page fills by itself.</p>
        <p v-if="said.text && !said.text.startsWith('there are no tables')" class="problem">{{ said.text }}</p>
      </template>
      <p v-else><svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path d="M8 1.5 15 14H1Z" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linejoin="round"/><path d="M8 6v4M8 11.6v.9" stroke="currentColor" stroke-width="1.5"/></svg>
        <span><template v-for="(part, n) in parts" :key="n"><code v-if="n % 2">{{ part }}</code><template v-else>{{ part }}</template></template></span></p>
    </section>
    <section v-else-if="lost" class="notice" data-kind="problem">
      <p><svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path d="M2 14 14 2M5 8a4 4 0 0 1 4-3M4 4.6A8 8 0 0 0 2 6m5 5a2 2 0 0 1 3 0" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>
        <span>The dashboard’s server does not answer{{ lost }}. It is tried again by itself; should it have ended, <code>sagascope dashboard</code> starts it.</span></p>
    </section>
  `,
  computed: {
    said: () => (feed.state === "disconnected" ? null : notice(feed)),
    /** What stands between backticks is code. */
    parts() {
      return coded(this.said.text);
    },
    lost() {
      if (feed.state !== "disconnected") return null;
      if (!feed.frame) return "; there are no numbers yet";
      return `; the numbers are those of ${dateTime(feed.frame.made_at)}, ${text(duration(feed.now - feed.receivedAt))} ago`;
    },
  },
};
