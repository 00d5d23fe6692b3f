// The bar above every page: where one is, what is asked about, and how fresh the numbers are.
import { address, link, sagaLink, show } from "sagascope/address.js";
import { feed, retry } from "sagascope/feed.js";
import { freshness, sagaNames } from "sagascope/frame.js";
import { theme, nextTheme } from "sagascope/theme.js";

const PAGES = [
  ["/", "Live"],
  ["/history", "History"],
  ["/flow", "Flow"],
  ["/system", "System"],
];
const WINDOWS = ["1m", "5m", "15m", "1h"];
const SHORTCUTS = [
  ["/", "find a saga"],
  ["1 … 4", "Live, History, Flow, System"],
  ["w", "next window"],
  ["t", "light, dark, as the system"],
  ["?", "this list"],
];

export default {
  props: { page: String },
  template: `
    <header class="bar" role="banner">
      <a class="skip" href="#main">Skip to content</a>
      <a class="brand" :href="link('/')" aria-label="Sagascope, live page">
        <svg viewBox="0 0 20 20" width="20" height="20" aria-hidden="true">
          <path d="M3 14.5 8 10l3.5 3L17 5.5" fill="none" stroke="currentColor" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"/>
          <circle cx="3" cy="14.5" r="2" fill="currentColor"/><circle cx="8" cy="10" r="2" fill="currentColor"/>
          <circle cx="11.5" cy="13" r="2" fill="currentColor"/><circle cx="17" cy="5.5" r="2" fill="var(--completed)"/>
        </svg>
        <span>Sagascope</span>
      </a>
      <nav aria-label="Pages">
        <a v-for="[path, name] in pages" :key="path" :href="link(path)" :aria-current="name === page ? 'page' : undefined">{{ name }}</a>
      </nav>
      <form class="find" role="search" @submit.prevent="open">
        <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><circle cx="7" cy="7" r="4.5" fill="none" stroke="currentColor" stroke-width="1.5"/><path d="m10.5 10.5 3.5 3.5" stroke="currentColor" stroke-width="1.5"/></svg>
        <input ref="find" type="search" :value="typed" @input="type" placeholder="Find a saga" aria-label="Find a saga by its id" autocomplete="off" spellcheck="false">
        <kbd aria-hidden="true">/</kbd>
      </form>
      <select v-if="has('saga')" class="saga" :value="address.saga" @change="show({ saga: $event.target.value, page: '1' })" aria-label="Show one kind of saga">
        <option value="">All sagas</option>
        <option v-for="name in names" :key="name" :value="name">{{ name }}</option>
      </select>
      <fieldset v-if="has('window')" class="segments" aria-label="Sliding window">
        <label v-for="name in windows" :key="name" :title="'Numbers of the last ' + name">
          <input type="radio" name="window" :value="name" :checked="address.window === name" @change="show({ window: name })"><span>{{ name }}</span>
        </label>
      </fieldset>
      <button class="icon" type="button" @click="nextTheme" :aria-label="'Theme: ' + theme.chosen" :title="'Theme: ' + theme.chosen">
        <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
          <g v-if="theme.chosen === 'light'" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round"><circle cx="8" cy="8" r="3"/><path d="M8 1.5v1M8 13.5v1M1.5 8h1M13.5 8h1M3.4 3.4l.7.7M11.9 11.9l.7.7M12.6 3.4l-.7.7M4.1 11.9l-.7.7"/></g>
          <path v-else-if="theme.chosen === 'dark'" d="M13 9.8A5.5 5.5 0 0 1 6.2 3a5.5 5.5 0 1 0 6.8 6.8Z" fill="none" stroke="currentColor" stroke-width="1.5" stroke-linejoin="round"/>
          <g v-else><circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.5"/><path d="M8 2.5a5.5 5.5 0 0 1 0 11Z" fill="currentColor"/></g>
        </svg>
      </button>
      <p class="pill" :data-state="fresh.state" :title="fresh.title">
        <i aria-hidden="true"></i><span class="word" aria-live="polite">{{ fresh.word }}</span><span v-if="fresh.detail" class="detail">{{ fresh.detail }}</span>
        <button v-if="fresh.state === 'disconnected'" type="button" @click="retry">now</button>
      </p>
      <dialog ref="help" aria-label="Keyboard shortcuts" @click="$refs.help.close()">
        <h2>Keyboard</h2>
        <dl><template v-for="[key, what] in shortcuts" :key="key"><dt><kbd>{{ key }}</kbd></dt><dd>{{ what }}</dd></template></dl>
      </dialog>
    </header>
  `,
  data: () => ({ address, theme, pages: PAGES, windows: WINDOWS, shortcuts: SHORTCUTS, typed: address.q }),
  computed: {
    fresh: () => freshness(feed),
    names: () => [...new Set([...sagaNames(feed.frame), ...(address.saga ? [address.saga] : [])])].sort(),
  },
  mounted() {
    document.addEventListener("keydown", this.key);
    addEventListener("popstate", this.back);
  },
  beforeUnmount() {
    document.removeEventListener("keydown", this.key);
    removeEventListener("popstate", this.back);
  },
  methods: {
    link,
    show,
    retry,
    nextTheme,
    has(control) {
      return { Live: ["saga", "window"], Flow: ["saga", "window"], History: ["saga"] }[this.page]?.includes(control);
    },
    back() {
      this.typed = address.q;
    },
    type(event) {
      this.typed = event.target.value;
      if (this.page === "Live") show({ q: this.typed.trim(), page: "1" }, { replace: true });
    },
    open() {
      const id = this.typed.trim();
      if (id) location.href = sagaLink(id);
    },
    key(event) {
      const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "radio";
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") this.$refs.find.focus();
      else if (event.key === "?") this.$refs.help.showModal();
      else if (event.key === "t") nextTheme();
      else if (event.key === "w" && this.has("window"))
        show({ window: WINDOWS[(WINDOWS.indexOf(address.window) + 1) % WINDOWS.length] });
      else if (PAGES[event.key - 1]) location.href = link(PAGES[event.key - 1][0]);
      else return;
      event.preventDefault();
    },
  },
};
