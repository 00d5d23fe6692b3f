// What all charts have in common. ECharts is a megabyte: it is loaded after the page is drawn, and only where it is needed.
import { watch } from "vue";
import { color, theme } from "sagascope/theme.js";

let library;

/** An ECharts instance in that element that is as wide as it, and drawn again in other colours when the theme changes. */
export async function chart(element, { redraw, group }) {
  library ??= import("nicegui-echart");
  const { echarts } = await library;
  if (!element.isConnected) return null;
  const drawn = echarts.init(element, null, { renderer: "canvas" });
  const sized = new ResizeObserver(() => drawn.resize());
  sized.observe(element);
  if (group) {
    drawn.group = group;
    echarts.connect(group);
  }
  const stop = watch(() => theme.applied, () => redraw(drawn), { flush: "post" });
  const dispose = () => {
    stop();
    sized.disconnect();
    drawn.dispose();
  };
  return { drawn, dispose };
}

export const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif';

/** Options that every chart begins with. */
export function base() {
  return {
    animation: false,
    textStyle: { fontFamily: FONT, fontSize: 11, color: color("dim") },
    tooltip: {
      trigger: "axis",
      confine: true,
      backgroundColor: color("raised"),
      borderColor: color("line"),
      borderWidth: 1,
      padding: [6, 10],
      textStyle: { color: color("ink"), fontSize: 12, fontFamily: FONT },
      axisPointer: { type: "line", lineStyle: { color: color("dim"), type: "solid", width: 1 }, snap: true },
      extraCssText: "box-shadow: 0 4px 16px rgb(0 0 0 / .16); border-radius: 6px",
    },
  };
}

export const valueAxis = (extra = {}) => ({
  type: "value",
  splitNumber: 3,
  axisLabel: { color: color("dim"), fontSize: 11 },
  splitLine: { lineStyle: { color: color("line") } },
  axisLine: { show: false },
  axisTick: { show: false },
  ...extra,
});

export const timeAxis = (extra = {}) => ({
  type: "time",
  axisLabel: { color: color("dim"), fontSize: 11, hideOverlap: true },
  axisLine: { lineStyle: { color: color("line") } },
  axisTick: { lineStyle: { color: color("line") } },
  splitLine: { show: false },
  ...extra,
});

/** A tooltip is markup: names of events must not be. */
export const escaped = (name) =>
  String(name).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
