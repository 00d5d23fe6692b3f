// How the rows of a report are drawn, whatever report it is: by the `Chart:` line of its SQL file.
import { base, escaped, timeAxis, valueAxis } from "sagascope/charts.js";
import { count, dateTime, duration, moment, percent, rate, text } from "sagascope/format.js";
import { color } from "sagascope/theme.js";

const SHARES = /(rate|share|within|rate_before|rate_after)$/;
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "emptyCircle", "emptyRect", "emptyTriangle", "emptyDiamond"];
const NAMES = 30;
const LONGEST = 42;
const MEANINGS = { completed: "completed", failed: "failed", unfinished: "dim", undoing: "undone", running: "started" };

/** A value as its column wants it: a share in per cent, a duration with its unit, a moment in the viewer's zone. */
export function written(column, value) {
  if (value == null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") {
    if (SHARES.test(column)) return text(percent(value));
    if (column.endsWith("_ms")) return text(duration(value));
    return Number.isInteger(value) ? count(value) : value.toPrecision(3);
  }
  if (Array.isArray(value)) return value.map((one) => written(column, one)).join(", ");
  if (typeof value === "object") return JSON.stringify(value);
  return /^\d{4}-\d\d-\d\dT/.test(value) ? dateTime(value) : String(value);
}

export const title = (column) => column.replace(/_ms$/, "").replaceAll("_", " ").replace(/^p(\d\d)$/, "p$1");

const objects = ({ columns, rows }) => rows.map((row) => Object.fromEntries(row.map((value, n) => [columns[n], value])));
const name = (row, columns) => columns.map((column) => row[column] ?? "–").join(" · ");
const cut = (long) => (long.length > LONGEST ? `${long.slice(0, LONGEST - 1)}…` : long);
const hue = (key, n) => color(MEANINGS[key] ?? `c${n % 8}`);

/** Bars that lie, as plain rows: names are long, and text is to be read. */
export function ranking(answer, chart) {
  const total = (row) => chart.x.reduce((sum, column) => sum + (row[column] ?? 0), 0);
  const rows = objects(answer).sort((a, b) => total(b) - total(a)).slice(0, 10);
  const most = Math.max(...rows.map(total), Number.MIN_VALUE);
  return rows.map((row, n) => ({
    key: n,
    names: chart.y.map((column) => String(row[column] ?? "–")),
    tag: chart.color ? title(String(row[chart.color])) : "",
    value: chart.x.length === 1 ? written(chart.x[0], row[chart.x[0]]) : chart.x.map((column) => count(row[column])).join(" / "),
    parts: chart.x.map((column) => ({ column, width: `${((row[column] ?? 0) / most) * 100}%`, color: chart.x.length > 1 ? (MEANINGS[column] ?? "c0") : "c0" })),
  }));
}

/** ECharts options for everything else. */
export function options(answer, chart) {
  const rows = objects(answer);
  return { bar, line: points, scatter: points, heatmap }[chart.kind](rows, chart);
}

function tooltip(column) {
  return {
    ...base().tooltip,
    formatter: (given) => {
      const all = [given].flat();
      const lines = all.map(
        ({ marker, seriesName, value }) =>
          `<tr><td>${marker}${escaped(cut(seriesName))}</td><td style="text-align:right;padding-left:16px">${escaped(written(column, [value].flat().at(-1)))}</td></tr>`,
      );
      return `<b>${escaped(all[0].axisValueLabel ?? written("", all[0].value[0]))}</b><table style="border-spacing:0;font-variant-numeric:tabular-nums">${lines.join("")}</table>`;
    },
  };
}

const legend = (shown) => ({ show: shown, type: "scroll", top: 0, left: 0, itemWidth: 14, itemHeight: 8, itemGap: 16, textStyle: { color: color("dim"), fontSize: 12 }, pageTextStyle: { color: color("dim") }, pageIconColor: color("dim"), pageIconInactiveColor: color("line"), formatter: cut });

