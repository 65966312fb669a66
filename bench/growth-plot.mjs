// The plot of bench/growth.mjs: two panels with logarithmic axes, as an SVG file.

const [WIDTH, HEIGHT] = [380, 300];
const MARGIN = { left: 66, right: 14, top: 34, bottom: 40 };
const COLOURS = ["#2563eb", "#c2410c"];

const tokensText = (n) => (n >= 1024 ? `${n / 1024}k` : `${n}`);

const tickText = (tick, unit) => (unit === "ms" && tick >= 1000 ? `${tick / 1000} s` : `${tick} ${unit}`);

/** The powers of ten from below the smallest value to above the largest. */
function decades(values) {
  const [low, high] = [
    Math.floor(Math.log10(Math.min(...values))),
    Math.ceil(Math.log10(Math.max(...values))),
  ];
  return Array.from({ length: high - low + 1 }, (_, i) => 10 ** (low + i));
}

function panel(rows, { title, unit, series }, left) {
  const { right, top, bottom } = MARGIN;
  const ticks = decades(series.flatMap(({ of }) => rows.map(of)));
  const logs = rows.map(({ tokens }) => Math.log2(tokens));
  const [x0, x1] = [logs[0], logs.at(-1)];
  const [y0, y1] = [Math.log10(ticks[0]), Math.log10(ticks.at(-1))];
  const x = (tokens) =>
    left + MARGIN.left + ((Math.log2(tokens) - x0) / (x1 - x0)) * (WIDTH - MARGIN.left - right);
  const y = (value) => HEIGHT - bottom - ((Math.log10(value) - y0) / (y1 - y0)) * (HEIGHT - top - bottom);
  const text = (at, content, extra = "") =>
    `<text x="${at[0].toFixed(1)}" y="${at[1].toFixed(1)}" ${extra}>${content}</text>`;
  const parts = [text([left + MARGIN.left, 18], title, 'font-weight="600"')];
  for (const tick of ticks) {
    const at = y(tick).toFixed(1);
    const ends = `x1="${left + MARGIN.left}" x2="${left + WIDTH - right}" y1="${at}" y2="${at}"`;
    parts.push(`<line ${ends} stroke="#8884" />`);
    parts.push(text([left + MARGIN.left - 6, y(tick) + 4], tickText(tick, unit), 'text-anchor="end"'));
  }
  for (const { tokens } of rows) {
    parts.push(text([x(tokens), HEIGHT - bottom + 18], tokensText(tokens), 'text-anchor="middle"'));
  }
  for (const [i, { name, of }] of series.entries()) {
    const points = rows.map((row) => `${x(row.tokens).toFixed(1)},${y(of(row)).toFixed(1)}`);
    parts.push(
      `<polyline points="${points.join(" ")}" fill="none" stroke="${COLOURS[i]}" stroke-width="2" />`,
    );
    for (const point of points) {
      const [cx, cy] = point.split(",");
      parts.push(`<circle cx="${cx}" cy="${cy}" r="3" fill="${COLOURS[i]}" />`);
    }
    const place = [left + MARGIN.left + 10, top + 14 + 17 * i];
    parts.push(text(place, name, `fill="${COLOURS[i]}"`));
  }
  return parts.join("\n");
}

/** Time and memory of a step by tokens, with the fitted exponents. */
export function renderGrowth({ device, date, rows, exponents }) {
  const named = (name, key) => `${name}: tokens^${exponents[key].toFixed(2)}`;
  const time = {
    title: "Time of a step's ops",
    unit: "ms",
    series: [
      { name: named("attention", "attention"), of: (row) => row.attention },
      { name: named("all others", "rest"), of: (row) => row.rest },
    ],
  };
  const memory = {
    title: "Peak memory",
    unit: "MiB",
    series: [
      { name: named("attention's own", "attentionBytes"), of: (row) => row.attentionBytes / 2 ** 20 },
      { name: named("step beside weights", "stepBytes"), of: (row) => row.stepBytes / 2 ** 20 },
    ],
  };
  const [width, height] = [2 * WIDTH + 20, HEIGHT + 26];
  const note = `tokens in the sequence · ${device}, ${date}`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12">
<title>Time and memory of a step by sequence length</title>
<rect width="${width}" height="${height}" fill="#fff" />
<g fill="#333">
${panel(rows, time, 0)}
${panel(rows, memory, WIDTH + 20)}
<text x="${width / 2}" y="${height - 8}" text-anchor="middle">${note}</text>
</g>
</svg>
`;
}
