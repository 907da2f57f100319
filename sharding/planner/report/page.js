"use strict";
// Draws the figures in the page's inks, again when these change, and finds tables. No framework.
const figures = JSON.parse(document.getElementById("figures").textContent);
const config = { responsive: true, displayModeBar: false };
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// plotly knows no CSS variables: these are looked up, and shades between two of them mixed
const inked = (value) => {
  if (Array.isArray(value)) return value.map(inked);
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, painted(key, inner)]));
  return value;
};
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const shade = (share) => {
  const ends = channels(ink("accent"));
  return `rgb(${channels(ink("tint")).map((from, i) => Math.round(from + share * (ends[i] - from)))})`;
};
const colour = (name) =>
  name.startsWith("var(--") ? ink(name.slice(6, -1)) : name.startsWith("shade ") ? shade(name.slice(6)) : name;
const painted = (key, value) => {
  if (key === "color") return colour(value);
  if (key === "colors") return value.map(colour);
  if (key === "colorscale" && value === "accent") return [[0, ink("tint")], [1, ink("accent")]];
  if (["x", "y", "z", "ids", "parents", "labels", "values", "text", "customdata"].includes(key)) return value;
  return inked(value);
};

const axis = (own) => ({
  gridcolor: ink("rule"), linecolor: ink("rule"), zerolinecolor: ink("rule"), tickcolor: ink("rule"),
  automargin: true, fixedrange: true, ...own,
  title: { standoff: 8, font: { size: 13 }, ...own.title },
});

const themed = (layout) => {
  const all = {
    showlegend: false, dragmode: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: ink("muted") },
    hoverlabel: { bgcolor: ink("paper"), bordercolor: ink("rule"), font: { color: ink("ink") } },
    ...inked(layout),
  };
  all.margin = { t: 8, r: 12, b: 8, l: 8, ...layout.margin };
  for (const key of Object.keys(all)) if (/^[xy]axis/.test(key)) all[key] = axis(all[key]);
  return all;
};

const draw = () => {
  for (const place of document.querySelectorAll("[data-figure]")) {
    const { data, layout } = figures[place.dataset.figure];
    Plotly.react(place, data.map(inked), themed(layout), config);
  }
};

const find = document.getElementById("find");
if (find) {
  const entries = [...document.getElementById("choices").children];
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const entry of entries) {
      entry.hidden = !words.every((word) => entry.dataset.find.includes(word));
      count += !entry.hidden;
    }
    document.getElementById("found").value = `${count.toLocaleString("en")} of ${entries.length.toLocaleString("en")} tables`;
  });
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
