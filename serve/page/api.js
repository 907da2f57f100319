// What the service is asked. An answer that tells a problem is thrown as one.
const KEY = "tesserec-token";

export class Problem extends Error {
  constructor(status, told) {
    super(told.detail || told.title || `The service answered ${status}`);
    Object.assign(this, { status, title: told.title || "", field: told.field || "" });
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

export const modelPath = (name) => `v1/models/${encodeURIComponent(name)}`;

export const call = async (method, path, body, headers = {}) => {
  const sent = { method, headers: { Accept: "application/json", ...headers }, cache: "no-store" };
  if (token.get()) sent.headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) {
    sent.body = typeof body === "string" ? body : JSON.stringify(body);
    sent.headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, { ...sent, signal: AbortSignal.timeout(15000) });
  const text = await response.text();
  let told = {};
  try {
    told = JSON.parse(text);
  } catch {
    told = { detail: text.slice(0, 300) };
  }
  if (!response.ok) throw new Problem(response.status, told);
  return told;
};
