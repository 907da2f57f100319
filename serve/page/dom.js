// Elements, and numbers as people read them.
export const byId = (id) => document.getElementById(id);

// h("a", {href, class, onclick, "aria-label"}, ...children): text is text, never markup
export const h = (tag, props = {}, ...children) => build(document.createElement(tag), props, children);
export const svg = (tag, props = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

const build = (element, props, children) => {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
};

// calls `draw` when `data` differs from the last time: what has the focus keeps it
export const changed = (place, data, draw) => {
  const now = JSON.stringify(data);
  if (place.shown === now) return;
  place.shown = now;
  draw();
};

const known = (format) => (value) => (value === null || value === undefined ? "–" : format(value));
const digits = (value, count) => value.toLocaleString("en", { maximumSignificantDigits: count });

export const number = known((value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : digits(value, 3)));
export const percent = known((value) => `${digits(value, 3)} %`);
export const score = known((value) => value.toFixed(value < 0.1 ? 4 : 3));

export const seconds = known((value) => {
  if (value === 0) return "0 s";
  if (value < 0.001) return `${digits(value * 1e6, 3)} µs`;
  if (value < 1) return `${digits(value * 1e3, 3)} ms`;
  if (value < 120) return `${digits(value, 2)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${digits(value / 3600, 2)} h`;
  return `${Math.round(value / 86400)} days`;
});

export const bytes = known((value) => {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${digits(value / 1000 ** power, 3)} ${units[power]}`;
});

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");
export const day = (text) => {
  const time = new Date(text);
  if (Number.isNaN(time.getTime())) return "–";
  return time.toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
};

// "a", "a and b", "a, b and c"
export const listed = (parts) =>
  parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
