// A form from the schema, a table of candidates, and their scores as bars.
import { call, modelPath, token } from "./api.js";
import { byId, h, score, seconds } from "./dom.js";

const ID = "id";
let model = null;
let query = null; // {context: {column: value}, candidates: [{…}, …]}
let columns = []; // those that the candidates have
let asked = false;
let waiting = 0;
let turn = 0;
const chosen = { version: "", key: "" };

const kindOf = (column) => {
  const told = model.schema?.properties?.[column] ?? {};
  const types = [told.type ?? (told.anyOf ?? []).map((one) => one.type)].flat(2);
  const texts = types.includes("array") ? [told.items ?? told.anyOf?.find((one) => one.items)?.items ?? {}].flatMap((one) => [one.type ?? "string"].flat()) : types;
  return { list: types.includes("array"), between: told["x-delimiter"] ?? ", ", text: texts.includes("string"), whole: !texts.includes("number"), told };
};

const shown = (value, column) => (value === undefined || value === null ? "" : Array.isArray(value) ? value.join(kindOf(column).between) : String(value));

// what a text in a field stands for; undefined is a missing value
const parsed = (column, text) => {
  if (text.trim() === "") return undefined;
  if (column === ID) return text;
  const { list, between, text: isText, whole } = kindOf(column);
  const one = (part) => {
    if (isText) return part;
    const value = Number(part);
    if (!Number.isFinite(value) || (whole && !Number.isInteger(value))) throw new Error(`${column} takes ${whole ? "whole " : ""}numbers, got “${part}”`);
    return value;
  };
  return list ? text.split(between.trim() || between).map((part) => part.trim()).filter(Boolean).map(one) : one(text);
};

const hint = (column) => {
  const { list, between, text, whole, told } = kindOf(column);
  const kind = text ? "id" : whole ? "whole number" : "number";
  const such = told.examples?.length ? `, such as ${told.examples.slice(0, 3).map((value) => shown(value, column)).join(" or ")}` : "";
  return (list ? `${kind}s, parted by ${{ " ": "spaces", ", ": "commas" }[between] ?? between}` : kind) + such;
};

// --- the request

const fieldOf = (row, column, path) => {
  const { list, text } = kindOf(column);
  const set = (event) => {
    try {
      const value = parsed(column, event.target.value);
      if (value === undefined) delete row[column];
      else row[column] = value;
      event.target.setCustomValidity("");
      event.target.removeAttribute("aria-invalid");
      edited();
    } catch (error) {
      event.target.setCustomValidity(error.message);
      event.target.setAttribute("aria-invalid", "true");
      event.target.title = error.message;
    }
  };
  return h("input", { value: shown(row[column], column), "data-path": path, "aria-label": path, title: column === ID ? "What the answer calls it" : hint(column), size: 1,
    placeholder: column === ID ? "" : "missing", inputmode: text || list || column === ID ? "text" : "decimal", autocomplete: "off", spellcheck: "false", oninput: set });
};

const without = (row, column) => Object.fromEntries(Object.entries(row).filter(([name]) => name !== column));

// a column given once, or by each candidate
const move = (column) => {
  if (columns.includes(column)) {
    const value = query.candidates[0]?.[column];
    if (value !== undefined) query.context[column] = value;
    query.candidates = query.candidates.map((row) => without(row, column));
    columns = columns.filter((name) => name !== column);
  } else {
    const value = query.context[column];
    query.context = without(query.context, column);
    if (value !== undefined) query.candidates = query.candidates.map((row) => ({ ...row, [column]: value }));
    columns = [...columns, column];
  }
  drawRequest();
  edited();
};

const contextForm = () => {
  const names = Object.keys({ ...query.context, ...model.schema?.properties }).filter((name) => !columns.includes(name));
  const field = (name) => h("div", { class: "field" },
    h("label", {}, h("span", {}, name), fieldOf(query.context, name, `context.${name}`)),
    h("button", { type: "button", class: "move", title: `Let each candidate have its own ${name}`, "aria-label": `Move ${name} to the candidates`, onclick: () => move(name) }, "↓"));
  return h("div", { class: "fields" }, names.length ? names.map(field) : h("p", {}, "Nothing is shared: each candidate has all columns."));
};

