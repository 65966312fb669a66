// @ts-nocheck: a script of a page, without modules. It draws the data in #data with uPlot; report.ts puts both there.

const { plots, resolved, element, bytes, count, duration, loss, last, card, plot, ending, settingsOf } =
  globalThis.parts;

const CATEGORY_ORDER = ["weights", "adapter", "optimizer", "gradients", "rungs", "saved", "workspace"];
const root = document.getElementById("page");

/** Running mean over a share of the run, so that noise does not hide the way. */
function smoothed(values) {
  const most = Math.max(1, Math.min(50, values.length / 12));
  let mean = null;
  let seen = 0;
  return values.map((value) => {
    if (value == null) return mean;
    const share = 1 / Math.min(most, ++seen);
    mean = mean === null ? value : mean + share * (value - mean);
    return mean;
  });
}

/** One x for all runs; a run without a value there has null. */
function aligned(columns) {
  const all = [...new Set(columns.flatMap(({ x }) => x))].sort((a, b) => a - b);
  const places = new Map(all.map((value, i) => [value, i]));
  return [
    all,
    ...columns.map(({ x, y }) => {
      const row = new Array(all.length).fill(null);
      x.forEach((value, i) => {
        row[places.get(value)] = y[i];
      });
      return row;
    }),
  ];
}

function lossColumns(runs) {
  const columns = [];
  const alone = runs.length === 1;
  runs.forEach(({ name, steps, evaluations, summary }, i) => {
    const x = steps.map(({ step }) => step + 1);
    const y = steps.map((line) => line.loss);
    const label = (text) => (alone ? text : `${name}, ${text}`);
    if (alone) columns.push({ x, y, label: "each step", colour: 6, width: 1 });
    columns.push({ x, y: smoothed(y), label: label("running mean"), colour: i, width: 2 });
    const found = evaluations.map(({ step, eval_loss }) => [step, eval_loss]);
    if (summary?.initial_eval_loss != null) found.unshift([0, summary.initial_eval_loss]);
    if (summary?.eval_loss != null) found.push([summary.adapter_step ?? steps.length, summary.eval_loss]);
    const unique = [...new Map(found)].sort((a, b) => a[0] - b[0]);
    if (unique.length === 0) return;
    columns.push({
      x: unique.map(([step]) => step),
      y: unique.map(([, value]) => value),
      label: label("held out"),
      colour: alone ? 1 : i,
      width: 2,
      points: true,
      dash: alone ? undefined : [6, 4],
    });
  });
  return columns;
}

function drawLines(title, size, height, columns, format) {
  const shown = columns.filter(({ x }) => x.length > 0);
  if (shown.length === 0) return null;
  const host = element("div", { class: "plot" });
  const series = shown.map((column) => ({
    label: column.label,
    stroke: () => resolved(column.colour),
    width: column.width ?? 2,
    dash: column.dash,
    spanGaps: true,
    points: column.points
      ? { show: true, size: 6, fill: () => resolved(column.colour) }
      : { show: column.x.length === 1 },
    value: (_, value) => (value == null ? "-" : format(value)),
  }));
  const section = card(title, size, host);
  section.draw = () =>
    plot(
      host,
      height,
      { series: [{ label: "step" }, ...series], axes: [{}, { values: (_, ticks) => ticks.map(format) }] },
      aligned(shown),
    );
  return section;
}

function key(names) {
  return element(
    "div",
    { class: "key" },
    ...names.map((name) =>
      element(
        "span",
        {},
        element("i", { style: `background: var(--c${CATEGORY_ORDER.indexOf(name)})` }),
        name,
      ),
    ),
  );
}

/** Top of the scale that the memory plots of all runs share. */
function highest(runs) {
  const totals = runs.flatMap(({ profile }) =>
    (profile?.memory ?? []).map((point) => CATEGORY_ORDER.reduce((sum, name) => sum + point[name], 0)),
  );
  return 1.05 * totals.reduce((most, total) => Math.max(most, total), 1);
}

/** Memory over one step, a layer for each category. */
function drawTimeline({ profile }, title, { size, most }) {
  if (!profile?.memory?.length) return null;
  const present = CATEGORY_ORDER.filter((name) => profile.memory.some((point) => point[name] > 0));
  const host = element("div", { class: "plot" });
  const raw = present.map((name) => profile.memory.map((point) => point[name]));
  const sums = raw.map((_, i) =>
    profile.memory.map((__, p) => raw.slice(0, i + 1).reduce((sum, row) => sum + row[p], 0)),
  );
  // The highest sum first: each lower one is painted over it.
  const order = present.map((_, i) => i).reverse();
  const series = order.map((i) => ({
    label: present[i],
    stroke: () => resolved(CATEGORY_ORDER.indexOf(present[i])),
    fill: () => resolved(CATEGORY_ORDER.indexOf(present[i])),
    width: 0,
    points: { show: false },
    value: (_, __, ___, index) => (index == null ? "-" : bytes(raw[i][index])),
  }));
  const section = card(title, size, host);
  const scales = { y: { range: () => [0, most] } };
  const incrs = Array.from({ length: 40 }, (_, power) => 2 ** power);
  const axes = [{}, { size: 84, incrs, values: (_, ticks) => ticks.map(bytes) }];
  const x = profile.memory.map((_, i) => i);
  section.draw = () =>
    plot(host, 260, { series: [{ label: "op" }, ...series], scales, axes }, [
      x,
      ...order.map((i) => sums[i]),
    ]);
  return section;
}

