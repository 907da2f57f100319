// Small charts in SVG: lines over the last minutes, and bars of two distributions. Colours come from page.css.
import { clock, h, number, svg } from "./dom.js";

const LEFT = 52;
const BOTTOM = 22;
const TOP = 8;
const RIGHT = 6;
const HEIGHT = 190;

// the smallest of 1, 2, 2.5, 5 × 10ⁿ at or above value
export const niceAbove = (value) => {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 5, 10].find((step) => step * power >= value * 0.9999);
};

// the largest value, and where the axis ends: a few outliers leave it, and the largest is told
const rangeOf = (values) => {
  const sorted = values.filter((value) => value > 0).sort((a, b) => a - b);
  if (!sorted.length) return [0, 1];
  const usual = sorted[Math.floor(sorted.length * 0.95)];
  return [sorted.at(-1), niceAbove(sorted.at(-1) > 4 * usual ? 1.5 * usual : sorted.at(-1))];
};

const pathOf = (points) => {
  let text = "";
  let pen = "M";
  for (const point of points) {
    if (point) text += `${pen}${point[0].toFixed(1)},${point[1].toFixed(1)}`;
    pen = point ? "L" : "M";
  }
  return text;
};

// series: [{name, ink, area, rare}]: with its area filled, without a line while all is 0; format: a value as text. Returns update({end, interval_seconds}, [values, …]).
export const lineChart = (place, { title, series, format }) => {
  const readouts = series.map(() => h("b"));
  const moment = h("span", { class: "moment" });
  const legend = series.map(({ name, ink }, i) =>
    h("li", {}, h("i", { class: "swatch", style: { background: `var(--${ink})` } }), name ? `${name} ` : "", readouts[i]));
  const canvas = h("div", { class: "canvas" });
  place.replaceChildren(
    h("figcaption", {}, h("h3", {}, title), moment, h("ul", { class: "legend" }, legend)), canvas);
  let history = null;
  let columns = [];
  let at = null;

  const read = () => {
    const index = at ?? Math.max(0, (columns[0]?.length ?? 0) - 1);
    series.forEach((_, i) => (readouts[i].textContent = format(columns[i]?.[index])));
    const back = columns[0].length - 1 - index;
    moment.textContent = at === null ? "now" : clock(history.end - back * history.interval_seconds);
  };

  const draw = () => {
    const width = canvas.clientWidth;
    if (!history || width < 80) return;
    const [most, top] = rangeOf(columns.flat().filter(Number.isFinite));
    const count = Math.max(2, Math.round(300 / history.interval_seconds));
    const x = (i, length) => LEFT + ((width - LEFT - RIGHT) * (count - length + i)) / (count - 1);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1.04, value / top));
    const grid = [0, 0.5, 1].flatMap((share) => [
      svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(share * top), y2: y(share * top), class: "grid" }),
      svg("text", { x: LEFT - 8, y: y(share * top) + 4, class: "end" }, share || most ? format(share * top) : "0"),
    ]);
    const minutes = [5, 4, 3, 2, 1, 0].map((ago) => {
      const place = LEFT + ((width - LEFT - RIGHT) * (5 - ago)) / 5;
      const side = ago === 0 ? "end" : ago === 5 ? "start" : "middle";
      return svg("text", { x: place, y: HEIGHT - 4, class: side }, ago === 0 ? "now" : ago === 5 ? "−5 min" : `−${ago}`);
    });
    const lines = series.flatMap(({ ink, area, rare }, s) => {
      const values = columns[s];
      if (rare && !values.some(Boolean)) return [];
      const points = values.map((value, i) => (Number.isFinite(value) ? [x(i, values.length), y(value)] : null));
      const line = svg("path", { d: pathOf(points), class: "line", style: { stroke: `var(--${ink})` } });
      if (!area || points.length < 2 || points.includes(null)) return [line];
      const shape = `${pathOf(points)}L${points.at(-1)[0]},${y(0)}L${points[0][0]},${y(0)}Z`;
      return [svg("path", { d: shape, class: "area", style: { fill: `var(--${ink})` } }), line];
    });
    const peak = (value) => svg("text", { x: width - RIGHT, y: TOP + 14, class: "end" }, `peak ${format(value)}`);
    const rule = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "rule", visibility: "hidden" });
    const label = `${title} over the last five minutes: ${series.map((s, i) => `${s.name} ${format(columns[i].at(-1))}`).join(", ")} now`;
    const all = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": label },
      ...grid, ...minutes, ...lines, rule, ...(most > top ? [peak(most)] : []));
    all.addEventListener("pointermove", (event) => {
      const length = columns[0].length;
      const share = (event.clientX - all.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
      at = Math.min(length - 1, Math.max(0, Math.round(share * (count - 1)) - count + length));
      rule.setAttribute("x1", x(at, length));
      rule.setAttribute("x2", x(at, length));
      rule.setAttribute("visibility", "visible");
      read();
    });
    all.addEventListener("pointerleave", () => {
      at = null;
      rule.setAttribute("visibility", "hidden");
      read();
    });
    canvas.replaceChildren(all);
    read();
  };

  new ResizeObserver(draw).observe(canvas);
  return (newHistory, newColumns) => {
    [history, columns] = [newHistory, newColumns];
    if (at === null && columns[0].length) draw();
  };
};

// Shares of two distributions over the same edges, beside each other
export const histogram = (place, { edges, counts, training_counts: training }) => {
  const shares = (list) => list.map((value) => value / Math.max(1, list.reduce((a, b) => a + b, 0)));
  const [now, then] = [shares(counts), shares(training ?? counts.map(() => 0))];
  const width = Math.max(240, place.clientWidth);
  const most = Math.max(...now, ...then, 1e-9);
  const step = (width - RIGHT) / counts.length;
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share / most);
  const bar = (share, x, wide, ink) =>
    svg("rect", { x, width: wide, y: y(share), height: y(0) - y(share), style: { fill: `var(--${ink})` } });
  const bars = now.flatMap((share, i) => [
    bar(then[i], i * step + 1, step - 2, "all"),
    bar(share, i * step + step * 0.25, step * 0.5, "bar"),
  ]);
  const every = Math.ceil(edges.length / 6);
  const labels = edges.map((edge, i) =>
    i % every && i !== edges.length - 1
      ? null
      : svg("text", { x: Math.min(i * step, width - RIGHT), y: HEIGHT - 4,
          class: i === 0 ? "start" : i === edges.length - 1 ? "end" : "middle" }, number(edge)));
  const swatch = (ink, text) => h("li", {}, h("i", { class: "swatch", style: { background: `var(--${ink})` } }), text);
  const even = training && Math.max(...then) < 1.1 * Math.min(...then);
  place.replaceChildren(
    h("figcaption", {}, h("h3", {}, "Scores"), even ? h("span", { class: "moment" }, "each bar had the same share in training") : "",
      h("ul", { class: "legend" }, swatch("bar", "served"), training ? swatch("all", "in training") : null)),
    svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": "How scores are spread, served and in training" },
      svg("line", { x1: 0, x2: width - RIGHT, y1: y(0), y2: y(0), class: "grid" }), ...bars, ...labels));
};
