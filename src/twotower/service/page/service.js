// Asking the service. What it refuses is told in its own words.

const KEPT = "twotower token";

/** A refusal, or no answer at all. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Send a token with what is asked from now on, as long as this tab is open. */
export function useToken(text) {
  sessionStorage.setItem(KEPT, text);
}

/** Whether a token is sent. */
export const hasToken = () => sessionStorage.getItem(KEPT) !== null;

/** JSON of a GET. */
export const get = async (path, signal) => (await answered(path, { signal })).json();

/** Text of a GET. */
export const getText = async (path, signal) => (await answered(path, { signal })).text();

/** JSON of a POST of JSON. */
export async function post(path, asked, signal) {
  const headers = { "content-type": "application/json" };
  return (await answered(path, { method: "POST", body: JSON.stringify(asked), headers, signal })).json();
}

async function answered(path, request) {
  const token = sessionStorage.getItem(KEPT);
  const headers = { ...request.headers, ...(token === null ? {} : { authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const refusal = new Refusal(answer.status, reason(answer.status, await answer.text()));
  if (answer.status === 401) dispatchEvent(new CustomEvent("token wanted", { detail: refusal.message }));
  throw refusal;
}

function reason(status, body) {
  try {
    const { error, detail } = JSON.parse(body);
    if (typeof error === "string") return `${status}: ${error}`;
    if (Array.isArray(detail)) return `${status}: ${detail.map((one) => `${one.loc?.at(-1)}: ${one.msg}`).join("; ")}`;
  } catch {
    // no JSON: a proxy's page, perhaps
  }
  return `${status}: ${body.slice(0, 300)}`;
}