function drawPeaks(runs) {
  const peaks = runs
    .map(({ name, summary, steps }) => ({
      name,
      peak: summary?.peak_bytes_by_category ?? last(steps)?.peak_bytes_by_category,
      total: summary?.peak_bytes ?? last(steps)?.peak_bytes,
    }))
    .filter(({ peak }) => peak);
  if (peaks.length === 0) return null;
  const most = Math.max(...peaks.map(({ total }) => total));
  const rows = peaks.flatMap(({ name, peak, total }) => [
    element("span", { class: "name" }, name),
    element(
      "div",
      { class: "track" },
      ...CATEGORY_ORDER.filter((c) => peak[c] > 0).map((c) =>
        element("i", {
          style: `width: ${(100 * peak[c]) / most}%; background: var(--c${CATEGORY_ORDER.indexOf(c)})`,
          title: `${c}: ${bytes(peak[c])}`,
        }),
      ),
    ),
    element("span", { class: "value" }, bytes(total)),
  ]);
  const present = CATEGORY_ORDER.filter((c) => peaks.some(({ peak }) => peak[c] > 0));
  return card("Peak memory", "", element("div", { class: "bars" }, ...rows), key(present));
}

const MOST_BARS = 14;

function drawTimes({ profile }, title, { size }) {
  if (!profile?.time?.length) return null;
  const shown = profile.time.slice(0, MOST_BARS);
  const rest = profile.time.slice(MOST_BARS);
  if (rest.length > 0)
    shown.push({
      name: `${rest.length} others`,
      calls: rest.reduce((s, t) => s + t.calls, 0),
      elapsed_ms: rest.reduce((s, t) => s + t.elapsed_ms, 0),
    });
  const all = profile.time.reduce((sum, { elapsed_ms }) => sum + elapsed_ms, 0);
  const most = Math.max(...shown.map(({ elapsed_ms }) => elapsed_ms));
  const rows = shown.flatMap(({ name, calls, elapsed_ms }) => [
    element("span", { class: "name" }, name),
    element(
      "div",
      { class: "track" },
      element("i", { style: `width: ${(100 * elapsed_ms) / most}%; background: var(--c0)` }),
    ),
    element(
      "span",
      { class: "value" },
      `${elapsed_ms.toFixed(1)} ms · ${((100 * elapsed_ms) / all).toFixed(0)} % · ${calls} ×`,
    ),
  ]);
  const how = profile.clock === "gpu" ? "GPU timestamps by kernel" : "the host's clock by op";
  return card(
    title,
    size,
    element("p", { class: "quiet" }, `${all.toFixed(0)} ms in all, by ${how}`),
    element("div", { class: "bars" }, ...rows),
  );
}

function drawSamples({ summary }, title) {
  const samples = summary?.samples;
  if (!samples) return [];
  const show = (name, { prompt, text }) =>
    card(`${name} training${title}`, "half", element("pre", {}, prompt, element("mark", {}, text)));
  return [show("Before", samples.before), show("After", samples.after)];
}

function table(head, rows, kind = "") {
  const line = (tag, cells) =>
    element("tr", {}, ...cells.map((cell) => element(tag, {}, String(cell ?? "-"))));
  return element(
    "div",
    { class: "scroll" },
    element("table", { class: kind }, line("th", head), ...rows.map((row) => line("td", row))),
  );
}

function drawComparison(runs) {
  if (runs.length < 2) return null;
  const rows = runs.map(({ name, summary }) => [
    name,
    loss(summary?.eval_loss),
    bytes(summary?.peak_bytes),
    summary?.tokens_per_second?.toFixed(0),
    duration(summary?.seconds),
    count(summary?.trainable_parameters),
  ]);
  return card(
    "Side by side",
    "",
    table(["method", "held-out loss", "peak memory", "tokens/s", "time", "trained parameters"], rows),
  );
}

/** The settings that the runs share, and of several what each has for itself. */
function drawSettings(all) {
  const runs = all.filter(({ run }) => run !== null);
  const settings = runs.map(settingsOf);
  const isShared = ([key, value]) =>
    settings.every((pairs) => pairs.some(([name, other]) => name === key && other === value));
  const pairs = (title, rows) =>
    rows.length === 0 ? null : card(title, "half", table(["name", "value"], rows, "pairs"));
  return [
    pairs("Settings", (settings[0] ?? []).filter(isShared)),
    ...runs.map(({ name }, i) =>
      pairs(
        `Settings of ${name}`,
        settings[i].filter((pair) => !isShared(pair)),
      ),
    ),
  ];
}

