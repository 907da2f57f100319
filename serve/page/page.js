// Asks the service every two seconds and shows what it says. No framework, nothing from elsewhere.
import { call, modelPath, token } from "./api.js";
import { histogram, lineChart } from "./charts.js";
import { byId, bytes, changed, h, listed, number, percent, seconds } from "./dom.js";
import { showTraffic, showVersions } from "./models.js";
import { showPlayground } from "./playground.js";

const PERIOD = 2000;
const STAGES = { decode: "decode", queue: "wait", score: "score", answer: "answer" };
const charts = {
  rate: lineChart(byId("rate"), { title: "Requests per second", format: number,
    series: [{ name: "answered", ink: "bar", area: true }, { name: "failed", ink: "warn", rare: true }] }),
  latency: lineChart(byId("latency"), { title: "Latency", format: seconds,
    series: [{ name: "p50", ink: "pale" }, { name: "p95", ink: "mid" }, { name: "p99", ink: "accent" }] }),
  staleness: lineChart(byId("staleness"), { title: "Staleness", format: seconds, series: [{ name: "behind training", ink: "bar", area: true }] }),
};

// --- asking and telling

const ask = (title, text, yes, field = null) => {
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-field").hidden = field === null;
  byId("ask-field").value = field ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  // a close is told later: it may be that of the question before
  return new Promise((done) => (dialog.onclose = () => dialog.open || done(dialog.returnValue === "yes")));
};

const askToken = async (text) => {
  if (byId("ask").open) return;
  if (await ask("Bearer token", text, "Use it", token.get())) token.set(byId("ask-field").value.trim());
  await poll();
};

let toastTimer = 0;
const toast = (text, wrong = false) => {
  const place = byId("toast");
  place.textContent = text;
  place.className = wrong ? "wrong" : "";
  place.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (place.hidden = true), wrong ? 12000 : 4000);
};

const act = {
  confirm: ask,
  run: async (work, done) => {
    try {
      await work();
      toast(done);
    } catch (problem) {
      toast(problem.message, true);
    }
    await poll();
  },
};

const trouble = (text) => {
  byId("trouble").hidden = !text;
  if (byId("trouble").textContent !== text) byId("trouble").textContent = text;
  document.body.classList.toggle("old", Boolean(text));
};

// --- one model

const showPart = (id, wanted) => {
  for (const place of [byId(id), document.querySelector(`.parts [href="#${id}"]`)]) place.hidden = !wanted;
};

const figure = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, value), note ? h("span", {}, note) : null));

const showFigures = (now, status) => {
  const total = now.versions.reduce((sum, one) => sum + (one.requests_per_second ?? 0), 0);
  const rows = now.versions.reduce((sum, one) => sum + (one.candidates_per_second ?? 0), 0);
  const failed = now.versions.reduce((sum, one) => sum + (one.errors_per_second ?? 0), 0);
  const live = now.versions.find(({ version }) => version === now.live);
  const latency = live?.latency_seconds?.total;
  const { requests = 0, rows: waiting = 0 } = status.queue ?? {};
  const stale = live?.staleness_seconds;
  byId("figures").replaceChildren(
    figure("Requests per second", number(total), `${number(rows)} candidates`),
    figure("Latency, median", seconds(latency?.p50), latency?.p99 ? `p95 ${seconds(latency.p95)}, p99 ${seconds(latency.p99)}` : "no requests lately"),
    figure("Failed per second", number(failed), failed > 0 && total > 0 ? `${percent((100 * failed) / total)} of all` : "none"),
    figure("Waiting", number(requests), `${number(waiting)} candidates`),
    ...(stale === null || stale === undefined ? [] : [figure("Staleness", seconds(stale), live.delta_error || `delta ${number(live.delta_sequence)} applied`)]));
};

const showStages = (model, now) => {
  const measured = now.versions.filter(({ latency_seconds: latency }) => Number.isFinite(latency?.total?.p50));
  const longest = Math.max(...measured.map(({ latency_seconds: latency }) => latency.total.p50), 1e-9);
  const row = ({ version, latency_seconds: latency }) => {
    const parts = Object.entries(STAGES).map(([stage, word]) => [stage, word, latency[stage]?.p50 ?? 0]);
    const rest = latency.total.p50 - parts.reduce((sum, part) => sum + part[2], 0);
    if (rest > 0) parts.push(["rest", "other", rest]);
    const bars = parts.map(([stage, word, time]) => h("li", { class: stage, style: { "flex-grow": time / longest }, title: `${word} ${seconds(time)}` }));
    const gap = h("li", { class: "gap", style: { "flex-grow": 1 - latency.total.p50 / longest } });
    return h("div", { class: "stage" }, h("span", {}, `Version ${version}`), h("ul", { class: "path" }, bars, gap),
      h("ul", { class: "legend" }, parts.map(([stage, word, time]) => h("li", {}, h("i", { class: `swatch ${stage}` }), `${word} ${seconds(time)}`))));
  };
  byId("stages").replaceChildren(...(measured.length ? [h("h3", {}, "Where the median request's time goes"), ...measured.map(row)] : []));
};

const drift = (psi) => (psi < 0.1 ? "as in training" : psi < 0.25 ? "shifting away from training" : "far from training");

