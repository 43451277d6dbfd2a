// The one place that talks to the API, beside the page it came with. Keeps the key in this tab's session, nowhere else.

const KEY = "markserve-key";
// Page: <base>/console. Data: <base>/v2/console/...
const BASE = new URL("v2/console/", new URL("./", location.href));
const TIMEOUT_MS = 20000;

export class Refused extends Error {
  constructor(message, status, retryAfter_s) {
    super(message);
    this.status = status;
    this.retryAfter_s = retryAfter_s;
  }
}

// `markserve console` hands a key over in the fragment, which is sent to no server.
export function takeKeyFromAddress() {
  const found = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!found) return;
  keep(found);
  history.replaceState(null, "", location.pathname + location.search);
}

export function keep(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

function credentials() {
  const key = sessionStorage.getItem(KEY);
  if (!key) return {};
  // A JSON Web Token has three parts and begins with an object in base64.
  return /^ey[\w-]+\.[\w-]+\.[\w-]*$/.test(key) ? { authorization: `Bearer ${key}` } : { "x-api-key": key };
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), {
      ...options,
      headers: { ...options.headers, ...credentials() },
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new Refused("the API does not answer", 0, 0);
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  const said = body?.error ?? body?.message ?? `the API answered ${response.status}`;
  throw new Refused(said, response.status, Number(response.headers.get("retry-after")) || 0);
}

const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value)).toString();

export const overview = (model, minutes) => call(`overview?${query({ model, minutes })}`);
export const decisions = (minutes) => call(`decisions?${query({ minutes })}`);
export const parameters = (model) => call(`parameters?${query({ model })}`);
export const setParameter = (name, change) =>
  call(`parameters/${encodeURIComponent(name)}`, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(change) });