/** What is to be known before the curves are read: runs that did not come to their end. */
function notices(runs, live) {
  return runs.flatMap((run) => {
    const { text, bad } = ending(run, live);
    const name = runs.length > 1 ? `${run.name}: ` : "";
    return bad ? [element("p", { class: "notice" }, name + text)] : [];
  });
}

function drawRun(one, live) {
  const { run, summary, steps } = one;
  const rows = [
    ["ended", ending(one, live).text],
    ["device", summary?.device ?? run?.device],
    ["model", run?.model],
    ["started", run?.started.replace("T", " ").slice(0, 19)],
    ["sidenet", run?.sidenet],
    ["tokens trained on", count(summary?.tokens ?? steps.reduce((sum, { tokens }) => sum + tokens, 0))],
    ["floating-point operations", summary?.flops ? summary.flops.toExponential(2) : null],
  ].filter(([, value]) => value);
  return rows.length > 0 ? card("Run", "half", table(["", ""], rows, "pairs")) : null;
}

function tiles(runs, live) {
  if (runs.length > 1) return null;
  const [{ run, summary, steps, evaluations }] = runs;
  const now = last(steps);
  const planned = run?.settings?.steps;
  const before = summary?.frozen_eval_loss;
  const after = summary?.eval_loss ?? last(evaluations)?.eval_loss;
  const seconds = summary?.seconds ?? steps.reduce((sum, line) => sum + line.seconds, 0);
  const tile = (value, text) =>
    element("div", { class: "tile" }, element("b", {}, value), element("span", {}, text));
  return element(
    "div",
    { class: "tiles" },
    before == null && after == null
      ? null
      : tile(`${before == null ? "" : `${loss(before)} → `}${loss(after)}`, "held-out loss"),
    tile(`${steps.length}${planned ? ` / ${planned}` : ""}`, live && !summary ? "steps so far" : "steps"),
    tile(bytes(summary?.peak_bytes ?? now?.peak_bytes), "peak memory"),
    tile((summary?.tokens_per_second ?? now?.tokens_per_second ?? 0).toFixed(0), "tokens/s"),
    tile(duration(seconds), "in steps"),
    summary ? tile(count(summary.trainable_parameters), "trained parameters") : null,
  );
}

function simple(runs, title, pick, format) {
  const columns = runs.map(({ name, steps }, i) => ({
    x: steps.map(({ step }) => step + 1),
    y: steps.map(pick),
    label: runs.length === 1 ? title.toLowerCase() : name,
    colour: i,
    width: 1.5,
  }));
  return drawLines(title, "third", 170, columns, format);
}

function draw(data) {
  const { runs, title, live } = data;
  const alone = runs.length === 1;
  const look = { size: alone ? "" : "half", most: highest(runs) };
  const each = (make, text) => runs.map((run) => make(run, alone ? text : `${text}: ${run.name}`, look));
  const sections = [
    drawComparison(runs),
    drawLines("Loss", "", 300, lossColumns(runs), loss),
    drawPeaks(runs),
    ...each(drawTimeline, "Memory over one step"),
    ...each(drawTimes, "Time of one step"),
    simple(
      runs,
      "Learning rate",
      (line) => line.learning_rate,
      (value) => (value === 0 ? "0" : value.toExponential(1)),
    ),
    simple(
      runs,
      "Gradient norm",
      (line) => line.grad_norm,
      (value) => value.toPrecision(3),
    ),
    simple(
      runs,
      "Tokens/s",
      (line) => line.tokens_per_second,
      (value) => value.toFixed(0),
    ),
    ...runs.flatMap((run) => drawSamples(run, alone ? "" : `: ${run.name}`)),
    ...drawSettings(runs),
    alone ? drawRun(runs[0], live) : null,
  ].filter((section) => section !== null);
  for (const { chart } of plots) chart.destroy();
  plots.length = 0;
  const heading = element("h1", {}, title);
  const about = element("p", { class: "quiet" }, runs[0]?.summary?.device ?? runs[0]?.run?.device ?? "");
  root.replaceChildren(
    heading,
    about,
    ...notices(runs, live),
    ...[tiles(runs, live)].filter(Boolean),
    element("div", { class: "grid" }, ...sections),
  );
  for (const section of sections) section.draw?.();
  document.body.dataset.drawn = String(plots.length);
}

let shown = JSON.parse(document.getElementById("data").textContent);
draw(shown);
addEventListener("resize", () => {
  for (const { host, height, chart } of plots) chart.setSize({ width: host.clientWidth, height });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(shown));

/** A page of `sidenet watch` asks for what is new; it stays as it is while the server is away. */
async function follow() {
  try {
    const text = await (await fetch("data.json")).text();
    if (text !== JSON.stringify(shown)) {
      shown = JSON.parse(text);
      draw(shown);
    }
  } catch {}
  setTimeout(follow, 2000);
}
if (shown.live) setTimeout(follow, 2000);
