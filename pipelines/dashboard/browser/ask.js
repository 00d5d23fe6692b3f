// Questions to the API.

/** The answer; an Error says in plain words what went wrong, and what to do where the server says it. */
export async function ask(path, parameters = {}, signal = undefined) {
  const said = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(said).toString();
  let response;
  try {
    response = await fetch(path + (query && `?${query}`), { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer");
  }
  if (response.ok) return response.json();
  const told = await response.json().catch(() => null);
  const error = new Error(told?.error ?? `the server answered with HTTP ${response.status}`);
  throw Object.assign(error, { status: response.status, cure: told?.cure });
}
