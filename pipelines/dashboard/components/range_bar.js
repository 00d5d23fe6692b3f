// Over how long a page looks back.
import { address, show } from "sagascope/address.js";

const RANGES = { "24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days" };

export default {
  template: `
    <fieldset class="segments" aria-label="Time range">
      <label v-for="(name, range) in ranges" :key="range"><input type="radio" name="range" :value="range" :checked="address.range === range" @change="show({ range })"><span>{{ name }}</span></label>
    </fieldset>
  `,
  data: () => ({ address, ranges: RANGES }),
  methods: { show },
};