const candidateTable = () => {
  const letters = (name) => Math.min(24, Math.max(...query.candidates.map((row) => shown(row[name], name).length), 5));
  const head = columns.map((name) => h("th", { scope: "col", style: { "min-width": `calc(${letters(name)}ch + 34px)` } }, name,
    name === ID ? null : h("button", { type: "button", class: "move", title: `Give ${name} once, for all candidates`, "aria-label": `Move ${name} to the context`, onclick: () => move(name) }, "↑")));
  const drop = (i) => {
    query.candidates.splice(i, 1);
    drawRequest();
    edited();
  };
  const row = (candidate, i) => h("tr", { "data-row": i }, h("th", { scope: "row" }, `${i + 1}`),
    columns.map((name) => h("td", {}, fieldOf(candidate, name, `candidates[${i}].${name}`))),
    h("td", {}, h("button", { type: "button", class: "move", "aria-label": `Remove candidate ${i + 1}`, title: "Remove", onclick: () => drop(i) }, "×")));
  return h("div", { class: "scroll" }, h("table", { class: "candidates" },
    h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "unseen" }, "Place")), head, h("th", {}, h("span", { class: "unseen" }, "Remove")))),
    h("tbody", {}, query.candidates.map(row))));
};

const add = () => {
  query.candidates.push({ ...query.candidates.at(-1) });
  drawRequest();
  const rows = byId("request").querySelectorAll("[data-row]");
  rows[rows.length - 1].querySelector("input")?.select();
  edited();
};

const options = () => {
  const ready = model.versions.filter(({ state }) => state === "ready").map(({ version }) => version);
  const version = h("select", { onchange: (event) => ((chosen.version = event.target.value), edited()) },
    h("option", { value: "" }, "as the traffic goes"), ready.map((one) => h("option", { value: one }, `version ${one}`)));
  if (!ready.includes(chosen.version)) chosen.version = "";
  version.value = chosen.version;
  const key = h("input", { value: chosen.key, placeholder: "any", size: 1, autocomplete: "off", oninput: (event) => ((chosen.key = event.target.value.trim()), edited()) });
  return h("div", { class: "options" }, h("label", {}, h("span", {}, "Answered by"), version), h("label", {}, h("span", {}, "Request key"), key));
};

