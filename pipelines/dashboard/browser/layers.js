// Steps of a saga in columns, from left to right: a step stands right of all that it waits for.

/** Places of steps and edges, in px. Without any edge the order of the definition is all that is known: a column of each. */
export function layered(steps, { width, height, across, down }) {
  const byName = new Map(steps.map((step) => [step.step_name, step]));
  const known = (step) => step.depends_on.filter((name) => byName.has(name));
  const column = new Map();
  const place = (step, trail = new Set()) => {
    if (column.has(step.step_name)) return column.get(step.step_name);
    if (trail.has(step.step_name)) return 0; // a circle is no definition, but must not hang the page
    trail.add(step.step_name);
    const at = Math.max(-1, ...known(step).map((name) => place(byName.get(name), trail))) + 1;
    column.set(step.step_name, at);
    return at;
  };
  steps.forEach((step) => place(step));

  const columns = [];
  for (const step of steps) (columns[column.get(step.step_name)] ??= []).push(step);
  const row = new Map();
  columns.forEach((of) => {
    // Near to what it waits for: fewer edges cross
    const wish = (step) => {
      const rows = known(step).map((name) => row.get(name) ?? 0);
      return rows.length ? rows.reduce((sum, one) => sum + one, 0) / rows.length : 0;
    };
    of.sort((a, b) => wish(a) - wish(b));
    of.forEach((step, n) => row.set(step.step_name, n - (of.length - 1) / 2));
  });

  const tallest = Math.max(...columns.map((of) => of.length), 1);
  const nodes = steps.map((step) => ({
    step,
    x: column.get(step.step_name) * (width + across),
    y: (row.get(step.step_name) + (tallest - 1) / 2) * (height + down),
  }));
  const at = new Map(nodes.map((node) => [node.step.step_name, node]));
  const edges = nodes.flatMap((node) =>
    known(node.step).map((name) => {
      const from = at.get(name);
      const [x1, y1, x2, y2] = [from.x + width, from.y + height / 2, node.x, node.y + height / 2];
      const bend = Math.max(across / 2, (x2 - x1) / 2);
      return { key: `${name} → ${node.step.step_name}`, path: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` };
    }),
  );
  return {
    nodes,
    edges,
    width: columns.length * (width + across) - across,
    height: tallest * (height + down) - down,
  };
}