function bar(rows, chart) {
  const kept = rows.slice(0, NAMES);
  return {
    ...base(),
    grid: { left: 56, right: 8, top: chart.y.length > 1 ? 32 : 12, bottom: 44 },
    legend: legend(chart.y.length > 1),
    tooltip: tooltip(chart.y[0]),
    xAxis: { type: "category", data: kept.map((row) => name(row, chart.x)), axisLabel: { color: color("dim"), fontSize: 11, interval: 0, hideOverlap: true, width: 96, overflow: "truncate" }, axisLine: { lineStyle: { color: color("line") } }, axisTick: { show: false } },
    yAxis: valueAxis({ axisLabel: { color: color("dim"), fontSize: 11, formatter: (value) => written(chart.y[0], value) } }),
    series: chart.y.map((column, n) => ({ type: "bar", name: title(column), barMaxWidth: 18, barGap: "15%", data: kept.map((row) => row[column]), itemStyle: { color: hue(column, n), borderRadius: [2, 2, 0, 0] } })),
  };
}

function points(rows, chart) {
  const column = chart.y[0];
  const groups = Map.groupBy ? Map.groupBy(rows, (row) => (chart.color ? String(row[chart.color]) : title(column))) : grouped(rows, chart, column);
  const lines = [...groups].map(([key, of], n) => ({
    type: chart.kind,
    name: key,
    symbol: SYMBOLS[n % SYMBOLS.length],
    symbolSize: chart.kind === "line" ? 5 : 7,
    data: of.map((row) => [moment(row[chart.x[0]]), row[column]]),
    lineStyle: { width: 1.75, color: hue(key, n), type: n < 8 ? "solid" : "dashed" },
    itemStyle: { color: hue(key, n) },
  }));
  return {
    ...base(),
    grid: { left: 56, right: 12, top: 32, bottom: 24 },
    legend: legend(true),
    tooltip: { ...tooltip(column), trigger: chart.kind === "line" ? "axis" : "item" },
    xAxis: timeAxis({ axisLabel: { color: color("dim"), fontSize: 11, hideOverlap: true, formatter: { month: "{d} {MMM}", day: "{d} {MMM}", hour: "{HH}:{mm}" } } }),
    yAxis: valueAxis({ min: 0, axisLabel: { color: color("dim"), fontSize: 11, formatter: (value) => written(column, value) } }),
    series: lines,
  };
}

function grouped(rows, chart, column) {
  const groups = new Map();
  for (const row of rows) {
    const key = chart.color ? String(row[chart.color]) : title(column);
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return groups;
}

function heatmap(rows, chart) {
  const across = [...new Set(rows.map((row) => row[chart.x[0]]))].sort((a, b) => a - b);
  const down = [...new Set(rows.map((row) => name(row, chart.y)))].sort().reverse().slice(-NAMES);
  const cells = rows.map((row) => [across.indexOf(row[chart.x[0]]), down.indexOf(name(row, chart.y)), row[chart.z]]).filter((cell) => cell[1] >= 0 && cell[2] != null);
  const most = Math.max(2, Math.min(4, ...[Math.max(...cells.map((cell) => cell[2]))]));
  const axis = { type: "category", axisTick: { show: false }, axisLine: { show: false }, splitArea: { show: false } };
  return {
    ...base(),
    grid: { left: 8, right: 8, top: 8, bottom: 52, containLabel: true },
    tooltip: {
      ...base().tooltip,
      trigger: "item",
      formatter: ({ value: [x, y, z] }) => `<b>${escaped(down[y])}</b><br>${String(across[x]).padStart(2, "0")}:00 UTC: ${z.toFixed(2)} × its median`,
    },
    xAxis: { ...axis, data: across.map((hour) => String(hour).padStart(2, "0")), axisLabel: { color: color("dim"), fontSize: 11 } },
    yAxis: { ...axis, data: down, axisLabel: { color: color("dim"), fontSize: 11, width: 260, overflow: "truncate" } },
    visualMap: { min: 0.5, max: most, calculable: false, orient: "horizontal", left: "center", bottom: 0, itemWidth: 10, itemHeight: 120, text: [`${rate(most)} × median`, "0.5 ×"], textStyle: { color: color("dim"), fontSize: 11 }, inRange: { color: [color("cool"), color("neutral"), color("warm"), color("hot")] } },
    series: [{ type: "heatmap", data: cells, itemStyle: { borderColor: color("page"), borderWidth: 1 } }],
  };
}

/** How high the drawing is, in px. */
export function height(answer, chart) {
  if (chart.kind !== "heatmap") return 240;
  const names = new Set(objects(answer).map((row) => name(row, chart.y)));
  return Math.min(names.size, NAMES) * 22 + 68;
}
