// A model's versions with what can be done to them, and how its requests are shared out.
import { call, modelPath } from "./api.js";
import { byId, bytes, changed, day, h, number, percent, seconds } from "./dom.js";

const WORDS = { found: "not loaded", loading: "loading", warming: "warming up", ready: "ready", failed: "failed", unloaded: "not loaded" };
const INKS = ["v1", "v2", "v3"];

export const inkOf = (model, version) => (version === model.live ? "bar" : INKS[Number(version) % INKS.length]);

const metricsOf = ({ metrics }) => {
  const auc = Object.entries(metrics ?? {}).filter(([name, value]) => /auc$/.test(name) && Number.isFinite(value));
  return auc.length ? auc.slice(0, 2).map(([name, value]) => h("div", {}, `${value.toFixed(4)} `, h("small", {}, name.replace(/_/g, " ")))) : "–";
};

// actions a version's state allows: [word, why the one who clicks should know]
const actionsOf = (model, { version, state, percent: share }) => {
  if (state === "ready" && model.live !== version)
    return [["Promote", `Version ${version} will answer all requests of ${model.name}${model.live ? `; version ${model.live} does now` : ""}. It can be rolled back.`],
      ...(share || model.shadow?.version === version ? [] : [["Unload", `Version ${version} gives back its memory.`]])];
  if (state === "ready" && model.previous)
    return [["Roll back", `Version ${model.previous} will answer all requests of ${model.name} again, instead of ${version}.`]];
  return ["found", "unloaded", "failed"].includes(state) ? [["Load", ""]] : [];
};

// what each action asks the service for, and what it says when that is done
const DOES = {
  Promote: ({ name }, version) => ["POST", `${modelPath(name)}/versions/${version}:promote`, `Version ${version} is live`],
  Unload: ({ name }, version) => ["POST", `${modelPath(name)}/versions/${version}:unload`, `Version ${version} is unloaded`],
  Load: ({ name }, version) => ["POST", `${modelPath(name)}/versions/${version}:load`, `Version ${version} is being loaded`],
  "Roll back": ({ name, previous }) => ["POST", `${modelPath(name)}:rollback`, `Version ${previous} is live again`],
};

const rowOf = (model, version, act) => {
  const share = version.percent;
  const sure = async (word, text) => {
    if (text && !(await act.confirm(`${word} version ${version.version}?`, text, word))) return;
    const [method, path, done] = DOES[word](model, version.version);
    await act.run(() => call(method, path), done);
  };
  const buttons = actionsOf(model, version).map(([word, text]) =>
    h("button", { type: "button", onclick: () => sure(word, text), "aria-label": `${word} version ${version.version}` }, word));
  const badge = model.live === version.version ? h("span", { class: "badge" }, "live") : model.shadow?.version === version.version ? h("span", { class: "badge pale" }, "shadow") : null;
  const row = h("tr", { class: share ? null : "idle" },
    h("th", { scope: "row" }, h("span", { class: "version" }, version.version), badge),
    h("td", {}, h("span", { class: `state ${version.state}` }, WORDS[version.state] ?? version.state),
      version.state === "ready" && !version.verified ? h("small", {}, "tables being verified") : null),
    h("td", { class: "share" }, share ? h("span", { class: "meter" }, h("i", { style: { width: `${share}%`, background: `var(--${inkOf(model, version.version)})` } })) : null, share ? percent(share) : "–"),
    h("td", { class: "number", "data-rate": version.version }, "–"),
    h("td", { class: "number", "data-p99": version.version }, "–"),
    h("td", { class: "metrics" }, metricsOf(version)),
    h("td", {}, version.model ? [`${version.model}, ${version.tables}`, h("small", {}, bytes(version.nbytes))] : "–"),
    h("td", {}, day(version.created)),
    h("td", { class: "actions" }, buttons));
  if (!version.error) return [row];
  return [row, h("tr", { class: "why" }, h("td", { colspan: 9 }, version.error))];
};

export const showVersions = (model, status, act) => {
  const place = byId("version-table");
  const lasting = model.versions.map(({ staleness_seconds, delta_sequence, delta_error, ...rest }) => rest);
  changed(place, [model.name, model.live, model.previous, model.shadow, model.refused, lasting], () => {
    const heads = ["Version", "State", "Requests", "per second", "p99", "AUC", "Model", "Created", ""];
    const head = heads.map((text, i) => h("th", { scope: "col", class: i === 3 || i === 4 ? "number" : null }, text || h("span", { class: "unseen" }, "Actions")));
    place.replaceChildren(h("table", { class: "versions" }, h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, model.versions.flatMap((version) => rowOf(model, version, act)))),
      ...(model.refused?.length ? [h("p", { class: "facts" }, `No versions, for their names are no numbers: ${model.refused.join(", ")}`)] : []));
  });
  for (const { version, requests_per_second: rate, latency_seconds: latency } of status?.versions ?? []) {
    const cell = (name) => place.querySelector(`[data-${name}="${CSS.escape(version)}"]`);
    if (!cell("rate")) continue;
    cell("rate").textContent = number(rate);
    cell("p99").textContent = seconds(latency?.total?.p99);
  }
};

