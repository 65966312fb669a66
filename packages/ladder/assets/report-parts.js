// @ts-nocheck: a script of a page, without modules. What report.js draws with: numbers as text, elements, plots.

/** Plots on the page, to be sized and drawn anew. */
const plots = [];

const colour = (i) =>
  getComputedStyle(document.body)
    .getPropertyValue(`--c${i % 7}`)
    .trim();
/** light-dark() is resolved by the browser only where a colour is used. */
function resolved(i) {
  const probe = document.createElement("i");
  probe.style.color = `var(--c${i % 7})`;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color || colour(i);
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function bytes(count) {
  if (count == null) return "-";
  const units = ["B", "KiB", "MiB", "GiB"];
  const power = Math.min(3, Math.floor(Math.log2(Math.max(1, count)) / 10));
  const value = count / 2 ** (10 * power);
  return `${value.toFixed(value < 10 && power > 0 ? 1 : 0)} ${units[power]}`;
}

function count(value) {
  if (value == null) return "-";
  if (value >= 1e6) return `${(value / 1e6).toFixed(2)} M`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : `${value}`;
}

function duration(seconds) {
  if (seconds == null) return "-";
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

const loss = (value) => (value == null ? "-" : value.toFixed(4));
const last = (list) => list[list.length - 1];

/** A card with a heading; null where there is nothing to show. */
function card(title, size, ...children) {
  return element("section", { class: size, "data-title": title }, element("h2", {}, title), ...children);
}

/** Distances of marks along x, where steps and ops are counted: there is no half of one. */
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** A plot that keeps the width of its card. */
function plot(host, height, options, data) {
  const text = getComputedStyle(document.body).color;
  const grid = getComputedStyle(document.querySelector("section") ?? document.body).borderTopColor;
  const axis = {
    stroke: text,
    grid: { stroke: grid, width: 1 },
    ticks: { stroke: grid, width: 1 },
    font: "12px system-ui, DejaVu Sans, sans-serif",
  };
  const [x, y] = options.axes ?? [{}, {}];
  const make = () =>
    new uPlot(
      {
        width: Math.max(200, host.clientWidth),
        height,
        cursor: { points: { size: 6 } },
        ...options,
        scales: { x: { time: false }, ...options.scales },
        axes: [
          { ...axis, incrs: WHOLE, ...x },
          { ...axis, size: 64, ...y },
        ],
      },
      data,
      host,
    );
  plots.push({ host, height, chart: make() });
}

/** How a run ended, and whether that is anything to look at; "" for a run that goes on. */
function ending({ run, summary, failure, steps }, live) {
  const planned = run?.settings?.steps ?? summary?.steps;
  const done = `${steps.length}${planned ? ` of ${planned}` : ""} steps`;
  if (failure) return { text: `failed after ${done}: [${failure.code}] ${failure.message}`, bad: true };
  switch (summary?.stop_reason) {
    case "done":
      return { text: `done, ${done}`, bad: false };
    case "signal":
      return { text: `stopped by a signal after ${done}; --resume goes on`, bad: true };
    case "patience":
      return { text: `ended after ${done}, as evaluations got no better`, bad: false };
  }
  if (live) return { text: "", bad: false };
  return { text: `no end is recorded after ${done}: it goes on, or was killed`, bad: true };
}

/** Settings of a run as pairs of texts: those in force, and of the others what their defaults came to. */
function settingsOf({ run }) {
  const text = (value) =>
    Array.isArray(value)
      ? value.join(", ")
      : typeof value === "number" && !Number.isInteger(value)
        ? String(+value.toPrecision(4))
        : String(value);
  const given = Object.entries(run.settings).filter(([, value]) => value !== null);
  const defaults = Object.entries(run.defaults).filter(([key]) => run.settings[key] == null);
  return [
    ...given.map(([key, value]) => [key, text(value)]),
    ...defaults.map(([key, value]) => [key, `default: ${text(value)}`]),
  ];
}

globalThis.parts = {
  plots,
  resolved,
  element,
  bytes,
  count,
  duration,
  loss,
  last,
  card,
  plot,
  ending,
  settingsOf,
};