const drawRequest = () => {
  const form = byId("request");
  const example = h("button", { type: "button", onclick: () => (restart(), edited()) }, "Back to the example");
  form.replaceChildren(
    options(), h("h3", {}, "Context"), contextForm(), h("h3", {}, "Candidates"), candidateTable(),
    h("p", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Rank"), h("button", { type: "button", onclick: add }, "Add a candidate"), example));
  form.onsubmit = (event) => (event.preventDefault(), rank());
};

const edited = () => {
  drawRaw();
  clearTimeout(waiting);
  if (asked) waiting = setTimeout(rank, 250);
};

// --- the answer

const nameOf = ({ id, index }) => {
  const candidate = query.candidates[index] ?? {};
  const more = columns.filter((name) => name !== ID && shown(candidate[name], name) !== String(id)).slice(0, 3).map((name) => shown(candidate[name], name)).filter(Boolean);
  return [h("b", {}, id === null || id === undefined ? `row ${index + 1}` : String(id)), more.length ? h("span", {}, more.join(" · ")) : null];
};

const drawResult = (answer, took) => {
  const most = Math.max(...answer.results.map((one) => one.score), 1e-9);
  const scale = most > 0.5 ? 1 : most;
  const light = (index, on) => byId("request").querySelector(`[data-row="${index}"]`)?.classList.toggle("lit", on);
  const line = (one) => h("li", { onmouseenter: () => light(one.index, true), onmouseleave: () => light(one.index, false) },
    h("div", { class: "who" }, nameOf(one), h("output", {}, score(one.score))),
    h("span", { class: "meter" }, h("i", { style: { width: `${(100 * one.score) / scale}%` } })));
  const warnings = answer.warnings ?? [];
  byId("result").replaceChildren(h("h3", {}, "Ranking"),
    h("p", { class: "facts" }, `Version ${answer.version}, ${seconds(took)} there and back. Bars end at ${scale === 1 ? "1" : score(scale)}.`),
    h("ol", {}, answer.results.map(line)),
    ...(warnings.length ? [h("h3", {}, "Warnings"), h("ul", { class: "warnings" }, warnings.map((text) => h("li", {}, typeof text === "string" ? text : JSON.stringify(text))))] : []));
};

const drawProblem = (problem) => {
  const field = problem.field && byId("request").querySelector(`[data-path="${CSS.escape(problem.field)}"]`);
  if (field) field.setAttribute("aria-invalid", "true");
  byId("result").replaceChildren(h("h3", {}, problem.title || "No ranking"), h("p", { class: "wrong" }, problem.message));
};

const pathOf = () => `${modelPath(model.name)}${chosen.version ? `/versions/${chosen.version}` : ""}:rank`;
const bodyOf = () => ({ context: query.context, candidates: query.candidates, warnings: true });

const rank = async () => {
  asked = true;
  const mine = ++turn;
  const start = performance.now();
  try {
    const answer = await call("POST", pathOf(), bodyOf(), chosen.key ? { "X-Request-Key": chosen.key } : {});
    if (mine !== turn) return; // a later one is under way
    for (const field of byId("request").querySelectorAll("[data-path][aria-invalid]")) if (field.validity.valid) field.removeAttribute("aria-invalid");
    drawResult(answer, (performance.now() - start) / 1000);
  } catch (problem) {
    if (mine === turn) drawProblem(problem);
  }
};

// --- the same request elsewhere

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const python = (value) => JSON.stringify(value).replace(/("(?:[^"\\]|\\.)*")|\b(true|false|null)\b|([,:])/g, (all, text, word, sign) =>
  text ?? (word ? { true: "True", false: "False", null: "None" }[word] : `${sign} `));

const forms = {
  JSON: () => JSON.stringify(bodyOf(), null, 2),
  curl: () => ["curl", `${new URL(pathOf(), document.baseURI)}`, "-H 'Content-Type: application/json'", ...(token.get() ? ["-H \"Authorization: Bearer $TOKEN\""] : []),
    ...(chosen.key ? [`-H ${quoted(`X-Request-Key: ${chosen.key}`)}`] : []), `-d ${quoted(JSON.stringify(bodyOf()))}`].join(" \\\n  "),
  Python: () => ["from tesserec.serve import Client", "", `with Client("${new URL(".", document.baseURI).href.replace(/\/$/, "")}"${token.get() ? ", token=TOKEN" : ""}) as client:`,
    "    ranking = client.rank(", `        "${model.name}",`, `        ${python(query.context)},`, "        [", ...query.candidates.map((row) => `            ${python(row)},`), "        ],",
    ...(chosen.key ? [`        key=${python(chosen.key)},`] : []), "    )", "for found in ranking.results:", "    print(found.id, found.score)"].join("\n"),
};
let form = "JSON";

const drawRaw = () => {
  const text = forms[form]();
  const tab = (name) => h("button", { type: "button", "aria-pressed": String(name === form), onclick: () => ((form = name), drawRaw()) }, name);
  const copy = h("button", { type: "button", class: "quiet", onclick: async (event) => {
    const button = event.currentTarget;
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } }, "Copy");
  byId("raw").replaceChildren(h("div", { class: "tabs" }, h("h3", {}, "This request as"), Object.keys(forms).map(tab), navigator.clipboard ? copy : null),
    h("pre", { tabindex: 0 }, h("code", {}, text)));
};

const restart = () => {
  query = structuredClone(model.input_example ?? { context: {}, candidates: [{}] });
  columns = [...new Set(query.candidates.flatMap(Object.keys))];
  drawRequest();
};

// `input`: a model with its schema and example. What was typed for the same model stays.
export const showPlayground = (input) => {
  const same = model?.name === input.name && JSON.stringify(model.input_example) === JSON.stringify(input.input_example);
  model = input;
  if (same) return drawRequest();
  [asked, turn, chosen.version, chosen.key] = [false, turn + 1, "", ""];
  restart();
  byId("result").replaceChildren(h("h3", {}, "Ranking"), h("p", { class: "facts" }, "Press Rank, or Enter in any field."));
  drawRaw();
};