const showInputs = (now) => {
  const live = now.versions.find(({ version }) => version === now.live);
  const unknown = Object.entries(live?.unknown_ids ?? {}).map(([name, count]) => [name, count, "unknown ids"]);
  const missing = Object.entries(live?.missing_values ?? {}).map(([name, count]) => [name, count, "missing"]);
  const rows = [...unknown, ...missing].filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]).slice(0, 12);
  const psi = live?.drift_psi;
  byId("inputs-says").textContent = `Of version ${now.live}, since it was loaded.` +
    (Number.isFinite(psi) ? ` Its scores are ${drift(psi)}: population stability index ${psi.toFixed(3)}.` : "");
  showPart("inputs", live);
  changed(byId("scores"), [live?.score_histogram, byId("scores").clientWidth], () => live?.score_histogram?.counts?.some(Boolean)
    ? histogram(byId("scores"), live.score_histogram)
    : byId("scores").replaceChildren(h("h3", {}, "Scores"), h("p", {}, "None were served yet.")));
  const most = Math.max(1, ...rows.map((row) => row[1]));
  const lines = rows.map(([name, count, what]) => h("tr", {}, h("td", {}, name, h("small", {}, what)),
    h("td", { class: "fill" }, h("span", { class: "meter" }, h("i", { style: { width: `${(100 * count) / most}%` } }))), h("td", { class: "number" }, number(count))));
  changed(byId("unknown"), rows, () => byId("unknown").replaceChildren(h("h3", {}, "Unknown ids and missing values"),
    rows.length ? h("table", {}, h("tbody", {}, lines)) : h("p", {}, "None so far.")));
};

const sentence = ({ live, serving, shadow, versions }) => {
  const shares = versions.filter((one) => one.percent > 0).sort((a, b) => b.percent - a.percent);
  const [first, ...others] = shares.map(({ version, percent: part }) => `${percent(part)} by version ${version}`);
  const those = (...states) => listed(versions.filter(({ state }) => states.includes(state)).map(({ version }) => version));
  const said = [
    !live ? "No version answers yet" : serving !== live ? `Version ${live} cannot answer; ${serving ? `version ${serving} does` : "nothing does"}`
      : others.length ? `Requests are answered ${listed([first, ...others])}` : `Version ${live} answers all requests`,
    shadow ? `version ${shadow.version} shadows ${percent(shadow.percent)}` : "",
    those("loading", "warming") ? `version ${those("loading", "warming")} is being loaded` : "",
    those("failed") ? `version ${those("failed")} failed` : "",
  ];
  return `${said.filter(Boolean).join("; ")}.`;
};

const show = (model, status) => {
  const now = { versions: [], ...status.models?.find(({ name }) => name === model.name) };
  byId("name").textContent = model.name;
  byId("says").textContent = sentence(model);
  document.title = `${model.name} · Tesserec`;
  now.live = model.serving;
  showFigures(now, status);
  if (now.history) {
    charts.rate(now.history, [now.history.requests_per_second, now.history.errors_per_second]);
    charts.latency(now.history, [now.history.p50_seconds, now.history.p95_seconds, now.history.p99_seconds]);
    const stale = now.history.staleness_seconds ?? [];
    byId("staleness").hidden = !stale.some(Number.isFinite);
    charts.staleness(now.history, [stale]);
  }
  showStages(model, now);
  showVersions(model, now, act);
  showTraffic(model, act);
  showInputs(now);
};

// --- all of it

const chosen = () => new URLSearchParams(location.search).get("model");

const showModels = (models, current) => {
  const place = byId("models");
  place.hidden = models.length < 2;
  changed(place, [models.map(({ name, serving }) => [name, serving]), current], () => place.replaceChildren(...models.map(({ name, serving }) =>
    h("a", { href: `?model=${encodeURIComponent(name)}`, "aria-current": name === current ? "page" : null,
      onclick: (event) => (event.preventDefault(), history.pushState(null, "", event.currentTarget.href), poll()) },
      name, h("span", {}, serving ? `version ${serving}` : "not ready")))));
};

const showService = ({ ready, draining, uptime_seconds: up, workers, memory_bytes: memory, memory_budget_bytes: budget, version, tokens }) => {
  const state = draining ? "draining" : ready ? "ready" : "not ready";
  const facts = [`up ${seconds(up)}`, workers > 1 ? `${workers} workers` : "", memory ? `models ${bytes(memory)}${budget ? ` of ${bytes(budget)}` : ""}` : "", version];
  byId("service").replaceChildren(h("span", { class: `state ${draining ? "warming" : ready ? "ready" : "failed"}` }, state),
    ...facts.filter(Boolean).map((fact) => h("span", {}, fact)));
  byId("token").hidden = !tokens;
};

let detail = null;
const showDetail = async (model) => {
  const key = JSON.stringify([model.name, model.serving, model.versions.map(({ state }) => state)]);
  showPart("playground", model.serving);
  if (detail === key || !model.serving) return;
  detail = key;
  showPlayground(await call("GET", modelPath(model.name)));
};

let turn = 0;
const poll = async () => {
  const mine = ++turn;
  try {
    const [status, { models }] = await Promise.all([call("GET", "v1/status"), call("GET", "v1/models")]);
    if (mine !== turn) return; // a later one was quicker
    trouble("");
    showService(status.service ?? {});
    const model = models.find(({ name }) => name === chosen()) ?? models[0];
    showModels(models, model?.name);
    byId("empty").hidden = Boolean(model);
    byId("model").hidden = !model;
    if (!model) return;
    show(model, status);
    await showDetail(model);
  } catch (problem) {
    if (problem.status === 401 || problem.status === 403) {
      byId("token").hidden = false;
      trouble(problem.message);
      if (!token.get()) await askToken("This service asks for a token. It is kept in this tab until you close it.");
    } else trouble(problem.status ? problem.message : "The service does not answer. Figures are the last known; trying again…");
  }
};

byId("token").addEventListener("click", () => askToken("Kept in this tab until you close it. Empty: none."));
addEventListener("popstate", poll);
document.addEventListener("visibilitychange", () => document.hidden || poll());
const forever = async () => {
  if (!document.hidden && !byId("ask").open) await poll();
  setTimeout(forever, PERIOD);
};
forever();