// the others give or take in proportion, in whole percents that sum to 100
export const rebalanced = (split, changedOne, value) => {
  const others = Object.keys(split).filter((version) => version !== changedOne);
  const rest = 100 - value;
  const sum = others.reduce((total, version) => total + split[version], 0);
  const now = { [changedOne]: value };
  let left = rest;
  others.forEach((version, i) => {
    const part = sum ? Math.round((rest * split[version]) / sum) : i === 0 ? rest : 0;
    now[version] = i === others.length - 1 ? left : Math.min(left, part);
    left -= now[version];
  });
  return now;
};

export const showTraffic = (model, act) => {
  const form = byId("traffic-form");
  const ready = model.versions.filter(({ state }) => state === "ready");
  changed(form, [model.name, model.live, model.shadow, ready.map(({ version, percent: part }) => [version, part])], () => drawTraffic(form, model, ready, act));
};

const drawTraffic = (form, model, loaded, act) => {
  const ready = loaded.map(({ version }) => version);
  if (ready.length < 2) {
    const only = ready.length ? `Only version ${ready[0]} is ready; it gets every request.` : "No version is ready.";
    form.replaceChildren(h("p", {}, only, " A split needs two."));
    return;
  }
  let split = Object.fromEntries(loaded.map(({ version, percent: part }) => [version, Math.round(part)]));
  const given = JSON.stringify(split);
  const bar = h("div", { class: "split", "aria-hidden": "true" });
  const inputs = Object.fromEntries(ready.map((version) => {
    const set = (event) => (split = rebalanced(split, version, Math.min(100, Math.max(0, Math.round(Number(event.target.value) || 0)))), draw());
    return [version, [
      h("input", { type: "range", min: 0, max: 100, oninput: set, "aria-label": `Share of version ${version} in percent` }),
      h("input", { type: "number", min: 0, max: 100, onchange: set, "aria-label": `Percent of version ${version}` }),
    ]];
  }));
  const choices = ["", ...ready].map((version) => h("option", { value: version }, version ? `version ${version}` : "no version"));
  const shadow = h("select", { onchange: () => draw(), "aria-label": "Shadow version" }, choices);
  const part = h("input", { type: "number", min: 1, max: 100, value: model.shadow?.percent ?? 10, oninput: () => draw(), "aria-label": "Percent of requests that the shadow scores" });
  shadow.value = model.shadow?.version ?? "";
  const shadowNow = () => (shadow.value ? { version: shadow.value, percent: Number(part.value) } : null);
  const apply = h("button", { type: "submit", class: "primary" }, "Apply");
  const reset = h("button", { type: "button", onclick: () => drawTraffic(form, model, loaded, act) }, "Reset");
  const draw = () => {
    bar.replaceChildren(...ready.filter((version) => split[version]).map((version) =>
      h("i", { style: { "flex-grow": split[version], background: `var(--${inkOf(model, version)})` } }, split[version] >= 8 ? `${version}` : "")));
    for (const version of ready) for (const input of inputs[version]) if (input.value !== String(split[version])) input.value = split[version];
    const same = JSON.stringify(split) === given && JSON.stringify(shadowNow()) === JSON.stringify(model.shadow ?? null);
    apply.disabled = same || (shadow.value !== "" && !part.checkValidity());
    reset.hidden = same;
    part.disabled = !shadow.value;
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    const shares = Object.fromEntries(Object.entries(split).filter(([, percent]) => percent > 0));
    act.run(() => call("PUT", `${modelPath(model.name)}/traffic`, { split: shares, shadow: shadowNow() }), "Traffic is shared out anew");
  };
  const rows = ready.map((version) => h("div", { class: "slider" }, h("span", {}, `Version ${version}`), inputs[version][0], h("span", { class: "unit" }, inputs[version][1], "%")));
  form.replaceChildren(bar, ...rows,
    h("div", { class: "slider shadow" }, h("span", {}, "Shadow"), shadow, h("span", { class: "unit" }, part, "%")),
    h("p", { class: "buttons" }, apply, reset));
  draw();
};
